"""Engines: Beam's options of each, what each refuses before anything starts, and job files."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput, WorkerLost
from pipeline.engines import ENGINES, Dataflow, Flink, Job, Local, Portable, Prism, engine_of
from pipeline.engines.beam_options import check_beam_args, known_options
from pipeline.engines.dataflow import memory_gb
from pipeline.engines.images import check_image, tag_for
from pipeline.job_config import read_job, settings_of
from pipeline.waiting import ask, waited
from transforms.plans import Plan
from transforms.storage import open_store

JOB = Job("20240101T000000-abc123", "gs://bucket/out", "cuda", int(5e9))
CPU = dataclasses.replace(JOB, device="cpu")
GCP = {
    "project": "my-project", "region": "europe-west4", "temp": "gs://bucket/temp",
    "image": f"host/repo/tessera-beam:{tag_for('cuda')}", "accelerator": "nvidia-l4",
}  # fmt: skip
ON_CPU = {"image": f"host/repo/tessera-beam:{tag_for('cpu')}", "accelerator": "", "machine": "n2-standard-8"}


@pytest.fixture
def jar(tmp_path):
    path = tmp_path / "beam-runners-flink-1.20-job-server-2.77.0.jar"
    path.write_bytes(b"")
    return str(path)


def test_dataflow_is_told_everything_that_it_would_else_guess():
    engine = engine_of("dataflow", GCP | {"labels": "team=maps,year=2024"})
    engine.check(JOB)
    options = PipelineOptions(engine.flags(JOB)).get_all_options(drop_default=True)
    assert options["sdk_container_image"] == GCP["image"] and options["sdk_location"] == "container"
    assert options["dataflow_service_options"] == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
    assert set(options["experiments"]) == {"no_use_multiple_sdk_containers", "disable_logging_submission_environment"}
    assert options["number_of_worker_harness_threads"] == 2 == engine.blocks_at_once
    assert options["labels"] == ["team=maps", "year=2024"]
    assert options["job_name"] == "tessera-beam-20240101t000000-abc123"
    assert not options.get("save_main_session") and engine.elsewhere
    assert engine.link("id").endswith("/dataflow/jobs/europe-west4/id?project=my-project")


def test_every_option_that_an_engine_gives_is_one_that_beam_knows(jar):
    engines = [
        (Local(2), CPU),
        (Portable(endpoint="localhost:8099"), CPU),
        (Flink(master="flink:8081", job_server_jar=jar, worker_pool="localhost:50000"), CPU),
        (engine_of("dataflow", GCP), JOB),
        (engine_of("dataflow", GCP | ON_CPU | {"flexrs": "true", "public-ips": "true", "network": "n"}), CPU),
    ]
    for engine, job in engines:
        named = {f.removeprefix("--").partition("=")[0] for f in engine.flags(job)}
        assert named <= set(known_options()), engine.name


@pytest.mark.parametrize(
    ("job", "change", "words"),
    [
        (JOB, {"image": f"r/t:{tag_for('cpu')}"}, "--device cuda, and image .* is made for the CPU"),
        (CPU, ON_CPU | {"image": GCP["image"]}, "--device cpu, and image .* is for cards alone"),
        (JOB, {"image": "r/t:0.1.0-beam2.70.0-py311-cuda"}, "has Beam 2.70.0, and this is Beam 2"),
        (JOB, {"image": GCP["image"].replace(f"py{sys.version_info.major}", "py9")}, "has Python 9"),
        (JOB, {"image": "r/t"}, "has no tag"),
        (JOB, {"image": "r/t:latest"}, "`latest` moves"),
        (JOB, {"image": "r/t:v7"}, "does not say which Beam"),
        (JOB, {"image": "not a image!!"}, "is no name of an image"),
        (JOB, {"accelerator": ""}, "--device cuda needs accelerator"),
        (JOB, {"accelerator": "nvidia-l5"}, r"did you mean nvidia-l4\?"),
        (JOB, {"accelerator": "nvidia-h100-80gb"}, "machine g2-standard-8 has no nvidia-h100-80gb: .*a3-highgpu-N"),
        (JOB, {"accelerators": "2"}, "one process works with one card"),
        (CPU, {}, "a card that nobody uses"),
        (CPU, ON_CPU | {"machine": "g2-standard-8"}, "carries a card, and --device is cpu"),
        (JOB, {"flexrs": "true"}, "flexrs does not come with cards"),
        (JOB, {"threads": "-3"}, "threads = -3: it must be 1 or more"),
        (JOB, {"threads": "7"}, "7 threads of 5.0 GB each take 35.0 GB, and a g2-standard-8 has 32.0 GB"),
        (CPU, ON_CPU | {"machine": "x9-large-4"}, "machine-memory-gb"),
        (JOB, {"workers": "9", "max-workers": "2"}, "workers = 9 is more than max-workers = 2"),
        (JOB, {"project": "B"}, "project = 'B'"),
        (JOB, {"region": "europe-west4-a"}, "not a zone"),
        (JOB, {"temp": "gs://bucket"}, "with a folder"),
        (JOB, {"service-account": "me"}, "e-mail"),
        (JOB, {"labels": "Team=maps"}, "label 'Team=maps'"),
        (JOB, {"disk-gb": "10"}, "give 30 or more"),
        (dataclasses.replace(JOB, out="/home"), {}, "write to a bucket"),
        (dataclasses.replace(JOB, beam_args=("--worker_accelerator=nvidia-l4",)), {}, "drops it without a word"),
        (dataclasses.replace(JOB, beam_args=("--number_of_worker_harness_threads=9",)), {}, "the engine itself says"),
        (dataclasses.replace(JOB, beam_args=("--max_num_worker=9",)), {}, r"did you mean max_num_workers\?"),
    ],
)  # fmt: skip
def test_dataflow_refuses_what_would_fail_late_or_be_ignored(job, change, words):
    with pytest.raises(BadInput, match=words):
        engine_of("dataflow", GCP | change).check(job)


def test_an_image_that_is_pinned_by_digest_still_says_what_is_in_it_or_somebody_vouches_for_it():
    digest = "@sha256:" + "0" * 64
    check_image("dataflow", f"r/t:{tag_for('cuda')}{digest}", "cuda")
    with pytest.raises(BadInput, match="any-image = true"):
        check_image("dataflow", f"r/t{digest}", "cuda")
    engine_of("dataflow", GCP | {"image": f"r/t{digest}", "any-image": "true"}).check(JOB)


def test_memory_of_machines():
    assert memory_gb("g2-standard-8") == 32 and memory_gb("a2-highgpu-2g") == 170 and memory_gb("a3-highgpu-1g") == 234
    assert memory_gb("n2-highmem-4") == 32 and memory_gb("x9-large-4") is None and memory_gb("") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "engine flink needs master"),
        ({"master": "flink"}, "HOST:PORT of the REST address"),
        ({"master": "flink:8081", "environment": "loopback"}, "which a cluster does not reach"),
        ({"master": "flink:8081", "environment": "docker"}, "take external"),
        ({"master": "flink:8081", "flink-version": "1.16"}, "this Beam has 1.19"),
        ({"master": "flink:8081", "flink-version": "2.0"}, "is for Flink 1.20, and flink-version is 2.0"),
        ({"master": "flink:8081", "job-server-jar": "gone.jar"}, "there is no such file"),
        ({"master": "flink:8081", "job-server-jar": ""}, "job-server-jar is missing"),
        ({"master": "flink:8081", "parallelism": "0"}, "parallelism = 0"),
        ({"master": "flink:8081", "worker-pool": ""}, "needs worker-pool"),
        ({"master": "flink:8081", "worker-pool": "a:1,b:2"}, "one HOST:PORT is wanted"),
        ({"master": "[local]", "worker-pool": ""}, "or take loopback"),
    ],
)
def test_flink_refuses_what_is_known_to_break(jar, settings, words):
    with pytest.raises(BadInput, match=words):
        engine_of("flink", {"job-server-jar": jar, "worker-pool": "localhost:50000"} | settings).check(CPU)


def test_flink_submits_one_jar_to_a_cluster_and_never_to_the_embedded_one(jar):
    cluster = Flink(master="flink:8081", job_server_jar=jar, worker_pool="localhost:50000")
    cluster.check(CPU)
    assert "--flink_submit_uber_jar" in cluster.flags(CPU) and cluster.elsewhere
    assert cluster.link("x") == "http://flink:8081/#/job/running"
    embedded = Flink(master="[local]", job_server_jar=jar, environment="loopback")
    embedded.check(CPU)
    assert "--flink_submit_uber_jar" not in embedded.flags(CPU) and not embedded.elsewhere


def test_options_of_the_flink_server_may_be_given_though_beam_s_python_does_not_know_them(jar):
    args = ("--max_bundle_size=100", "--number_of_execution_retries=2")
    job = dataclasses.replace(CPU, beam_args=args)
    Flink(master="flink:8081", job_server_jar=jar, worker_pool="localhost:50000").check(job)
    with pytest.raises(BadInput, match="--max_bundle_size: Beam knows no such option"):
        Local().check(job)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prism": "/nowhere/prism"}, "no program /nowhere/prism"),
        ({"environment": "external"}, "needs worker-pool"),
        ({"environment": "external", "worker-pool": "localhost:1,localhost:2"}, "one HOST:PORT"),
        ({"environment": "external", "worker-pool": "localhost:99999"}, "one HOST:PORT"),
        ({"environment": "process", "command": "/nowhere/worker"}, "no such program"),
        ({"environment": "docker", "image": "x"}, "never tried"),
        ({"environment": "threads"}, "must be one of loopback"),
        ({"worker-pool": "localhost:1"}, "is for environment external"),
        ({"threads": "0"}, "threads = 0"),
        ({"start-minutes": "0"}, "more than 0"),
        ({"start-minutes": "soon"}, "a number is wanted"),
        ({"pool": "x"}, "has no setting 'pool'"),
    ],
)
def test_prism_refuses_what_would_panic_or_hang(settings, words):
    with pytest.raises(BadInput, match=words):
        engine_of("prism", {"prism": sys.executable} | settings).check(CPU)


def test_engines_that_lose_results_are_not_offered():
    for name in ("DirectRunner", "dask", "spark", ""):
        with pytest.raises(BadInput, match="runs on local, prism, portable, flink, dataflow"):
            engine_of(name, {})


@pytest.mark.parametrize("args", [("--num_workers=two",), ("loose",), ("--direct_num_workers=3",), ("--nonsense",)])
def test_beam_s_own_options_are_held_against_its_list(args):
    with pytest.raises(BadInput):
        check_beam_args(args, Local().flags(CPU))


def test_beam_s_own_options_that_it_knows_pass():
    check_beam_args(("--experiments=a", "--experiments", "b", "--profile_cpu"), Local().flags(CPU))


@given(
    st.sampled_from(sorted(ENGINES)), st.text(max_size=20), st.one_of(st.text(max_size=20), st.integers(), st.none())
)
def test_any_setting_is_taken_or_refused_in_words(name, key, value):
    try:
        engine = engine_of(name, {key: value})
    except BadInput as e:
        assert name in str(e)
    else:
        assert engine.name == name


def test_a_worker_s_memory_is_that_of_all_its_blocks_at_once():
    assert Dataflow(threads=3).blocks_at_once == 3
    assert Prism(threads=2).blocks_at_once == 2 and Local(4).blocks_at_once == 1 and Local(4).processes == 4


class _Job:
    """A result of Beam's that ends when it is told to."""

    def __init__(self, ends: bool, error: Exception | None = None) -> None:
        import threading

        self.cancelled, self._over, self._error = False, threading.Event(), error
        if ends:
            self._over.set()

    def wait_until_finish(self):
        self._over.wait()
        if self._error:
            raise self._error

    def cancel(self):
        self.cancelled = True
        self._over.set()


