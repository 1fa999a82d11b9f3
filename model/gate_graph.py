"""Gate graph: a file's nodes and constants against those that its own records call for, and against their meaning."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model.errors import BadInput
from model.gate_report import CONTRACT, FILE, Check, faults_check
from model.graph import build, constants_of
from model.graph_ops import INPUT_MAX, INPUT_ZERO, POSITIVE_MAX
from model.modelfile import ModelFile
from model.stored import Array, forms_of, input_steps, same_bits, type_name
from model.variant import GRU, PRECISIONS, SCAN
from model.weights import CUSTOM_GRU, LAYER_NORM_EPSILON, QK_NORM_EPSILON, TORCH_GRU, EncoderSizes, Tensors

# What each kind of file may compute with. Nothing draws at random, branches or loops; no operator is of one runtime.
EVERY_FILE = frozenset(
    [
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Div",
        "Equal",
        "Gather",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "Max",
        "Mul",
        "ReduceMax",
        "Relu",
        "Reshape",
        "Round",
        "Shape",
        "Slice",
        "Softmax",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
QK_NORM = frozenset(("Pow", "ReduceMean", "Sqrt"))
INT8 = frozenset(("QuantizeLinear", "DequantizeLinear"))
OWN_AS_SCAN = frozenset(("Scan", "Expand"))
OWN_AS_GRU = frozenset(("GRU", "Neg", "Squeeze"))
TORCH_AS_GRU = frozenset(("GRU", "Split", "Squeeze"))
SCAN_BODY = frozenset(("Gemm", "Sigmoid", "Mul", "Tanh", "Sub", "Add", "Identity"))
RECURRENCES = {SCAN: "Scan", GRU: "GRU"}  # operators by `Variant.recurrence`
ATTRIBUTES = {"GRU": {"hidden_size", "linear_before_reset"}, "Scan": {"body", "num_scan_inputs"}}

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
MAY_BE_HALF = frozenset(("Gemm", "Relu", "Reshape", "Transpose", "Mul", "MatMul", "Cast"))  # in an fp16 file


def walk(graph: GraphProto, inside: str = "") -> Iterator[tuple[str, GraphProto]]:
    """The graph and every graph inside its nodes, each with where it is: "" for the outer one."""
    yield inside, graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from walk(inner, f"{inside}{node.op_type} {node.name}: ")


def operators(proto: ModelProto, model: ModelFile) -> Check:
    """Whether only the operators of its family and variant are there, in the form in which they may be."""
    sizes, recurrence = model.encoder, model.variant.recurrence
    allowed = set(EVERY_FILE)
    allowed |= QK_NORM if sizes.qk_norm else frozenset()
    allowed |= INT8 if model.variant.precision == "int8" else frozenset()
    if sizes.pooling == CUSTOM_GRU:
        allowed |= OWN_AS_SCAN if recurrence == SCAN else OWN_AS_GRU
    elif sizes.pooling == TORCH_GRU:
        allowed |= TORCH_AS_GRU
    faults, recurrent = [], []
    for where, graph in walk(proto.graph):
        for node in graph.node:
            if node.op_type not in (SCAN_BODY if where else allowed):
                faults.append(f"{where}{node.op_type}, which no such file has")
            if node.op_type in RECURRENCES.values():
                recurrent.append(node)
                faults += _recurrence_faults(node, model)
    wanted = [RECURRENCES[recurrence]] * 2 if recurrence in RECURRENCES else []
    if [n.op_type for n in recurrent] != wanted:
        found = ", ".join(n.op_type for n in recurrent) or "none"
        faults.append(f"recurrences: {found}; {sizes.pooling} as {recurrence} has {', '.join(wanted) or 'none'}")
    return faults_check(
        "operators",
        FILE,
        faults,
        ", ".join(sorted({n.op_type for _, g in walk(proto.graph) for n in g.node})),
        "standard operators of its family; no If, no Loop; a Scan or GRU only as its variant says",
        "a runtime or device would not have it, or would compute something else with it",
    )


def _recurrence_faults(node: NodeProto, model: ModelFile) -> list[str]:
    """Forms of a GRU or Scan that the family does not have, or that a promised device has not."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    faults = [f"{node.op_type} with {name}" for name in sorted(set(attributes) - ATTRIBUTES[node.op_type])]
    if node.op_type == "GRU":
        after, wanted = attributes.get("linear_before_reset", 0), int(model.encoder.pooling == TORCH_GRU)
        if after != wanted:
            faults.append(f"GRU with linear_before_reset={after}: {model.encoder.pooling} is {wanted}")
        if not after and "cuda" in model.variant.devices:
            faults.append("GRU with linear_before_reset=0 promised for cuda, which has no kernel for it")
        if len(node.input) > 4 and any(node.input[4:]):
            faults.append("GRU that is given a first state or lengths: it starts from zeros")
    return faults


