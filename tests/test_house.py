"""The texts against the house: modules, commands, targets, versions, pins, licence, and what the wheel ships."""

import ast
import hashlib
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
import rasterio
import typer
from packaging.requirements import Requirement
from rasterio.warp import transform

from pipeline import console
from pipeline.cli import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "pipeline", "transforms")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
TEXTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of the foundation's own text
MODULE_LINES = 400
PICTURE_BYTES = 300_000  # a README is read over slow lines too

ENGINES = ("beam_options", "flink", "look", "template", "worker")
SHUFFLE = ("transforms/shuffle.py", "pipeline/shard_graph.py", "pipeline/shards.py")
MAIN_JOB = ("transforms/steps.py", "pipeline/graph.py", "pipeline/embed.py")
BEAM = {*MAIN_JOB, *SHUFFLE, *(f"pipeline/engines/{e}.py" for e in ENGINES)}
LOSSES = ("barlow", "correlation", "mix", "rankme", "reduce")
TRAINING = ("branches", "checkpoint", "device", "distil", "dropout", "loop", "progress", "run")
PROBING = ("presto", "segmentation")
TRAINED = (
    *("checkpoints", "encoders", "export", "heads", "qat"),
    *(f"losses/{name}" for name in LOSSES),
    *(f"training/{name}" for name in TRAINING),
    *(f"probing/{name}" for name in PROBING),
)
TORCH = {f"model/{name}.py" for name in TRAINED}


