"""Stored: an encoder's tensors as a model file stores them, in each precision, and as they are meant."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper

from model.errors import BadInput
from model.graph_ops import BIAS_MAX, WEIGHT_MAX, quantise_bias, quantise_weight
from model.variant import Variant
from model.weights import MODALITIES, EncoderSizes, Tensors, layer_name, tensor_shapes

Array = npt.NDArray[Any]

FLOAT, HALF, INTEGER = "float32", "float16", "int8"  # a weight's form; the bias of an int8 weight is int32
# The linear layers of tokens, without what their names begin with. All are float16 in an fp16 file; in an int8 file
# those of `INTEGER_LAYERS` are integers, but for the first q, k and v (`graph._backbone` says why the others are not).
EMBEDDING = ("embedding.0", "embedding.2")
INTEGER_LAYERS = ("q_proj", "k_proj", "v_proj", "linear1", "linear2")
TOKEN_LAYERS = (*INTEGER_LAYERS, "out_proj")

# What reading a damaged TensorProto lets out.
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)


def integer_layers(sizes: EncoderSizes) -> dict[str, str]:
    """The linear layers of an int8 file that are integers, each with the one whose quantised input it takes."""
    return {
        f"{layer_name(modality, i)}.{part}": f"{layer_name(modality, i)}.{'q_proj' if part.endswith('_proj') else part}"
        for modality in MODALITIES
        for i in range(sizes.layers)
        for part in INTEGER_LAYERS
        if i > 0 or not part.endswith("_proj")
    }


def forms_of(sizes: EncoderSizes, precision: str) -> dict[str, str]:
    """By tensor, the form in which a file of this precision stores it: FLOAT, HALF or INTEGER."""
    narrow: dict[str, str] = {}
    if precision == "int8":
        narrow = dict.fromkeys(integer_layers(sizes), INTEGER)
    elif precision == "fp16":
        for modality in MODALITIES:
            layers = [layer_name(modality, i) for i in range(sizes.layers)]
            narrow |= dict.fromkeys([f"{modality}_backbone.{part}" for part in EMBEDDING], HALF)
            narrow |= dict.fromkeys([f"{layer}.{part}" for layer in layers for part in TOKEN_LAYERS], HALF)
    return {name: narrow.get(name.rpartition(".")[0], FLOAT) for name in tensor_shapes(sizes)}


def initialisers(proto: ModelProto) -> dict[str, Array]:
    """Every initialiser of the outer graph by name.

    Raises:
      BadInput: one that cannot be read, or two of one name.
    """
    arrays: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            raise BadInput(f"the graph has two initialisers {tensor.name}")
        try:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
        except DAMAGED as e:
            raise BadInput(f"initialiser {tensor.name} cannot be read: {e}") from None
    return arrays


def stored_tensors(proto: ModelProto, sizes: EncoderSizes, variant: Variant) -> dict[str, npt.NDArray[np.float32]]:
    """The encoder's tensors by the names of `weights.tensor_shapes`, dequantised: what the graph computes with.

    Raises:
      BadInput: an initialiser that cannot be read; a tensor that is missing, mis-shaped, of another type than its
        precision's, not finite, or an int8 weight that does not keep to seven bits.
    """
    return dequantised(initialisers(proto), sizes, variant)


def dequantised(
    arrays: Mapping[str, Array], sizes: EncoderSizes, variant: Variant
) -> dict[str, npt.NDArray[np.float32]]:
    """`stored_tensors` of initialisers that were read already."""
    forms, tensors = forms_of(sizes, variant.precision), {}
    for name, shape in tensor_shapes(sizes).items():
        stored, form = _get(arrays, name, shape), forms[name]
        expected = _dtype(name, form)
        if stored.dtype != expected:
            raise BadInput(f"{name} is {stored.dtype}, a {variant.precision} file stores it as {expected}")
        if form == INTEGER:
            scale = _get(arrays, f"{name}_scale", shape[:1])
            if scale.dtype != np.float32:
                raise BadInput(f"{name}_scale is {scale.dtype}, it must be float32")
            if name.endswith(".weight"):
                bias = f"{name.removesuffix('.weight')}.bias"
                _check_bits(name, stored, _get(arrays, bias, shape[:1]))
                scale = scale[:, None]
            tensors[name] = stored.astype(np.float32) * scale
        else:
            tensors[name] = stored.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise BadInput(f"{name} holds NaN or infinity")
    return tensors


def _get(arrays: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    if name not in arrays:
        raise BadInput(f"{name} is not among the initialisers")
    if arrays[name].shape != shape:
        raise BadInput(f"{name} is {arrays[name].shape}, the encoder's sizes make it {shape}")
    return arrays[name]


def _dtype(name: str, form: str) -> npt.DTypeLike:
    if form == INTEGER:
        return np.dtype(np.int8 if name.endswith(".weight") else np.int32)
    return np.dtype(np.float16 if form == HALF else np.float32)


def _check_bits(name: str, stored: Array, bias: Array) -> None:
    """Every row reaches +-64 and none goes beyond, or CPUs without VNNI add up something else.

    Less only where the bias is what gives the scale (`graph_ops.quantise_weight`), and where all is zero.
    """
    reach, wide = np.abs(stored.astype(np.int16)).max(1), np.abs(bias.astype(np.int64))
    by_bias = (reach < WEIGHT_MAX) & (wide >= BIAS_MAX - 1) & (wide <= BIAS_MAX + 1)
    wrong = reach[(reach != WEIGHT_MAX) & ~by_bias & ((reach > 0) | (wide > 0))]
    if len(wrong):
        raise BadInput(
            f"{name} has a row that reaches {wrong.max()}: int8 weights must reach {WEIGHT_MAX} in every row"
        )


def input_steps(arrays: Mapping[str, Array], sizes: EncoderSizes) -> dict[str, np.float32]:
    """By integer layer, the width of a step of its quantised input: q, k and v share theirs.

    Raises:
      BadInput: one is missing, not a float32 scalar, or not a positive number.
    """
    steps = {}
    for layer, whose in integer_layers(sizes).items():
        step = _get(arrays, f"{whose}.input_scale", ())
        if step.dtype != np.float32 or not np.isfinite(step) or step <= 0:
            raise BadInput(f"{whose}.input_scale is {step} ({step.dtype}), it must be positive float32")
        steps[layer] = np.float32(step)
    return steps


def expected_stored(
    tensors: Tensors, sizes: EncoderSizes, variant: Variant, steps: Mapping[str, np.float32]
) -> dict[str, Array]:
    """What an export of a checkpoint's tensors stores of them, by initialiser.

    Args:
      steps: `input_steps` of the file, on which integer biases hang; empty for other precisions.
    """
    expected: dict[str, Array] = {}
    for name, form in forms_of(sizes, variant.precision).items():
        if form != INTEGER:
            expected[name] = tensors[name].astype(_dtype(name, form))
            continue
        layer = name.rpartition(".")[0]
        weight, scale = quantise_weight(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], steps[layer])
        if name.endswith(".weight"):
            expected[name], expected[f"{name}_scale"] = weight, scale
        else:
            product = (steps[layer] * scale).astype(np.float32)
            expected[name], expected[f"{name}_scale"] = quantise_bias(tensors[name], product), product
    return expected


def unlike(arrays: Mapping[str, Array], expected: Mapping[str, Array]) -> list[str]:
    """Names of what is not there, or not equal in every bit."""
    return [name for name, array in expected.items() if name not in arrays or not same_bits(arrays[name], array)]


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def type_name(elem_type: int) -> str:
    """An ONNX element type in words, e.g. "float16"."""
    return str(TensorProto.DataType.Name(elem_type)).lower()