def nodes(proto: ModelProto, model: ModelFile, arrays: Mapping[str, Array], weights: Tensors | BadInput) -> Check:
    """Whether the graph is, node for node, the one that this release writes for these sizes, profile and variant.

    Raises:
      BadInput: the ranges of an int8 file cannot be read.
    """
    if isinstance(weights, BadInput):
        faults = [f"no graph can be written without its weights: {weights}"]
    else:
        ranges = ranges_of(arrays, model.encoder) if model.variant.precision == "int8" else None
        days = arrays.get("day_table", np.zeros((0, 0), np.float32))
        wanted = build(weights, days, model.encoder, model.profile, model.variant, ranges)
        faults = graph_faults(proto.graph, wanted, {*forms_of(model.encoder, model.variant.precision), "day_table"})
    return faults_check(
        "nodes",
        FILE,
        faults,
        f"all {len(proto.graph.node)} nodes and {len(proto.graph.initializer)} initialisers",
        "the graph that this release writes for its sizes, profile and variant",
        "it was edited, or made by another release: export it again, or prove it with the release that made it",
    )


def ranges_of(arrays: Mapping[str, Array], sizes: EncoderSizes) -> dict[str, float]:
    """By integer layer, the largest |input| that the steps of an int8 file reach to; linear2's is never negative."""
    return {
        layer: float(step) * (POSITIVE_MAX if layer.endswith(".linear2") else INPUT_MAX)
        for layer, step in input_steps(arrays, sizes).items()
    }


def graph_faults(graph: GraphProto, wanted: GraphProto, free: set[str]) -> list[str]:
    """What differs, in words. Of the initialisers named in `free` type and shape alone are compared."""
    faults = []
    there, called_for = list(graph.node), list(wanted.node)
    if len(there) != len(called_for):
        faults.append(f"{len(there)} nodes, {len(called_for)} are called for")
    pairs = zip(there, called_for, strict=False)
    wrong = [(i, a, b) for i, (a, b) in enumerate(pairs) if a.SerializeToString(True) != b.SerializeToString(True)]
    if wrong:
        i, a, b = wrong[0]
        faults.append(f"{len(wrong)} nodes differ, first node {i}: {_node_words(a)}, called for is {_node_words(b)}")
    held, kept = ({t.name: t for t in g.initializer} for g in (graph, wanted))
    faults += [f"initialiser {name} is not called for" for name in held if name not in kept]
    faults += [f"initialiser {name} is missing" for name in kept if name not in held]
    for name in kept:
        if name in held and not _alike(held[name], kept[name], name in free):
            faults.append(f"initialiser {name} is {_tensor_words(held[name])}, must be {_tensor_words(kept[name])}")
    if _outline(graph) != _outline(wanted):
        faults.append("names, declared shapes or notes of the graph differ")
    return faults


def _alike(a: TensorProto, b: TensorProto, shape_only: bool) -> bool:
    if shape_only:
        return a.data_type == b.data_type and list(a.dims) == list(b.dims)
    return same_bits(numpy_helper.to_array(a), numpy_helper.to_array(b))


def _outline(graph: GraphProto) -> bytes:
    """All of a graph but its nodes and initialisers."""
    rest = GraphProto()
    rest.CopyFrom(graph)
    del rest.node[:], rest.initializer[:]
    return bytes(rest.SerializeToString(deterministic=True))


def _node_words(node: NodeProto) -> str:
    kept = [a for a in node.attribute if not a.HasField("g")]
    attributes = "".join(f", {a.name}={helper.get_attribute_value(a)}" for a in kept)
    return f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)}{attributes})"