def modules():
    """Every module of the packages, as the path from the root."""
    return sorted(p.relative_to(ROOT).as_posix() for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def imports_of(module):
    """The top names of everything a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.add(node.module.partition(".")[0])
    return found


def files():
    """Everything that is or could be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout, so nobody knows which files belong to it")
    return [p for name in listed.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


def blocks(text, lines=re.compile(r"^    \S.*$", re.M)):
    """The lines of indented code blocks, without their comments."""
    return [re.sub(r"\s+# .*", "", line.strip()) for line in lines.findall(text)]


COMMANDS = [line for line in blocks(README) if line.startswith("tessera-beam ")]


def command_of(words):
    """(command, context, rest): how far the words name groups and verbs of the program."""
    group = typer.main.get_command(app)
    context = click.Context(group, info_name="tessera-beam")
    while isinstance(group, click.Group | typer.core.TyperGroup):
        name, group, words = group.resolve_command(context, words)
        context = click.Context(group, info_name=name, parent=context)
    return group, context, words


def verbs(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


def test_architecture_names_every_module_and_no_other():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(rf"^    ((?:{'|'.join(PACKAGES)})/\S+\.py)  ?\S?", text, re.M)
    assert sorted(named) == [m for m in modules() if not m.endswith("__init__.py")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_layer_imports_one_above_it(package):
    above = {"model": {"transforms", "pipeline"}, "transforms": {"pipeline"}, "pipeline": set()}[package]
    wrong = {m: imports_of(m) & above for m in modules() if m.startswith(package)}
    assert {m: names for m, names in wrong.items() if names} == {}


def test_torch_and_beam_are_imported_only_where_architecture_says():
    where = {name: {m for m in modules() if name in imports_of(m)} for name in ("torch", "apache_beam")}
    assert where == {"torch": TORCH, "apache_beam": BEAM}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for module in BEAM:
        assert f"`{module}`" in text.partition("## Memory")[0]
    for module in TORCH:
        assert f"`{module.partition('/')[2]}`" in text.partition("## Memory")[0]


@pytest.mark.parametrize("module", modules())
def test_a_module_is_short_and_says_what_it_is_for(module):
    text = (ROOT / module).read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    assert ast.get_docstring(ast.parse(text))


def test_the_readme_begins_with_the_two_commands():
    assert [line.split()[:2] for line in blocks(README)[:2]] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_is_understood(line):
    """Parsed down to its options, not run."""
    command, context, rest = command_of(shlex.split(line)[1:])
    command.parse_args(context, rest)


def test_a_command_with_an_unknown_option_is_not_understood():
    command, context, rest = command_of(["inventory", "build", "--catalogue", "x"])
    with pytest.raises(Exception, match="catalogue"):
        command.parse_args(context, rest)


def test_the_readme_shows_every_verb():
    unnamed = [" ".join(path) for path, _ in verbs() if not re.search(rf"\b{' '.join(path)}\b", README)]
    assert unnamed == []


def named(param):
    """Both names of a switch."""
    return [*param.opts, *param.secondary_opts]


def test_every_option_that_the_texts_name_exists():
    known = {opt for _, command in verbs() for param in command.params for opt in named(param)} | {"--help"}
    foreign = {"--strict"}  # mypy's
    for name in TEXTS:
        text = re.sub(r"^    (?!tessera-beam).*$", "", (ROOT / name).read_text(), flags=re.M)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known | foreign, name


def test_every_make_target_that_is_named_exists_and_is_phony():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.M).group(1).split())
    assert phony == targets
    for name in (*TEXTS, ".ci/run", ".github/workflows/ci.yml"):
        text = (ROOT / name).read_text()
        lines = [c.strip("`") for c in re.findall(r"`make [^`]+`", text)]
        lines += re.findall(r"^(?:    |\s*- run: |)(make [a-z -]+)", text, re.M)
        for line in lines:
            assert set(line.split()[1:]) <= targets, f"{name}: {line}"
    in_readme = set(re.findall(r"\bmake ([a-z-]+)`", README))
    assert in_readme == targets, "the README's table has every target"


def test_the_exit_codes_of_the_readme_are_the_programs():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    assert codes == {
        console.OK, console.CRASHED, console.BAD_INPUT, console.WITH_FAILURES, console.CHECK_FAILED,
        console.INTERRUPTED,
    }  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_every_relative_link_leads_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_of_the_result_is_small():
    picture = ROOT / "docs" / "demo.png"
    assert picture.stat().st_size < PICTURE_BYTES
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_rasterio_lines_of_the_readme_give_code_times_scale(tmp_path, monkeypatch):
    snippet = next(s for s in re.findall(r"```python\n(.*?)```", README, re.S) if "import rasterio" in s)
    folder = tmp_path / "demo-out/out/2024/32TQR/0a1b2c3d"
    folder.mkdir(parents=True)
    (west, east), (south, north) = transform("EPSG:4326", "EPSG:32632", [12.46, 12.50], [45.06, 45.09])
    grid = rasterio.transform.from_origin(west // 10 * 10, north // 10 * 10, 10, 10)
    shape = int((north - south) // 10), int((east - west) // 10)
    random = np.random.default_rng(3)
    codes = random.integers(-127, 128, (128, *shape), np.int8)
    scale = random.uniform(0.01, 0.1, shape).astype(np.float32)
    codes[:, ::5], scale[::5] = -128, np.nan
    for name, a, nodata in (("embeddings", codes, -128), ("scales", scale[None], np.nan)):
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", count=len(a), height=shape[0], width=shape[1], dtype=a.dtype,
            crs="EPSG:32632", transform=grid, nodata=nodata,
        ) as f:  # fmt: skip
            f.write(a)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    row, col = names["window"].row_off, names["window"].col_off
    height, width = names["value"].shape[1:]
    assert names["value"].dtype == np.float32 and 100 < height < 140 and 140 < width < 190
    part = slice(row, row + height), slice(col, col + width)
    assert np.array_equal(names["value"], codes[:, *part] * scale[part], equal_nan=True)


def test_python_in_the_readme_compiles():
    snippets = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "README.md", "exec")


def test_the_newest_version_of_the_changelog_is_the_projects_and_each_speaks_of_codes():
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    assert re.match(r"\[([^\]]+)\]", sections[0]).group(1) == PROJECT["version"]
    assert all(re.search(r"^Codes: ", section, re.M) for section in sections)


def test_constraints_are_exact_pins_without_urls_that_suit_the_project():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?", line), line
        pin = Requirement(line)
        pins.setdefault(pin.name, []).append(str(pin.specifier).removeprefix("=="))
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(r for name, group in extras.items() if name != "gpu" for r in group)]
    for requirement in map(Requirement, wanted):
        versions = pins[requirement.name.lower()]
        assert all(requirement.specifier.contains(v, prereleases=True) for v in versions), requirement


def test_the_core_needs_neither_torch_nor_a_cloud_nor_an_onnxruntime():
    core = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert not core & {"torch", "onnxruntime", "onnxruntime-gpu", "google-cloud-storage", "boto3"}


def test_no_file_names_a_machines_folders_or_a_package_index():
    machines = rb"(?<![\w.}/*-])/(?:" + b"|".join((b"work", b"root", b"home", b"Users")) + rb")/\w"
    indexes = b"|".join(
        (rb"pypi\.(?:org|python)", rb"python" + rb"hosted\.org", rb"index-" + rb"url", rb"arti" + b"factory")
    )
    found = []
    for path in files():
        data = path.read_bytes()
        found += [(path.name, m.group()) for m in re.finditer(machines + b"|" + indexes, data)]
    assert found == []


def test_the_licence_is_apache_2_of_the_authors():
    text = (ROOT / "LICENSE").read_text()
    line = re.search(r"^   (Copyright \d{4} The tessera-beam authors)$", text, re.M).group(1)
    canonical = text.replace(line, "Copyright [yyyy] [name of copyright owner]")
    assert hashlib.sha256(canonical.encode()).hexdigest() == APACHE_2
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]


def test_ci_runs_the_readmes_tests_on_every_python_that_is_promised_and_asks_for_no_secret():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    promised = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.", c)}
    assert set(re.findall(r'"(3\.\d+)"', workflow)) == promised
    assert re.findall(r"- run: (.*)", workflow) == [".ci/run", "make test"]
    assert "secrets" not in workflow and "contents: read" in workflow


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def test_the_wheel_holds_everything_that_the_program_opens(tmp_path):
    """hatchling leaves out what git ignores; `*.onnx` is ignored but for the shipped model."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not in this environment; `make env` puts it there")
    build = subprocess.run(
        [uv, "build", "--wheel", "--offline", "--out-dir", tmp_path, ROOT], capture_output=True, text=True
    )
    if build.returncode and "hatchling" in build.stderr and "network" in build.stderr:
        pytest.skip("the build backend is not in uv's cache, and tests do not download")
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {"pipeline/demo/model.onnx", "transforms/data/land.parquet", "pipeline/templates/report.html.j2"}
    assert {*modules(), *(f"{package}/py.typed" for package in PACKAGES), *data} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, f"tessera_beam-{PROJECT['version']}.dist-info"}
