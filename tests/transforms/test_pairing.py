"""Which model file runs on which device, and what is said where it does not."""

import dataclasses
from pathlib import Path

import pytest

from model.errors import BadInput
from model.modelfile import open_model
from model.variant import Variant
from transforms import encode
from transforms.encode import CPU, CUDA, check_pairing, provider_for, session_of

MODEL = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine whose ONNX Runtime has CUDA."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])


def model_with(**variant):
    return dataclasses.replace(open_model(MODEL), variant=Variant(**variant))


def test_a_portable_file_runs_on_both(on_gpu):
    model = model_with(recurrence="scan")
    assert provider_for("auto", model) == CUDA == provider_for("cuda", model)
    assert provider_for("cpu", model) == CPU


def test_a_gru_that_cuda_would_hand_back_to_the_cpu_is_refused_there(on_gpu):
    model = model_with(recurrence="gru", devices=("cpu",))
    with pytest.raises(
        BadInput, match=r"recurrence gru\) is for cpu alone, not cuda: give --device cpu, or make a file"
    ):
        provider_for("cuda", model)
    assert provider_for("cpu", model) == CPU
    assert provider_for("auto", model) == CPU  # nobody asked for CUDA


def test_a_file_for_cuda_alone_is_not_run_on_a_cpu():
    model = model_with(precision="fp16", devices=("cuda",))
    with pytest.raises(BadInput, match=r"\(fp16, recurrence none\) is for cuda alone, not cpu"):
        provider_for("cpu", model)
    with pytest.raises(BadInput, match="is for cuda alone"):
        provider_for("auto", model)


def test_the_worker_that_loads_a_file_refuses_too(monkeypatch):
    """The plan was made elsewhere; what counts is where the session is opened."""
    made = []
    monkeypatch.setattr(encode, "Session", lambda *arguments: made.append(arguments))
    model = model_with(recurrence="gru", devices=("cpu",))
    with pytest.raises(BadInput, match="is for cpu alone"):
        session_of(model, CUDA)
    assert not made
    session_of(model, CPU, 2)
    assert made == [(str(model.path), CPU, 2)]
    check_pairing(model, CPU)