def _tensor_words(tensor: TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    few = np.array2string(array.ravel()[:4], precision=9, separator=" ")
    return f"{type_name(tensor.data_type)} {array.shape} {few}{' ..' if array.size > 4 else ''}"


# The profile's fields behind each constant of the graph.
FIELDS = {
    **{name: (name,) for name in ("s2_mean", "s2_std", "std_epsilon", "scale_floor", "code_min", "code_max", "dims")},
    **{f"s1_{stat}": (f"s1_ascending_{stat}", f"s1_descending_{stat}") for stat in ("mean", "std")},
}


def constants(model: ModelFile, arrays: Mapping[str, Array]) -> Check:
    """The profile's numbers against those in the graph, and its scale's rule against the nodes, field by field."""
    faults = []
    for name, meant in constants_of(model.profile).items():
        found = arrays.get(name)
        if found is None or found.shape != meant.shape or found.dtype != meant.dtype:
            faults.append(f"{', '.join(FIELDS[name])}: no such constant {name} in the graph")
            continue
        rows = [(found, meant)] if len(FIELDS[name]) == 1 else list(zip(found, meant, strict=True))
        for field, (there, here) in zip(FIELDS[name], rows, strict=True):
            if not same_bits(there, here):
                other = there != here
                faults.append(f"{field}: {_numbers(there[other])} in the graph, {_numbers(here[other])} in the profile")
    return faults_check(
        "constants",
        CONTRACT,
        faults,
        f"all {sum(map(len, FIELDS.values()))} fields equal",
        "the graph's constants are the profile's",
        "d-pixels made by the profile would be normalised or quantised by other numbers",
    )


def _numbers(a: Array) -> str:
    return " ".join(f"{v:g}" for v in np.ravel(a))


def inner_constants(proto: ModelProto, model: ModelFile, arrays: Mapping[str, Array]) -> Check:
    """Numbers of the encoder that no checkpoint and no profile holds: epsilons, the heads' scale, fillers."""
    sizes, half = model.encoder, model.variant.precision == "fp16"
    meant: dict[str, Any] = {
        "head_scale": np.asarray(sizes.head_width**-0.5, np.float16 if half else np.float32),
        "zero": np.float32(0),
        **({"two": np.float32(2), "qk_norm_epsilon": np.float32(QK_NORM_EPSILON)} if sizes.qk_norm else {}),
        **({"one": np.float32(1)} if model.variant.recurrence == SCAN else {}),
        **({"ones": np.ones(sizes.native_dims, np.float32)} if sizes.output_norm else {}),
    }
    if model.variant.precision == "int8":
        meant |= {f"zero_{INPUT_ZERO}": np.uint8(INPUT_ZERO), "zero_0": np.uint8(0)}
    faults = [
        f"{name} is {_numbers(arrays[name]) if name in arrays else 'absent'}, must be {_numbers(array)}"
        for name, array in meant.items()
        if name not in arrays or not same_bits(arrays[name], np.asarray(array))
    ]
    epsilons = {}
    for _, graph in walk(proto.graph):
        for node in graph.node:
            if node.op_type == "LayerNormalization":
                epsilons[node.output[0]] = _attribute(node, "epsilon", 1e-5)
    faults += [
        f"LayerNormalization {name} has epsilon {epsilon:g}, must be {LAYER_NORM_EPSILON:g}"
        for name, epsilon in epsilons.items()
        if np.float32(epsilon) != np.float32(LAYER_NORM_EPSILON)
    ]
    return faults_check(
        "inner constants",
        CONTRACT,
        faults,
        f"{len(meant)} constants and {len(epsilons)} epsilons as they should be",
        f"epsilon {LAYER_NORM_EPSILON:g} in every norm, the heads' scale 1 / sqrt({sizes.head_width}), and fillers",
        "an output may hide it: an epsilon shows only where a variance is small",
    )


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def element_types(inferred: ModelProto | None, model: ModelFile) -> Check:
    """What is computed in which type: the file's own precision in the products of tokens, float32 in all else."""
    half = TensorProto.FLOAT16 if model.variant.precision == "fp16" else None
    faults, exact, narrow = [], 0, 0
    for where, graph in walk(inferred.graph) if inferred else ():
        types = _types(graph)
        for node in graph.node:
            floats = {types[n] for n in (*node.input, *node.output) if n in types} & FLOATS
            may = {TensorProto.FLOAT, *([half] if not where and node.op_type in MAY_BE_HALF else [])}
            faults += [f"{where}{node.op_type} {node.output[0]} in {type_name(t)}" for t in sorted(floats - may)]
            exact += floats == {TensorProto.FLOAT}
            narrow += half in floats
        faults += [f"{where}{name} is rounded to a narrower type and back" for name in _rounded(graph, types)]
    if inferred is None:
        faults = ["types cannot be inferred"]
    elif half and not narrow:
        faults.append("nothing is computed in float16")
    return faults_check(
        "element types",
        CONTRACT,
        faults,
        f"{exact} nodes in float32" + (f", {narrow} in float16" if half else ""),
        PRECISIONS[model.variant.precision],
        "squares overflow in float16, a recurrence carries its rounding on, codes fall over a border",
    )


def _types(graph: GraphProto) -> dict[str, int]:
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {t.name: t.data_type for t in graph.initializer}


def _rounded(graph: GraphProto, types: Mapping[str, int]) -> list[str]:
    """Results of two casts in a row, from one floating type to another and on."""
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    return [
        name
        for name, between in casts.items()
        if between in casts and {types.get(name), types.get(between), types.get(casts[between])} <= FLOATS
    ]
