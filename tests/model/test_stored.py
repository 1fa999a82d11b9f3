import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_encoders import SMALL, family_of_case, tensors_of

from model.errors import BadInput
from model.export import model_of
from model.families import profile_for
from model.stored import (
    FLOAT,
    HALF,
    INTEGER,
    expected_stored,
    forms_of,
    initialisers,
    input_steps,
    stored_tensors,
    unlike,
)
from model.variant import Variant, variant_of
from model.weights import layer_name, tensor_shapes

WEIGHT = f"{layer_name('s2', 0)}.linear1.weight"


def model(case, precision="fp32", target="cpu"):
    """(model, tensors, sizes, variant) of a small file."""
    sizes = SMALL[case]
    target = "any" if precision == "fp16" else target
    variant = variant_of(sizes, precision, target)
    tensors = tensors_of(sizes)
    profile = profile_for(family_of_case(case), sizes.native_dims)
    return model_of(tensors, sizes, profile, variant), tensors, sizes, variant


def replaced(proto, name, array):
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))
    return changed


@pytest.mark.parametrize("case", SMALL)
def test_a_float32_file_stores_the_tensors_as_they_are(case):
    proto, tensors, sizes, variant = model(case)
    stored = stored_tensors(proto, sizes, variant)
    assert list(stored) == list(tensor_shapes(sizes))
    for name, tensor in tensors.items():
        assert stored[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize(("precision", "error"), [("fp16", 2.0**-11), ("int8", 0.5 / 64)])
def test_narrow_files_store_them_to_their_own_last_bit(case, precision, error):
    """Half a step of float16, relative to the number; of int8, to the largest of its row."""
    proto, tensors, sizes, variant = model(case, precision)
    stored = stored_tensors(proto, sizes, variant)
    for name, form in forms_of(sizes, precision).items():
        off = np.abs(stored[name] - tensors[name])
        if form == FLOAT:
            assert not off.any()
        elif form == HALF:
            assert (off <= np.maximum(np.abs(tensors[name]) * error, 2.0**-25)).all()  # the least that float16 has
        elif name.endswith(".weight"):
            assert (off <= np.abs(tensors[name]).max(1, keepdims=True) * error * 1.001).all()
    assert all(t.dtype == np.float32 for t in stored.values())


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_an_export_stores_is_what_is_expected_of_it_bit_for_bit(case, precision):
    proto, tensors, sizes, variant = model(case, precision)
    arrays = initialisers(proto)
    steps = input_steps(arrays, sizes) if precision == "int8" else {}
    expected = expected_stored(tensors, sizes, variant, steps)
    assert set(expected) >= set(tensor_shapes(sizes))
    assert unlike(arrays, expected) == []
    other = {name: np.nextafter(t, np.float32(9)) for name, t in tensors.items()}
    assert unlike(arrays, expected_stored(other, sizes, variant, steps))


def test_unlike_names_what_is_missing_or_differs_in_type_shape_or_bits():
    a = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}
    for other in (np.zeros(3, np.float32), np.zeros(2, np.float64), np.array([0.0, -0.0], np.float32)):
        assert unlike(a, {"x": a["x"], "y": other}) == ["y"]
    assert unlike(a, {"z": a["x"]}) == ["z"]


def test_forms_follow_the_precision_and_leave_norms_pools_and_reducer_alone():
    sizes = SMALL["v1.1-mpc"]
    for precision, narrow in (("fp32", set()), ("fp16", {HALF}), ("int8", {INTEGER})):
        forms = forms_of(sizes, precision)
        assert set(forms.values()) == {FLOAT} | narrow
        kept = [name for name in forms if "attn_pool" in name or "norm" in name or name.startswith("dim_reducer")]
        assert {forms[name] for name in kept} == {FLOAT}


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        ("fp32", lambda a: a.astype(np.float16), "is float16, a fp32 file stores it as float32"),
        ("fp16", lambda a: a.astype(np.float32), "is float32, a fp16 file stores it as float16"),
        ("int8", lambda a: a.astype(np.int16), "is int16, a int8 file stores it as int8"),
        ("int8", lambda a: np.where(a == 64, 65, a).astype(np.int8), "has a row that reaches 65"),
        ("int8", lambda a: (a // 2).astype(np.int8), "has a row that reaches 32"),
        ("fp32", lambda a: a[:-1], r"is \(27, 16\), the encoder's sizes make it \(28, 16\)"),
        ("fp32", lambda a: a * np.float32(np.nan), "holds NaN or infinity"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_name(precision, change, message):
    proto, _, sizes, variant = model("v1.1-mpc", precision)
    wrong = replaced(proto, WEIGHT, change(initialisers(proto)[WEIGHT]))
    with pytest.raises(BadInput, match=f"{WEIGHT}.*{message}"):
        stored_tensors(wrong, sizes, variant)


def test_missing_doubled_and_damaged_initialisers_are_refused_by_name():
    proto, _, sizes, variant = model("v2")
    tensor = next(t for t in proto.graph.initializer if t.name == WEIGHT)
    doubled = onnx.ModelProto.FromString(proto.SerializeToString())
    doubled.graph.initializer.append(tensor)
    with pytest.raises(BadInput, match=f"two initialisers {WEIGHT}"):
        stored_tensors(doubled, sizes, variant)
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(BadInput, match=f"initialiser {WEIGHT} cannot be read"):
        stored_tensors(proto, sizes, variant)
    proto.graph.initializer.remove(tensor)
    with pytest.raises(BadInput, match=f"{WEIGHT} is not among the initialisers"):
        stored_tensors(proto, sizes, variant)


@pytest.mark.parametrize("step", [np.float32(0), np.float32(np.nan), np.float32(-1), np.float64(1), np.zeros(2)])
def test_a_step_of_an_int8_input_must_be_a_positive_number(step):
    proto, _, sizes, _ = model("v2", "int8")
    name = f"{layer_name('s1', 1)}.linear2.input_scale"
    with pytest.raises(BadInput, match=r"linear2\.input_scale"):
        input_steps(initialisers(replaced(proto, name, step)), sizes)


def test_queries_keys_and_values_share_one_step():
    proto, _, sizes, _ = model("v2", "int8")
    steps = input_steps(initialisers(proto), sizes)
    assert len(steps) == 2 * (sizes.layers * 5 - 3)  # the first q, k and v are float32
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(1, sizes.layers)):
        assert len({float(steps[f"{layer}.{p}_proj"]) for p in "qkv"}) == 1


def test_the_precision_of_the_record_decides_what_is_expected():
    proto, _, sizes, variant = model("v2")
    with pytest.raises(BadInput, match="a int8 file stores it as int8"):
        stored_tensors(proto, sizes, dataclasses.replace(variant, precision="int8"))
    assert Variant().precision == "fp32"
