import sys

import numpy as np
import pytest
import torch
from gate_files import FORMS, SHIPPED, failed
from remembered import remembered
from small_encoders import SMALL, tensors_of

from model.checkpoints import Checkpoint, save_v2
from model.errors import BadInput
from model.gate import gate
from model.gate_report import GROUPS
from model.weights import ATTENTION


@pytest.fixture(scope="module", autouse=True)
def reference_asked_once(tmp_path_factory):
    with remembered(tmp_path_factory.mktemp("reference")):
        yield


def checkpoint_file(path, case, seed=2, heads=None, change=lambda tensors: None):
    """A checkpoint in the published layout; `heads` None: it does not say how many."""
    sizes = SMALL[case]
    tensors = tensors_of(sizes, seed)
    change(tensors)
    if sizes.pooling == ATTENTION:
        save_v2(path, Checkpoint(tensors, sizes, {}))
    else:
        config = {} if heads is None else {"s2_num_heads": heads, "s1_num_heads": heads}
        torch.save({"model_state": {n: torch.from_numpy(t) for n, t in tensors.items()}, "config": config}, path)
    return path


@pytest.mark.parametrize("form", ["own GRU", "v2 fp16", "v2 int8"])
def test_against_its_checkpoint_a_file_passes(tmp_path, sound, form):
    case = FORMS[form][0]
    report = gate(sound(form), against=checkpoint_file(tmp_path / "c.pt", case, heads=SMALL[case].heads))
    assert [check for check in report.checks if not check.ok] == []
    places = [list(GROUPS).index(check.group) for check in report.checks]
    assert places == sorted(places)
    assert {c.name for c in report.checks if c.group == "checkpoint"} == {
        *("checkpoint's sizes", "checkpoint's profile", "checkpoint's weights", "parity with PyTorch"),
        "native outputs",
    }


def test_heads_that_the_checkpoint_does_not_tell_are_taken_from_the_file_and_said_to_be(tmp_path, sound):
    path = checkpoint_file(tmp_path / "c.pt", "v1.0-early")
    report = gate(sound("early"), against=path)
    assert report.ok
    sizes = next(c for c in report.checks if c.name == "checkpoint's sizes")
    assert "heads are not in the checkpoint, the model file's were taken" in sizes.measured


@pytest.mark.parametrize("form", ["v2 fp16", "v2 int8", "own GRU"])
def test_against_another_training_s_checkpoint_it_fails(tmp_path, sound, form):
    case = FORMS[form][0]
    path = checkpoint_file(tmp_path / "c.pt", case, seed=3, heads=SMALL[case].heads)
    assert failed(sound(form), against=path) == {"checkpoint's weights", "parity with PyTorch", "native outputs"}


@pytest.mark.parametrize("form", ["v2", "v2 fp16", "v2 int8"])
def test_weights_a_thousandth_off_are_told_by_their_bits_whatever_the_precision(tmp_path, sound, form):
    def change(tensors):
        tensors["s1_backbone.embedding.2.weight"] *= np.float32(1.001)

    path = checkpoint_file(tmp_path / "c.pt", "v2", change=change)
    assert "checkpoint's weights" in failed(sound(form), against=path)


def test_values_that_are_made_and_not_stored_are_held_against_the_checkpoint_too(tmp_path, sound):
    def change(tensors):
        tensors["dim_reducer.4.weight"][-1] *= -1

    path = checkpoint_file(tmp_path / "c.pt", "v1.1-mpc", heads=4, change=change)
    assert failed(sound("own GRU"), against=path) == {"checkpoint's weights", "native outputs"}


def test_a_checkpoint_of_another_family_is_bad_input_that_tells_of_the_family_and_not_of_heads(tmp_path, sound):
    with pytest.raises(BadInput, match=r"v1\.1-mpc") as refusal:
        gate(sound("own GRU"), against=checkpoint_file(tmp_path / "c.pt", "v2"))
    assert "--heads" not in str(refusal.value)


def test_without_pytorch_against_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"--against needs torch.*tessera-beam\[train\]"):
        gate(SHIPPED, against="any.pt")
