import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from model import parity
from model.errors import BadInput
from model.gate import gate
from model.modelfile import graph_digest, open_model
from model.weights import tensor_shapes, weights_sha256

SHIPPED = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"
GOLDEN_SHIPPED = Path(__file__).with_name("golden_shipped.npz")  # made by make_golden.py beside it
RUN = {"parity with NumPy", "golden outputs", "absent rows", "extremes", "quantiser", "two threads", "unoptimised"}


def failed(path, **options):
    return {check.name for check in gate(path, **options).checks if not check.ok}


def forged(tmp_path, change):
    """The shipped model with a fault in it, and every digest made good again."""
    model = onnx.load(SHIPPED)
    encoder = open_model(SHIPPED).encoder
    change(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    props = {p.key: p.value for p in model.metadata_props}
    props["graph_digest"] = graph_digest(model)
    props["weights_sha256"] = weights_sha256({name: tensors[name] for name in tensor_shapes(encoder)})
    helper.set_model_props(model, props)
    path = tmp_path / "forged.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def edit(name, change):
    """A mutation of one initialiser."""

    def mutate(model):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return mutate


def swap_bands(numbers):
    numbers[..., [0, 1]] = numbers[..., [1, 0]]
    return numbers


def negate_one(numbers):
    numbers.flat[3] *= -1
    return numbers


def replace_op(old, new):
    def mutate(model):
        next(n for n in model.graph.node if n.op_type == old).op_type = new

    return mutate


def drop_absent_rule(model):
    """Every row counts, day 0 or not."""
    for node in model.graph.node:
        if node.op_type == "Where":
            node.op_type = "Identity"
            del node.input[:2]


def test_the_shipped_model_passes_every_check():
    report = gate(SHIPPED)
    assert report.ok
    assert {c.name for c in report.checks} >= RUN
    assert sum(report.distance.histogram) == report.distance.codes


def test_the_full_gate_compares_more():
    assert gate(SHIPPED, full=True).distance.codes > 5 * gate(SHIPPED).distance.codes


def test_the_shipped_model_gives_its_golden_codes():
    golden = np.load(GOLDEN_SHIPPED)
    assert golden["weights_sha256"] == open_model(SHIPPED).weights_sha256
    for threads, optimised in ((1, True), (2, True), (1, False)):
        session = parity.Session(SHIPPED.read_bytes(), threads, optimised)
        run = session.run({name: golden[name] for name in ("s2", "s2_doy", "s1", "s1_orbit", "s1_doy")})
        steps = np.abs(run.codes.astype(int) - golden["codes"])
        assert (steps > 0).sum() <= parity.allowed_codes(steps.size)
        assert steps.max() <= parity.MAX_CODE_STEP
        np.testing.assert_allclose(run.scale, golden["scale"], rtol=parity.MAX_ERROR_PER_RMS)


WEIGHT = "s1_backbone.transformer_encoder.0.q_proj.weight"


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        (edit("s2_backbone.embedding.0.weight", swap_bands), "golden outputs"),
        (edit("dim_reducer.4.weight", negate_one), "golden outputs"),
        (edit(WEIGHT, negate_one), "golden outputs"),
        (edit("s2_mean", swap_bands), "constants"),
        (edit("s1_std", lambda a: a[::-1].copy()), "parity with NumPy"),
        (edit("day_table", lambda a: np.roll(a, 1, 0)), "day table"),
        (edit("day_table", lambda a: a * np.float32(1 + 4e-5)), "parity with NumPy"),
        (edit("head_scale", lambda a: a * 2), "parity with NumPy"),
        (edit("code_min", lambda a: a - 1), "constants"),
        (replace_op("Round", "Floor"), "quantiser"),
        (replace_op("Relu", "Sigmoid"), "parity with NumPy"),
        (drop_absent_rule, "absent rows"),
    ],
)
def test_a_fault_under_good_digests_is_found(tmp_path, fault, seen_by):
    assert seen_by in failed(forged(tmp_path, fault))


def test_a_file_without_good_digests_fails(tmp_path):
    model = onnx.load(SHIPPED)
    edit(WEIGHT, negate_one)(model)
    path = tmp_path / "edited.onnx"
    path.write_bytes(model.SerializeToString())
    assert {"graph digest", "weights"} <= failed(path)


def test_a_frozen_axis_fails_and_nothing_is_run(tmp_path):
    def freeze(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24

    report = gate(forged(tmp_path, freeze))
    assert {c.name for c in report.checks if not c.ok} >= {"signature"}
    assert report.distance is None


def test_an_operator_of_one_runtime_only_fails(tmp_path):
    def add_domain(model):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    assert failed(forged(tmp_path, add_domain)) == {"versions and operators"}


def test_a_graph_that_the_runtime_refuses_fails_in_words(tmp_path):
    names = [t.name for t in onnx.load(SHIPPED).graph.initializer]
    wrong = next(n for n in names if n.startswith("ints_") and n.endswith("_10"))
    path = forged(tmp_path, edit(wrong, lambda a: np.array([-1, 7], np.int64)))
    assert failed(path) & {"onnx checker", "runs"}


def test_a_golden_record_of_other_inputs_fails(tmp_path):
    def change(model):
        props = {p.key: p.value for p in model.metadata_props}
        other = {**json.loads(props["golden"]), "cases": [[1, 8, 8]]}
        helper.set_model_props(model, {**props, "golden": json.dumps(other)})

    assert failed(forged(tmp_path, change)) == {"golden outputs"}


def test_a_missing_file_and_a_foreign_one_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no model file"):
        gate(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"not onnx")
    with pytest.raises(BadInput, match="not an ONNX file"):
        gate(tmp_path / "m.onnx")


def test_against_its_checkpoint_it_passes_and_against_another_it_fails(tmp_path):
    from model.checkpoints import Checkpoint, args_of, save_v2
    from pipeline.demo.untrained import SEED, SIZES, random_weights

    for name, seed in (("own", SEED), ("other", SEED + 1)):
        save_v2(tmp_path / name, Checkpoint(random_weights(SIZES, seed), SIZES, args_of(SIZES)))
    assert gate(SHIPPED, against=tmp_path / "own").ok
    assert failed(SHIPPED, against=tmp_path / "other") == {"checkpoint's weights", "parity with PyTorch"}


def test_without_pytorch_against_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"--against needs torch.*tessera-beam\[train\]"):
        gate(SHIPPED, against="any.pt")
