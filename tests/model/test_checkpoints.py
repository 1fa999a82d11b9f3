import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import Checkpoint, Record, args_of, load_v2, save_v2
from model.errors import BadInput
from model.families import profile_for
from model.weights import EncoderSizes, weights_sha256
from pipeline.demo.untrained import random_weights

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
PLAIN = EncoderSizes(width=16, layers=2, heads=2, feed_forward=24, hidden=20, native_dims=12, qk_norm=False)
QK = EncoderSizes(width=24, layers=1, heads=3, feed_forward=8, hidden=12, native_dims=10, qk_norm=True)


def saved(tmp_path, sizes=PLAIN, record=None):
    path = tmp_path / "c.pt"
    save_v2(path, Checkpoint(random_weights(sizes, 5), sizes, args_of(sizes), record=record))
    return path


def changed(path, change):
    payload = torch.load(path, weights_only=True)
    change(payload)
    torch.save(payload, path)
    return path


@pytest.mark.parametrize("sizes", [PLAIN, QK])
def test_what_was_saved_comes_back(tmp_path, sizes):
    loaded = load_v2(saved(tmp_path, sizes))
    weights = random_weights(sizes, 5)
    assert loaded.sizes == sizes
    assert weights_sha256(loaded.tensors) == weights_sha256(weights)
    assert all(np.array_equal(loaded.tensors[name], weights[name]) for name in weights)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")
@pytest.mark.parametrize("name", ["v2", "v2-qknorm"])
def test_saving_writes_the_published_layout(tmp_path, name):
    loaded = load_v2(GOLDEN / f"{name}.pt")
    save_v2(tmp_path / "c.pt", loaded)
    ours = torch.load(tmp_path / "c.pt", weights_only=True)
    published = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    assert ours["args"] == published["args"]
    assert ours["model"].keys() == published["model"].keys()
    assert all(torch.equal(ours["model"][k], published["model"][k]) for k in published["model"])


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_fsdp_wrapped_module._orig_mod."])
def test_wrappers_around_names_are_taken_off(tmp_path, wrapper):
    plain = load_v2(saved(tmp_path))

    def wrap(payload):
        payload["model"] = {
            wrapper + k.replace("backbone.", f"backbone.{wrapper}"): v for k, v in payload["model"].items()
        }

    wrapped = load_v2(changed(saved(tmp_path), wrap))
    assert weights_sha256(wrapped.tensors) == weights_sha256(plain.tensors)


NORM = "s1_backbone.transformer_encoder.layers.1.norm2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["model"].pop(NORM), r"without s1_backbone.transformer_encoder.1.norm2.bias"),
        (lambda p: p["model"].update({"projector.0.weight": torch.ones(2)}), r"unexpected projector.0.weight"),
        (lambda p: p["model"].update({NORM: torch.ones(9)}), r"norm2.bias is \(9,\).*makes it \(16,\)"),
        (lambda p: p["model"][NORM].fill_(float("nan")), "norm2.bias holds NaN"),
        (lambda p: p["model"].update({NORM: torch.ones(16, dtype=torch.long)}), "norm2.bias is torch.int64"),
        (lambda p: p["model"].pop("dim_reducer.4.bias"), r"not the weights of a v2 student.*dim_reducer.4.bias"),
        (lambda p: p["args"].update(dim_feedforward=32), "dim_feedforward = 32, the tensors 24"),
        (lambda p: p["args"].update(num_layers=3), "num_layers = 3, the tensors 2"),
        (lambda p: p["args"].update(latent_dim=16), "latent_dim = 16, the tensors 4"),
        (lambda p: p["args"].update(repr_dim=128), "repr_dim = 128, the tensors 12"),
        (lambda p: p["args"].update(enable_qk_norm=True), "enable_qk_norm = True, the tensors False"),
        (lambda p: p["args"].update(nhead=5), "width 16 with 5 heads"),
        (lambda p: p["args"].pop("nhead"), "nhead is None"),
        (lambda p: p.pop("args"), "holds model; a v2 student checkpoint holds args and model"),
        (lambda p: p.update(args=[1]), "args and model must be dictionaries, not list"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused_with_both_sides_named(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        load_v2(changed(saved(tmp_path), change))


def test_heads_that_contradict_the_qk_norms_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"q_norm.weight is \(8,\).*makes it \(12,\)"):
        load_v2(changed(saved(tmp_path, QK), lambda p: p["args"].update(nhead=2)))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda o, path: Path(path).write_bytes(pickle.dumps(o))])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, write):
    write({"args": {}, "model": Bomb(str(tmp_path / "ran"))}, tmp_path / "bomb.pt")
    with pytest.raises(BadInput, match="without running its code"):
        load_v2(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"a text file\n"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"x\.pt"):
        load_v2(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no checkpoint at .*gone\.pt"):
        load_v2(tmp_path / "gone.pt")


def test_our_record_travels_with_the_weights(tmp_path):
    record = Record("mine", profile_for("v2", 12, 8), {"steps": 3, "data": "synthetic"})
    assert load_v2(saved(tmp_path, record=record)).record == record


def test_a_newer_record_is_refused_by_number(tmp_path):
    record = Record("mine", profile_for("v2", 12), {})
    path = changed(saved(tmp_path, record=record), lambda p: p["tessera_beam"].update(version=7))
    with pytest.raises(BadInput, match="checkpoint version 7: this release reads 1"):
        load_v2(path)


def test_a_record_of_another_width_is_refused(tmp_path):
    record = Record("mine", profile_for("v2", 99), {})
    with pytest.raises(BadInput, match="99 dimensions, the tensors 12"):
        load_v2(saved(tmp_path, record=record))


def test_args_are_kept_as_json_values(tmp_path):
    path = changed(saved(tmp_path), lambda p: p["args"].update(betas=(0.9, 0.95)))
    assert json.loads(json.dumps(load_v2(path).args))["betas"] == "(0.9, 0.95)"