@dataclasses.dataclass(frozen=True)
class _Hasty(Portable):
    start_minutes: float = 1e-4
    patience_minutes: float = 1e-4


def test_a_job_without_a_sign_of_life_is_cancelled_with_words():
    job = _Job(ends=False)
    with pytest.raises(WorkerLost, match="no worker has given a sign of life"):
        waited(job, _Hasty(endpoint="h:1"), lambda: 0, lambda: False)
    assert job.cancelled
    job = _Job(ends=False)
    with pytest.raises(WorkerLost, match="no block has ended for"):
        waited(job, _Hasty(endpoint="h:1"), lambda: 3, lambda: False)


def test_a_job_s_own_error_reaches_the_program():
    with pytest.raises(RuntimeError, match="it broke"):
        waited(_Job(True, RuntimeError("it broke")), Portable(endpoint="h:1"), lambda: 0, lambda: False)
    assert waited(_Job(True), Portable(endpoint="h:1"), lambda: 0, lambda: False)


def test_ctrl_c_leaves_a_job_elsewhere_running_and_stops_one_that_is_here():
    def interrupt() -> int:
        raise KeyboardInterrupt

    elsewhere = _Hasty(endpoint="h:1", environment="external", worker_pool="h:2", start_minutes=0.01)
    job = _Job(ends=False)
    assert not waited(job, elsewhere, interrupt, lambda: False)
    assert not job.cancelled
    with pytest.raises(KeyboardInterrupt):
        waited(_Job(ends=False), _Hasty(endpoint="h:1", start_minutes=0.01), interrupt, lambda: False)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "waits_on"),
    [
        (_Terminal("d\n"), True),
        (_Terminal("l\n"), False),
        (_Terminal(""), False),
        (io.StringIO("d\n"), False),
        (None, False),
    ],
)
def test_who_stops_the_program_may_drain_the_job_or_leave_it_alone(tmp_path, monkeypatch, stdin, waits_on):
    """Without a terminal nobody is there to answer: the job is left as it is."""
    plain = {str: "", int: 0, bool: False}
    plan = Plan(**{f.name: plain[f.type] for f in dataclasses.fields(Plan)} | {"run": "r", "out": str(tmp_path)})
    store, said = open_store(str(tmp_path)), []
    monkeypatch.setattr("sys.stdin", stdin)
    assert ask(store, plan, Portable(endpoint="h:1"), said.append) is waits_on
    assert store.names("_runs/r") == (["_runs/r/stop.txt"] if waits_on else [])
    assert ("draining" if waits_on else f"tessera-beam drain {tmp_path}") in said[-1]


