"""Gate half: how near the numbers of an fp16 model file come to where float16 ends."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from model.gate_report import NUMBERS, Check
from model.gate_tokens import full_range
from model.limits import HALF_REACH
from model.parity import RunError, Session, inputs_of

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def half_range(proto: ModelProto) -> Check:
    """The largest number of every float16 tensor, computed in float32.

    A CPU hides an overflow: ONNX Runtime computes float16 products there in float32. A GPU does not.

    Raises:
      RunError: the widened file does not run.
    """
    names = half_tensors(proto)
    probe = widened(proto)
    for i, name in enumerate(names):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"reach_abs_{i}"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"reach_abs_{i}"], [f"reach_{i}"], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(f"reach_{i}", FLOAT, []))
    session = Session(probe.SerializeToString())
    outputs = [f"reach_{i}" for i in range(len(names))]
    reach = np.zeros(len(names))
    for case in (inputs_of(7, 24, 16), inputs_of(2, 256, 8), full_range()):
        found = np.array([float(value) for value in session.values(case, outputs)])
        reach = np.maximum(reach, np.where(np.isnan(found), np.inf, found))
    worst = int(reach.argmax())
    measured = f"{len(names)} tensors, largest number {reach[worst]:,.0f} ({names[worst]})"
    why = "a GPU would make infinity of it, and an embedding of nothing"
    return Check("float16 range", reach[worst] <= HALF_REACH, measured, f"at most {HALF_REACH:,.0f}", why, NUMBERS)


def half_tensors(proto: ModelProto) -> list[str]:
    """What the outer graph's nodes give in float16. Raises RunError where there is nothing of the kind."""
    inferred = shape_inference.infer_shapes(proto, data_prop=True)
    half = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == HALF}
    names = [name for node in proto.graph.node for name in node.output if name in half]
    if not names:
        raise RunError("nothing in it is computed in float16")
    return names


def widened(proto: ModelProto) -> ModelProto:
    """The same graph with float32 wherever it has float16."""
    wide = ModelProto()
    wide.CopyFrom(proto)
    del wide.graph.value_info[:]
    for tensor in wide.graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
                attribute.i = FLOAT
    return wide
