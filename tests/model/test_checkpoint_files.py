import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_checkpoints import (
    PLAIN,
    as_safetensors,
    load_v2,
    loaded_from,
    payload_of,
    same_weights,
    saved,
    state_of,
    written,
)
from safetensors.torch import save_file
from small_encoders import SMALL

from model.checkpoints import load_checkpoint
from model.errors import BadInput
from model.weights import weights_sha256
from pipeline.demo.untrained import random_weights


@pytest.mark.parametrize("name", ["c.safetensors", "c.pt"])
@pytest.mark.parametrize("case", SMALL)
def test_safetensors_give_what_the_same_file_of_torch_gives(tmp_path, case, name):
    torch_s = loaded_from(written(tmp_path, payload_of(case)), case)
    other = loaded_from(as_safetensors(tmp_path, case, name), case)
    same_weights(other, case)
    for field in ("sizes", "args", "family", "heads_from", "stored_dims", "prefixes", "ignored"):
        assert getattr(other, field) == getattr(torch_s, field), field


def test_safetensors_without_settings_are_bare_tensors(tmp_path):
    state = {name: t.to(torch.bfloat16) for name, t in state_of(payload_of("v2")).items()}
    save_file(state, tmp_path / "c.safetensors")
    loaded = load_checkpoint(tmp_path / "c.safetensors", "v2", 3)
    assert (loaded.sizes, loaded.heads_from, loaded.args) == (SMALL["v2"], "given", {})
    with pytest.raises(BadInput, match="it looks like v2: use `tessera-beam model import` with --family v2"):
        load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"args": "{"}, "args in its metadata is not JSON"),
        ({"args": "[" * 100_000}, "args in its metadata is not JSON"),
        ({"args": "[4]"}, "args in its metadata is list, not an object"),
        ({"config": "{}"}, r"both config \(v1.x\) and args \(v2\)"),
        ({"tessera_beam": '{"format": "x"}'}, "its tessera_beam record is not a tessera-beam/checkpoint"),
    ],
)
def test_metadata_that_cannot_be_meant_are_refused(tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        load_checkpoint(as_safetensors(tmp_path, "v2", more=more))


def test_without_safetensors_installed_it_says_how_to_get_it(tmp_path, monkeypatch):
    path = as_safetensors(tmp_path, "v2")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(BadInput, match=r"needs safetensors, .* pip install 'tessera-beam\[train\]'"):
        load_checkpoint(path)


# torch says of pickles that it does not write itself that it may not understand them.
foreign_pickles = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@foreign_pickles
@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda o, path: torch.save(o, path, _use_new_zipfile_serialization=False),
        lambda o, path: Path(path).write_bytes(pickle.dumps(o, protocol=2)),
        lambda o, path: Path(path).write_bytes(pickle.dumps(o)),
    ],
)
@pytest.mark.parametrize("place", ["model", "args", "optimizer", "alone"])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, write, place):
    bomb = Bomb(str(tmp_path / "ran"))
    payload = bomb if place == "alone" else {**payload_of("v2"), place: {"state": bomb}}
    write(payload, tmp_path / "bomb.pt")
    # Newer protocols than torch writes end at their first unknown instruction, before anything is named.
    refusal = r"without running its code: it names \S+, and nothing in a checkpoint is run|Unsupported operand 149$"
    with pytest.raises(BadInput, match=refusal):
        load_checkpoint(tmp_path / "bomb.pt", "v2")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileExistsError):  # the bomb does go off where files are trusted
        for _ in range(2):
            pickle.loads(pickle.dumps(bomb))


def test_the_refusal_of_code_names_the_class_and_gives_no_advice_to_trust_it(tmp_path):
    path = written(tmp_path, {**payload_of("v1.0-qat"), "best": np.float64(0.5)})
    with pytest.raises(BadInput, match=r"it names numpy\S*scalar.* Save it again with plain numbers") as caught:
        load_checkpoint(path, "v1.0-qat")
    assert "weights_only" not in str(caught.value)


@foreign_pickles
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 cut", b"a text file\n", b"\x80\x02}q\x00.", b"\x80\x05\x95", b"\x89PNG\r\n\x1a\n", bytes(4096)],
)
@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors"])
def test_other_files_are_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{re.escape(name)}: (it is damaged|this is neither|the file is empty)"):
        load_checkpoint(path)