def test_a_job_file_says_what_options_say(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        '[job]\ninventory = "inv.parquet"\ntiles = ["33TWL", "33TWM"]\nblock = 1024\nmemory = 20\nforce = true\n'
        '[engine]\nrunner = "dataflow"\nthreads = 2\nlabels = ["team=maps"]\n[beam]\noptions = ["--profile_cpu"]\n'
    )
    file = read_job(str(path))
    wanted = {"inventory": "inv.parquet", "tiles": "33TWL,33TWM", "block": 1024, "memory": 20.0, "force": True}
    assert file.job == wanted and file.beam == ("--profile_cpu",)
    assert file.runner == "dataflow" and file.settings == {"threads": 2, "labels": ["team=maps"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[jobs]\n", "'jobs' is none of the tables"),
        ("[job]\nblocks = 1\n", r"did you mean block\?"),
        ("[job]\nblock = 'large'\n", "a whole number is wanted"),
        ("[job]\nforce = 1\n", "true or false is wanted"),
        ("[beam]\nflags = []\n", "not flags"),
        ("[beam]\noptions = 7\n", "a list of texts"),
        ("job\n", "line 1"),
    ],
)
def test_a_job_file_with_a_slip_is_refused(tmp_path, text, words):
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        read_job(str(path))
    with pytest.raises(BadInput, match="cannot be read"):
        read_job(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize("texts", [["a"], ["=b"], ["a=1", "a=2"]])
def test_settings_are_pairs_and_each_is_said_once(texts):
    with pytest.raises(BadInput):
        settings_of(texts)
    assert json.dumps(dict(settings_of(["a_b=x=y"]))) == '{"a-b": "x=y"}'


def test_the_page_about_engines_has_every_setting():
    page = (Path(__file__).parents[2] / "docs/engines.md").read_text()
    for name, kind in ENGINES.items():
        part = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        for setting, field in kind.settings().items():
            assert f"| `{setting}` |" in part and f"| {field.metadata['words']} |" in part, (name, setting)
