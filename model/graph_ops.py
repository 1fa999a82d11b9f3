"""Graph operators: nodes and initialisers in the making, and a linear layer in each precision."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from model.weights import LAYER_NORM_EPSILON

Array = npt.NDArray[Any]

# Integer products on CPUs without VNNI add two of uint8 * int8 in 16 bits, saturating: 2 * 255 * 64 = 32,640 still
# fits, so 7-bit weights give the same sums on every machine (onnxruntime's docs, "reduce_range").
WEIGHT_MAX = 64
BIAS_MAX = 2**24  # float32, in which kernels hand the bias on, is exact up to here
LEAST_PRODUCT = 1e-30  # scale * step of a row that gives nothing; some kernels flush numbers under 1e-38 to zero
INPUT_MAX, INPUT_ZERO = 127, 128  # of a quantised input that may be negative: uint8 around 128
POSITIVE_MAX = 255  # of one that is never negative


def quantise_weight(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], step: np.float32
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Int8 weights and float32 scales, one per output row.

    A row's largest weight becomes 64, unless the row is so small beside its bias that the bias would leave
    `BIAS_MAX` steps of scale * step; then the scale is that of the bias. A row of nothing has scale 1.

    Args:
      weight: float32 (rows, columns). bias: float32 (rows,). step: of the quantised input.
    """
    of_weight = np.abs(weight).max(1).astype(np.float64) / WEIGHT_MAX
    of_bias = np.abs(bias).astype(np.float64) / (float(step) * BIAS_MAX)
    scale = np.maximum(of_weight, of_bias)
    scale = np.where(scale * float(step) < LEAST_PRODUCT, 1, scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def quantise_bias(bias: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Biases in units of the products' scale, as integer kernels add them."""
    top = np.iinfo(np.int32).max
    return np.clip(np.rint(bias.astype(np.float64) / scale), -top, top).astype(np.int32)


class Builder:
    """Nodes and initialisers in the order they are made; equal calls give equal names, so equal bytes.

    Attributes:
      precision: of the linear layers made by `dense`.
      inputs_of: by linear layer, the tensor that it was given; where ranges are measured.
    """

    def __init__(self, tensors: Mapping[str, Array], precision: str, ranges: Mapping[str, float]) -> None:
        self.nodes: list[NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}
        self.precision = precision
        self.inputs_of: dict[str, str] = {}
        self._tensors = tensors
        self._ranges = ranges
        self._made: dict[tuple[str, ...], str] = {}
        self._half: set[str] = set()  # names of float16 tensors

    def keep(self, name: str, array: Array) -> str:
        """An initialiser; the first of a name stays."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def weight(self, name: str, dtype: type = np.float32) -> str:
        """A tensor of the checkpoint under its own name."""
        return self.keep(name, self._tensors[name].astype(dtype))

    def ints(self, *values: int) -> str:
        return self.keep("ints_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def number(self, name: str, value: float, dtype: type = np.float32) -> str:
        return self.keep(name, np.asarray(value, dtype))

    def op(self, op_type: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node with one output, whose name is given back."""
        output = out or f"{op_type.lower()}_{len(self.nodes)}"
        self.add(op_type, inputs, (output,), **attributes)
        if attributes.get("to") == TensorProto.FLOAT16 or (op_type != "Cast" and inputs[0] in self._half):
            self._half.add(output)
        return output

    def add(self, op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any) -> None:
        node = helper.make_node(op_type, list(inputs), list(outputs), name=f"make_{outputs[0]}", **attributes)
        self.nodes.append(node)

    def wide(self, x: str) -> str:
        """A float32 of `x`."""
        return self._cast(x, TensorProto.FLOAT) if x in self._half else x

    def narrow(self, x: str) -> str:
        """What a product of this precision takes of `x`: a float16 within fp16."""
        return self._cast(x, TensorProto.FLOAT16) if self.precision == "fp16" and x not in self._half else x

    def _cast(self, x: str, dtype: int) -> str:
        return self._once(("Cast", x, str(dtype)), lambda: self.op("Cast", x, to=dtype))

    def linear(self, x: str, name: str) -> str:
        """A linear layer in float32, whatever the file's precision."""
        return self.op("Gemm", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1)

    def dense(self, x: str, name: str, relu: bool = False, positive: bool = False, exact: bool = False) -> str:
        """A linear layer of tokens in the file's precision; within fp16 it gives float16.

        Args:
          relu: whether a ReLU follows. positive: whether `x` is never negative. exact: not to be done in int8.
        """
        self.inputs_of[name] = x
        if self.precision == "fp16":
            weights = (self.weight(f"{name}.{part}", np.float16) for part in ("weight", "bias"))
            y = self.op("Gemm", self.narrow(x), *weights, transB=1)
        elif self.precision == "int8" and not exact:
            y = self._integer(x, name, positive)
        else:
            y = self.linear(x, name)
        return self.op("Relu", y) if relu else y

    def _integer(self, x: str, name: str, positive: bool) -> str:
        """QuantizeLinear and DequantizeLinear around a Gemm, the form that runtimes turn into one integer kernel."""
        reach = self._ranges[name]
        step = np.float32(max(reach, 1e-6) / (POSITIVE_MAX if positive else INPUT_MAX))
        weight, scale = quantise_weight(self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"], step)
        product = (step * scale).astype(np.float32)
        zeros = self.keep(f"zeros_int8_{len(scale)}", np.zeros(len(scale), np.int8))
        none = self.keep(f"zeros_int32_{len(scale)}", np.zeros(len(scale), np.int32))
        x = self._quantised(x, name, step, 0 if positive else INPUT_ZERO)
        w = self.op(
            "DequantizeLinear",
            self.keep(f"{name}.weight", weight),
            self.keep(f"{name}.weight_scale", scale),
            zeros,
            axis=0,
        )
        b = self.op(
            "DequantizeLinear",
            self.keep(f"{name}.bias", quantise_bias(self._tensors[f"{name}.bias"], product)),
            self.keep(f"{name}.bias_scale", product),
            none,
            axis=0,
        )
        return self.op("Gemm", x, w, b, transB=1)

    def _quantised(self, x: str, name: str, step: np.float32, zero: int) -> str:
        def make() -> str:
            scale = self.number(f"{name}.input_scale", float(step))
            point = self.keep(f"zero_{zero}", np.asarray(zero, np.uint8))
            return self.op("DequantizeLinear", self.op("QuantizeLinear", x, scale, point), scale, point)

        return self._once(("Quantise", x, str(step), str(zero)), make)

    def layer_norm(self, x: str, name: str) -> str:
        """With weights, in float32."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPSILON)

    def _once(self, key: tuple[str, ...], make: Callable[[], str]) -> str:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
