"""Flink on Kubernetes: manifests by schema, what they must agree in, the way to the cluster, a run where a jar is."""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib

import jobs
import jsonschema
import pytest
import yaml
from conftest import contents

from pipeline.cli import run
from pipeline.engines import Flink
from pipeline.engines.flink import VERSIONS
from pipeline.engines.images import tag_for

FOLDER = jobs.ROOT / "deploy" / "flink"
KUBERNETES = "1.29"  # the first whose pods have native sidecars by default
(CLUSTER,) = yaml.safe_load_all((FOLDER / "cluster.yaml").read_text())
TASK_MANAGER = CLUSTER["spec"]["taskManager"]
POD = TASK_MANAGER["podTemplate"]["spec"]
(POOL,) = POD["initContainers"]
JOB = tomllib.loads((FOLDER / "flink.toml").read_text())
SCHEMA = json.loads((FOLDER / "flinkdeployment.schema.json").read_text())


def gib(text):
    return int(re.fullmatch(r"(\d+)Gi", text)[1])


def check(document):
    """Holds a Kubernetes object against the project's own schemas, strictly: unknown fields are faults."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


# The manifests by themselves


def test_the_deployment_is_one_that_the_operator_knows():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CLUSTER, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "flinkVersion"), "1.20"),
        (("spec", "flinkConfiguration", "taskmanager.numberOfTaskSlots"), 2),
        (("spec", "taskManager", "resource", "memory"), "4 GB"),
        (("spec", "taskManager", "replicas"), 4),
        (("spec", "taskmanager"), {}),
        (("spec", "job"), {"jarURI": "local:///x.jar"}),
        (("metadata", "name"), "Tessera"),
    ],
)
def test_a_deployment_with_a_fault_is_refused_by_the_same_schema(path, value):
    wrong = copy.deepcopy(CLUSTER)
    place = wrong
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def pod():
    """The TaskManager's pod as Kubernetes gets it: the operator fills in its own container."""
    spec = copy.deepcopy(POD)
    spec["containers"][0]["image"] = CLUSTER["spec"]["image"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def test_the_pod_template_is_a_pod():
    check(pod())


def test_a_pod_with_a_fault_is_refused_by_the_same_schema():
    wrong = pod()
    wrong["spec"]["initContainers"][0]["readynessProbe"] = {}
    with pytest.raises(Exception, match="readynessProbe"):
        check(wrong)


def test_account_rights_and_network_policy_are_kubernetes_objects():
    documents = list(yaml.safe_load_all((FOLDER / "access.yaml").read_text()))
    assert {d["kind"] for d in documents} == {"Namespace", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"}
    for document in documents:
        check(document)
        namespace = document["metadata"].get("namespace", document["metadata"]["name"])
        assert namespace == CLUSTER["metadata"]["namespace"]
    (role,) = [d for d in documents if d["kind"] == "Role"]
    asked = {r for rule in role["rules"] for r in rule["resources"]}
    assert "secrets" not in asked and "*" not in asked
    assert CLUSTER["spec"]["serviceAccount"] in {d["metadata"]["name"] for d in documents}


# What the files must agree in


def test_jar_cluster_job_and_image_are_one_pair_of_versions():
    version = JOB["engine"]["flink_version"]
    assert version in VERSIONS
    assert CLUSTER["spec"]["flinkVersion"] == "v" + version.replace(".", "_")
    assert re.match(rf"flink:{re.escape(version)}(-|$)", CLUSTER["spec"]["image"])
    beam = re.search("-beam([0-9.]+)-", tag_for("cuda"))[1]
    assert JOB["engine"]["job_server_jar"] == f"beam-runners-flink-{version}-job-server-{beam}.jar"
    assert POOL["image"].endswith(f":{tag_for('cuda')}")  # not -dataflow: that one is root


def test_the_pool_waits_where_the_job_looks_for_it():
    assert POOL["args"] == ["--worker_pool"] and "command" not in POOL
    (port,) = POOL["ports"]
    assert JOB["engine"]["environment"] == "external"
    assert JOB["engine"]["worker_pool"] == f"localhost:{port['containerPort']}"
    assert port["containerPort"] == 50000  # boot.go has no other
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert POOL[probe]["tcpSocket"]["port"] == port["name"]


def test_a_task_manager_starts_behind_its_pool():
    assert POOL["restartPolicy"] == "Always"
    assert [c["name"] for c in POD["containers"]] == ["flink-main-container"]


def test_slots_threads_memory_and_cards_fit_together():
    slots = int(CLUSTER["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    assert JOB["engine"]["threads"] == slots
    assert JOB["engine"]["parallelism"] % slots == 0
    assert JOB["engine"]["workers_per_task_manager"] == 1
    limits = POOL["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == POOL["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert limits["memory"] == POOL["resources"]["requests"]["memory"]  # else the node gives it to others too
    assert JOB["job"]["memory"] + 2 <= gib(limits["memory"])


def test_nobody_in_the_pod_is_root_and_what_a_killed_worker_leaves_is_reaped():
    assert POD["securityContext"]["runAsNonRoot"] and POD["shareProcessNamespace"]
    dockerfile = (jobs.ROOT / "Dockerfile").read_text()
    assert f"USER {POOL['securityContext']['runAsUser']}:" in dockerfile
    assert all(c["securityContext"]["runAsUser"] != 0 for c in (*POD["containers"], POOL))


def test_a_dry_run_names_the_pool_and_stages_nothing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = shutil.which
    monkeypatch.setattr("shutil.which", lambda name, **more: found(name, **more) or {"java": "/java"}.get(name))
    with jobs.loopback_alone(monkeypatch):
        said = jobs.dry(jobs.filled(FOLDER / "flink.toml", world, tmp_path), capsys)
    (environment,) = said["job"]["environments"]
    assert (environment["urn"], environment["where"]) == ("beam:env:external:v1", "localhost:50000")
    assert "--flink_submit_uber_jar" in said["beam_options"] and "--flink_version=1.20" in said["beam_options"]
    assert "--sdk_worker_parallelism=1" in said["beam_options"] and "--parallelism=8" in said["beam_options"]


# The way to the cluster


@pytest.fixture
def programs(tmp_path):
    """A kubectl that forwards a port to nowhere, and a tessera-beam that writes its arguments down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    listen = f"{sys.executable} -m http.server --bind localhost"
    (folder / "kubectl").write_text(
        "#!/usr/bin/env bash\n"
        f'case "$*" in *port-forward*) last=${{!#}}; exec {listen} "${{last%%:*}}" 2>/dev/null ;;\n'
        '*wait*) exit "${NOT_READY:-0}" ;; esac\n'
    )
    (folder / "tessera-beam").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$ASKED"; exit "${ENDS_WITH:-0}"\n')
    for program in folder.iterdir():
        program.chmod(0o755)

    def call(*arguments, **environment):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        given = {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked"), "PORT": str(port)}
        done = subprocess.run(
            ["bash", FOLDER / "submit.sh", *arguments], capture_output=True, text=True, env=given | environment
        )
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("localhost", port))  # nothing is left that forwards
        return done, asked, port

    return call


def test_the_script_opens_the_way_and_hands_everything_on(programs):
    done, asked, port = programs("--tiles", "33TWL", "--no-wait")
    assert done.returncode == 0, done.stderr
    assert asked == ["embed", "--config", str(FOLDER / "flink.toml"), "--set", f"master=localhost:{port}",
                     "--tiles", "33TWL", "--no-wait"]  # fmt: skip


def test_the_script_ends_with_the_program_s_own_code_and_starts_nothing_on_a_cluster_that_is_not_there(programs):
    assert programs(ENDS_WITH="3")[0].returncode == 3
    assert programs(NOT_READY="1")[0].returncode != 0


# A run


@pytest.mark.slow
def test_an_embedded_flink_gives_the_bytes_of_the_local_run(sparse, tmp_path, capsys):
    jar = os.environ.get("FLINK_JOB_SERVER_JAR", "")
    if not jar:
        pytest.skip("FLINK_JOB_SERVER_JAR names no jar: beam-runners-flink-1.20-job-server of Beam's own version")
    if shutil.which("java") is None:
        pytest.skip("no java in the PATH, which the job server needs")
    version = re.search(r"flink-(\d+\.\d+)", jar)
    words = ["embed", sparse.inv, "--model", sparse.model, "--bbox", sparse.bbox, "--block", "512", "--device", "cpu"]
    settings = {"master": "[local]", "environment": "loopback", "job_server_jar": jar, "parallelism": "2"}
    settings["flink_version"] = version[1] if version else Flink.flink_version
    more = [w for name, value in settings.items() for w in ("--set", f"{name}={value}")]
    for runner, options in (("local", []), ("flink", more)):
        code = run([*words, "--out", str(tmp_path / runner), "--runner", runner, *options, "--json"])
        assert code == 0, capsys.readouterr().err
    assert contents(tmp_path / "flink") == contents(tmp_path / "local")
