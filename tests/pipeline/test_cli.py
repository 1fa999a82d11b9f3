"""The command line: exit codes, what goes to which stream, and sentences that say what to do."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHARED

from pipeline.cli import run
from pipeline.exits import ended
from transforms.storage import StoreError


@pytest.fixture
def call(capfd):
    """Runs the program; gives exit code, stdout and stderr."""

    def calling(*argv: str) -> tuple[int, str, str]:
        code = run([str(a) for a in argv])
        said = capfd.readouterr()
        return code, said.out, said.err

    return calling


VERBS = [
    ["demo"], ["inventory", "build"], ["inventory", "explain"], ["inventory", "amend"], ["dpixels"], ["quote"],
    ["embed"],
    ["status"], ["verify"], ["report"], ["model", "import"], ["model", "export"], ["model", "gate"], ["model", "show"],
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example_and_json(call, verb):
    code, out, _ = call(*verb, "--help")
    assert code == 0
    assert f"Example: tessera-beam {' '.join(verb)}" in out
    assert "--json" in out


BUILD = ["inventory", "build", "--catalog", "{planet}", "--out", "{tmp}/i"]
WINDOW = ["dpixels", "{inv}", "--tile", "32TQR", "--out", "{tmp}/d"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([*BUILD, "--period", "2024", "--tiles", "33TXY"], "33TX"),
        ([*BUILD, "--period", "2031", "--tiles", "32TQR"], "2031"),
        ([*BUILD, "--period", "2024/2025", "--tiles", "32TQR"],
         "write a year"),
        ([*BUILD, "--period", "2024", "--tiles", "31UDQ"], "31UDQ"),
        (["inventory", "build", "--catalog", "{tmp}/none", "--period", "2024", "--tiles", "32TQR", "--out", "{tmp}/i"],
         "no such folder or file"),
        ([*BUILD, "--period", "2024"], "which tiles"),
        ([*BUILD, "--period", "2024", "--bbox", "1,2,3"], "1,2,3"),
        (["embed", "{tmp}/none.parquet", "--model", "{model}", "--out", "{tmp}/o"], "no such file"),
        (["embed", "{inv}", "--model", "{tmp}/none.onnx", "--out", "{tmp}/o"], "none.onnx"),
        (["embed", "{inv}", "--model", "{inv}", "--out", "{tmp}/o"], "ONNX"),
        (["embed", "{inv}", "--out", "{tmp}/o"], "--model"),
        (["embed", "--model", "{model}", "--out", "{tmp}/o"], "what is to be embedded"),
        (["embed", "{inv}", "--model", "{model}", "--out", "{inv}"], "--out"),
        (["embed", "{inv}", "--model", "{model}", "--out", "ftp://host/o"], "ftp://"),
        (["embed", "{inv}", "--model", "{model}", "--out", "{tmp}/o", "--overlap", "owned"], "full"),
        (["embed", "--dpixels", "{tmp}/none", "--model", "{model}", "--out", "{tmp}/o"], "no such folder"),
        ([*WINDOW, "--profile", "v9", "--window", "0,0,8,8"], "v9"),
        ([*WINDOW, "--profile", "v2", "--window", "0,0,8"], "ROW,COL,H,W"),
        ([*WINDOW, "--profile", "v2", "--window", "10979,0,8,8"], "leaves"),
        (["inventory", "explain", "{inv}", "--scene", "nothing"], "nothing"),
        (["quote", "{inv}", "--model", "{model}", "--card", "abacus"], "abacus"),
        (["status", "{tmp}"], "not an output folder"),
        (["verify", "{tmp}"], "not an output folder"),
        (["report", "{tmp}"], "embed run"),
        (["model", "show", "{inv}"], "ONNX"),
        (["model", "import", "{tmp}/none.pt", "--family", "v2", "--out", "{tmp}/m.onnx"], "none.pt"),
        (["model", "import", "{model}", "--family", "v7", "--out", "{tmp}/m.onnx"], "v7"),
        (["nonsense"], "nonsense"),
        (["embed", "{inv}", "--modle", "x"], "--modle"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)  # fmt: skip
def test_bad_input_gets_exit_code_2_and_a_sentence(call, world, tmp_path, argv, words):
    values = {"planet": world.earth.folder, "tmp": tmp_path, "model": world.model, "inv": world.inv}
    code, out, err = call(*(a.format(**values) for a in argv))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and words in err
    assert "Traceback" not in err


def test_a_crash_is_exit_code_1_and_says_so(call, world, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("pipeline.status.status", broken)
    code, _, err = call("status", "x")
    assert code == 1
    assert "ZeroDivisionError" in err and "fault of tessera-beam" in err


def test_an_interrupt_is_exit_code_130(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.status.status", interrupted)
    code, _, err = call("status", "x")
    assert code == 130 and "goes on from there" in err


def test_the_way_of_a_user_from_catalogue_to_report(call, world, tmp_path):
    """inventory, explain, quote, dry run, embed, status, verify, report: words on stdout, or one JSON object."""
    inv, out = tmp_path / "inv.parquet", tmp_path / "out"
    area = ["--bbox", world.bbox, "--tiles", "33TUL"]
    search = ["--catalog", world.earth.folder, "--period", "2024", "--bbox", world.bbox]
    code, said, _ = call("inventory", "build", *search, "--out", inv, "--json")
    assert code == 0
    assert set(json.loads(said)["tiles"]) == {*world.earth.tiles, "33TUK"}  # which holds the island and has no scene
    scene = next(iter(world.earth.s2_ids("33TUL")))
    code, said, _ = call("inventory", "explain", inv, "--scene", scene)
    assert code == 0 and "1000" in said
    code, said, _ = call("quote", inv, "--model", world.model, "--json", *area)
    quote = json.loads(said)
    assert code == 0 and quote["tiles"] == 1 and quote["memory_per_worker_bytes"] > 0
    code, said, _ = call("embed", inv, "--model", world.model, "--out", out, *area, "--dry-run", "--json")
    assert code == 0 and json.loads(said)["blocks"] == quote["blocks"]
    code, said, err = call("embed", inv, "--model", world.model, "--out", out, *area, "--json")
    summary = json.loads(said)
    assert code == 0 and summary["totals"]["tiles_published"] == 1
    assert "memory per worker" in err
    code, said, _ = call("status", out, "--json")
    assert {t["tile"]: t["state"] for t in json.loads(said)["tiles"]} == {"33TUL": "published"}
    code, said, _ = call("verify", out, "--recompute", "1")
    assert code == 0 and "0 failed" in said
    code, said, _ = call("report", out)
    assert code == 0 and said.strip().endswith("report.html")
    next(out.glob("2024/33TUL/*/scales.tif")).unlink()
    code, said, _ = call("verify", out)
    assert code == 4 and "scales.tif is missing" in said


def test_dpixels_of_the_island_are_the_published_layout(call, world, tmp_path):
    row, col, height, width = world.earth.island("33TUL")
    code, said, _ = call("dpixels", world.inv, "--profile", "v2", "--tile", "33TUL", "--window",
                         f"{row},{col},{height},{width}", "--out", tmp_path / "d", "--json")  # fmt: skip
    assert code == 0
    masks = np.load(tmp_path / "d" / "masks.npy")
    assert masks.shape[1:] == (height, width)
    assert np.array_equal(masks.sum(0), world.earth.observations("33TUL", 2024))
    assert json.loads(said)["s2_dates"] == len(masks)
    code, _, _ = call("embed", "--dpixels", tmp_path / "d", "--model", world.model, "--out", tmp_path / "e")
    assert code == 0
    codes = np.load(tmp_path / "e" / "d.npy")
    assert ((codes == -128).all(-1) == (masks.sum(0) == 0)).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared golden checkpoints are not beside the project")
@pytest.mark.parametrize("name", ["v2", pytest.param("v2-qknorm", marks=pytest.mark.slow)])
def test_a_published_checkpoint_gives_the_reference_s_codes(call, tmp_path, name):
    code, _, _ = call("model", "import", SHARED / f"golden/{name}.pt", "--family", "v2", "--out", tmp_path / "m.onnx")
    assert code == 0
    code, _, _ = call("model", "gate", tmp_path / "m.onnx", "--against", SHARED / f"golden/{name}.pt")
    assert code == 0
    tile = SHARED / f"golden/tile_{name}"
    code, _, _ = call("embed", "--dpixels", tile, "--model", tmp_path / "m.onnx", "--out", tmp_path / "o")
    assert code == 0
    want = np.load(tile / "expected.npz")
    codes, scales = np.load(tmp_path / f"o/tile_{name}.npy"), np.load(tmp_path / f"o/tile_{name}_scales.npy")
    there = np.load(tile / "masks.npy").any(0)
    off = np.abs(codes.astype(int) - want["codes"])[there]
    assert (off == 0).mean() >= 0.9998 and off.max() <= 1
    assert np.abs(scales - want["scales"])[there].max() <= 1e-5
    assert (codes[~there] == -128).all() and np.isnan(scales[~there]).all()


def test_inference_never_imports_torch(tmp_path):
    """In a process of its own: the test's own has torch already."""
    modules = (
        "pipeline.cli, pipeline.embed, pipeline.verify, pipeline.report, pipeline.quote, pipeline.demo.run, model.gate"
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_profile_needs_neither_beam_nor_torch():
    code = (
        "import sys, model.profile, model.modelfile; sys.exit(any(m in sys.modules for m in ('torch', 'apache_beam')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "out/2024"),
            "out/2024: Permission denied: what is finished",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error: what is finished stays; put the folder"),
        (OSError(errno.ENOSPC, "No space left on device"), "make room and run the same command again"),
        (
            StoreError("busy", "gs://b/out/x: put failed for 600 s"),
            "gs://b/out/x: put failed for 600 s; what is finished",
        ),
    ],
)
def test_what_a_disk_or_bucket_refuses_is_told_without_a_traceback(capsys, error, words):
    def program(**_):
        try:
            raise error
        except Exception as e:
            raise RuntimeError("as Beam wraps it") from e

    assert ended(program, []) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said and "fault of tessera-beam" not in said


def test_what_a_worker_of_another_process_refuses_is_said_without_its_traceback(capsys):
    def program(**_):
        raise RuntimeError(
            "Pipeline job-1 failed in state FAILED: bundle inst003 failed:Traceback (most recent call last):\n"
            '  File "transforms/machine.py", line 90, in check_machine\n'
            "model.errors.BadInput: 1 worker needs 9.0 GiB for blocks of 2048 px: use less [while running 'X']\n"
        )

    assert ended(program, []) == 2
    said = capsys.readouterr().err
    assert said == "error: 1 worker needs 9.0 GiB for blocks of 2048 px: use less\n"
