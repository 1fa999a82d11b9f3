"""What other people's CI takes from deploy/ci: valid files, and a script that ends with the gate's own exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MODEL = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"

ROOT = Path(__file__).parents[2]
CI = ROOT / "deploy" / "ci"
VALIDATOR = Path(sys.executable).with_name("check-jsonschema")


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("deploy/ci/gate/action.yml", "vendor.github-actions"),
        ("deploy/ci/gitlab-ci.yml", "vendor.gitlab-ci"),
        (".github/workflows/ci.yml", "vendor.github-workflows"),
    ],
)
def test_each_file_is_what_its_host_reads(file, schema):
    done = subprocess.run(
        [VALIDATOR, "--builtin-schema", schema, ROOT / file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_of_another_form_is_refused_by_the_same_schema(tmp_path):
    action = yaml.safe_load((CI / "gate" / "action.yml").read_text())
    del action["runs"]["using"]
    (tmp_path / "action.yml").write_text(yaml.safe_dump(action))
    command = [VALIDATOR, "--builtin-schema", "vendor.github-actions", tmp_path / "action.yml"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def gate(tmp_path, *arguments, cwd=None, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", CI / "gate.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd or tmp_path,
        env={**os.environ, "PATH": path, **environment},
    )


@pytest.fixture
def edited(tmp_path):
    """The shipped model with one byte of a weight changed."""
    content = bytearray(MODEL.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "edited.onnx"
    path.write_bytes(content)
    return path


def test_the_script_proves_a_good_model_and_leaves_a_page(tmp_path):
    done = gate(tmp_path, MODEL, REPORT="report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"model.onnx: proven, \d+ checks", done.stdout)
    assert "checks passed" in (tmp_path / "report" / "model.html").read_text()
    assert json.loads((tmp_path / "report" / "gate.json").read_text())["ok"] is True


@pytest.mark.slow
def test_the_script_refuses_an_edited_model_among_good_ones(tmp_path, edited):
    done = gate(tmp_path, MODEL, edited, REPORT="report")
    assert done.returncode == 4
    assert "model.onnx: proven" in done.stdout
    assert "edited.onnx: REFUSED" in done.stdout
    assert "FAILED  graph digest" in done.stdout
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"model.html", "edited.html", "gate.json"}


def test_what_is_no_model_file_ends_with_2(tmp_path):
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    done = gate(tmp_path, "foreign.onnx")
    assert done.returncode == 2
    assert "foreign.onnx" in done.stderr
    assert gate(tmp_path).returncode == 2


@pytest.mark.slow
def test_as_a_hook_it_looks_at_what_is_staged(tmp_path, edited):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    assert gate(tmp_path, "--staged").returncode == 0  # nothing to prove
    shutil.copy(MODEL, tmp_path / "good one.onnx")
    git("add", "good one.onnx")
    assert gate(tmp_path, "--staged").returncode == 0
    git("add", "edited.onnx")
    assert gate(tmp_path, "--staged").returncode == 4


def test_every_way_in_calls_the_gate_and_none_needs_pytorch():
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hooks[0]["entry"].startswith("tessera-beam model gate")
    assert re.search(hooks[0]["files"], "models/a.onnx")
    texts = [p.read_text() for p in (CI / "gate" / "action.yml", CI / "gate.sh", CI / "gitlab-ci.yml")]
    assert all("gate" in text for text in texts)
    assert not any(re.search(r"\[.*train.*\]|torch\b(?!\.)", text.replace("PyTorch", "")) for text in texts)


@pytest.mark.slow
def test_the_hook_judges_what_is_staged_and_not_what_lies_in_the_working_tree(tmp_path, edited):
    def git(folder, *arguments):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)

    git(tmp_path, "init", "-q")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.onnx").write_bytes(edited.read_bytes())
    git(tmp_path, "add", "models/a.onnx")
    (tmp_path / "models" / "a.onnx").write_bytes(MODEL.read_bytes())  # mended, and not added
    assert gate(tmp_path, "--staged").returncode == 4
    (tmp_path / "models" / "a.onnx").unlink()
    assert gate(tmp_path, "--staged").returncode == 4
    (tmp_path / "models" / "a.onnx").write_bytes(MODEL.read_bytes())
    git(tmp_path, "add", "models/a.onnx")
    done = gate(tmp_path, "--staged", cwd=tmp_path / "models", REPORT="pages")  # paths start at the top all the same
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "models" / "pages" / "a.html").is_file()


@pytest.mark.slow
def test_two_models_of_one_name_have_a_page_each(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(MODEL, tmp_path / folder / "m.onnx")
    assert gate(tmp_path, "a/m.onnx", "b/m.onnx", REPORT="report").returncode == 0
    assert {p.name for p in (tmp_path / "report").glob("*.html")} == {"a-m.html", "b-m.html"}


@pytest.mark.slow
def test_a_file_that_is_none_does_not_hide_the_verdict_on_others(tmp_path):
    done = gate(tmp_path, MODEL, "nofile.onnx", REPORT="report")
    assert done.returncode == 2
    assert "model.onnx: proven" in done.stdout
    assert "nofile.onnx: REFUSED, no model file at nofile.onnx" in done.stdout
    alone = gate(tmp_path, "nofile.onnx", REPORT="other")
    assert alone.returncode == 2
    assert not (tmp_path / "other" / "gate.json").exists()


def test_the_gate_runs_where_pytorch_cannot_be_imported(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pipeline.cli import run\n"
        f"sys.exit(run(['model', 'gate', {str(MODEL)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