@foreign_pickles
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x0f" + bytes(7) + b"{"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_worse(tmp_path, start, rest):
    path = tmp_path / "x.pt"
    path.write_bytes(start + rest)
    with pytest.raises(BadInput, match=r"x\.pt"):
        load_checkpoint(path, "v2")


FORMATS = {
    "zip": lambda folder: written(folder, payload_of("v2")),
    "before 2020": lambda folder: written(folder, payload_of("v2"), _use_new_zipfile_serialization=False),
    "safetensors": lambda folder: as_safetensors(folder, "v2"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(tmp_path, form):
    path = FORMATS[form](tmp_path)
    content = path.read_bytes()
    same_weights(load_checkpoint(path, "v2"), "v2")
    for end in {0, 1, 8, 9, *range(10, len(content), len(content) // 60), len(content) - 1, len(content) - 22}:
        path.write_bytes(content[:end])
        with pytest.raises(BadInput, match=r"c\.\w+: (it is damaged|this is neither|the file is empty)"):
            load_checkpoint(path, "v2")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_stands_where_nothing_is_read(tmp_path, where, change):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    expected = load_v2(path)
    content[int(where * len(content))] ^= change
    path.write_bytes(content)
    try:
        loaded = load_v2(path)
    except BadInput:
        return
    assert weights_sha256(loaded.tensors) == weights_sha256(expected.tensors)
    assert (loaded.args, loaded.sizes) == (expected.args, expected.sizes)


def test_a_damaged_weight_is_refused_though_it_is_a_number(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    at = content.index(random_weights(PLAIN, 5)["s2_backbone.embedding.0.weight"].tobytes())
    content[at] ^= 1  # the last bit of a mantissa
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"it is damaged .*CRC-32.*{info.filename}"):
        load_v2(path)


def test_an_archive_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, payload_of("v2"))
    finally:
        torch.serialization.set_crc32_options(True)
    same_weights(load_v2(path), "v2")


def test_a_compressed_archive_is_refused(tmp_path):
    """Mapped into memory, compressed bytes would be taken for weights."""
    path = written(tmp_path, payload_of("v2"))
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(BadInput, match=r"data\.pkl in it is compressed"):
        load_v2(tmp_path / "z.pt")


def test_a_torchscript_program_is_refused(tmp_path):
    path = written(tmp_path, payload_of("v2"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c/constants.pkl", b"")
    with pytest.raises(BadInput, match="TorchScript program: a checkpoint of weights is needed"):
        load_v2(path)


@pytest.mark.parametrize("payload", [[1], "text", 3, None, torch.ones(3)])
def test_a_file_of_something_else_is_refused(tmp_path, payload):
    with pytest.raises(BadInput, match=f"it holds {type(payload).__name__}; a checkpoint holds a dictionary"):
        load_v2(written(tmp_path, payload))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"no checkpoint at .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(BadInput, match="is a folder: give the checkpoint in it"):
        load_checkpoint(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"c\.pt cannot be read: Permission denied"):
        load_checkpoint(path)


def test_the_digest_is_the_files(tmp_path):
    import hashlib

    path = saved(tmp_path)
    loaded = load_v2(path)
    assert (loaded.file_name, loaded.file_sha256) == ("c.pt", hashlib.sha256(path.read_bytes()).hexdigest())


PEAK = """
import re, sys
from model.checkpoints import load_checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
load_checkpoint(sys.argv[1], "v2")  # what the first use of torch costs is no share of the large file's
load_checkpoint(sys.argv[2], "v2")
before = peak()
load_checkpoint(sys.argv[3], "v2")
load_checkpoint(sys.argv[4], "v2")
print((peak() - before) >> 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
def test_optimiser_and_projector_are_not_taken_into_memory(tmp_path):
    small = written(tmp_path, payload_of("v2")), as_safetensors(tmp_path, "v2")
    payload, rest = payload_of("v2"), torch.ones(32 << 20, dtype=torch.float16)  # 64 MiB
    payload["model"]["projector.0.weight"] = rest
    large = tmp_path / "large.pt", tmp_path / "large.safetensors"
    torch.save(payload | {"optimizer": {"state": {0: {"exp_avg": rest + 1}}}}, large[0])
    save_file(payload["model"], large[1], metadata={"args": json.dumps(payload["args"])})
    assert min(path.stat().st_size for path in large) > 64 << 20
    run = subprocess.run([sys.executable, "-c", PEAK, *small, *large], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 32  # MiB
