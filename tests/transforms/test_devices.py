import onnxruntime
import pytest

from model.errors import BadInput
from transforms.encode import (
    CPU,
    CUDA,
    Session,
    device_kind,
    provider_for,
)


def offers(monkeypatch, *providers):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))


def test_cuda_is_refused_where_onnxruntime_has_none(monkeypatch):
    offers(monkeypatch, CPU)
    with pytest.raises(BadInput, match=r"--device cuda: this onnxruntime offers CPUExecutionProvider.*\[gpu\]"):
        provider_for("cuda")


def test_auto_takes_cuda_where_it_is_and_the_cpu_elsewhere(monkeypatch):
    offers(monkeypatch, CUDA, CPU)
    assert [provider_for(d) for d in ("auto", "cuda", "cpu")] == [CUDA, CUDA, CPU]
    offers(monkeypatch, CPU)
    assert [provider_for(d) for d in ("auto", "cpu")] == [CPU, CPU]


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(BadInput, match="--device tpu: it must be auto, cpu or cuda"):
        provider_for("tpu")


def test_two_builds_of_onnxruntime_over_each_other_are_named(monkeypatch):
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(BadInput, match="uninstall onnxruntime and onnxruntime-gpu"):
        provider_for("cpu")


@pytest.mark.filterwarnings("ignore:Specified provider")  # the library only warns, and goes on with the CPU
@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_session_never_runs_on_another_provider_than_asked(model):
    with pytest.raises(BadInput, match=r"was to run on CUDAExecutionProvider, but onnxruntime took CPU"):
        Session(str(model.path), CUDA)


def test_the_device_kind_names_provider_and_instruction_sets_and_is_stable():
    kind = device_kind(CPU)
    device_kind.cache_clear()
    assert device_kind(CPU) == kind
    assert kind.split()[0] == "cpu"
    assert len(kind.split()) >= 2


def test_a_card_is_asked_for_its_name_and_without_an_answer_it_is_unknown(monkeypatch, tmp_path):
    device_kind.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        assert device_kind(CUDA) == "cuda unknown card"
        device_kind.cache_clear()
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho NVIDIA X1\necho NVIDIA X1\n")
        tool.chmod(0o755)
        assert device_kind(CUDA) == "cuda NVIDIA X1"
    finally:
        device_kind.cache_clear()
