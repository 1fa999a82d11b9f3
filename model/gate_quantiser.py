"""Gate quantiser: the last nodes of a model file, cut out and given vectors that no encoder would give."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from model.gate_report import NUMBERS, Check
from model.graph import NATIVE
from model.modelfile import ModelFile
from model.parity import Outputs, RunError, Session
from model.profile import Profile
from model.quantise import NO_DATA, quantise
from model.stored import Array

HALVES = np.arange(-126.5, 127.0, dtype=np.float32)  # at a scale of 1 each lies between two codes
SIZES_OF_VECTORS = (0.0, 1e-40, 1e-13, 1e-12, 1e-9, 1e-6, 1e30, 3e38)  # 1e-40 is not a normal number in float32
WHY = f"codes would not be rint(value / scale), or would mean 'no data' ({NO_DATA})"


def quantiser(model: ModelFile, runs: Iterable[Outputs]) -> Check:
    """Codes and scales of runs against the quantiser in NumPy, made of the same runs' embeddings."""
    lowest, wrong, total = 0, 0, 0
    for run in runs:
        codes, scale = requantised(run.embedding, model.profile)
        wrong += int((codes != run.codes).sum() + (scale != run.scale).sum())
        total += codes.size + scale.size
        lowest = min(lowest, int(run.codes.min()))
    measured = f"{wrong} of {total:,} codes and scales differ, least code {lowest}"
    return Check("quantiser", not wrong and lowest > NO_DATA, measured, f"none differ, none is {NO_DATA}", WHY, NUMBERS)


def requantised(
    embedding: npt.NDArray[np.float32], profile: Profile
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """What the profile's quantiser makes of it. Raises RunError where it is not finite."""
    try:
        return quantise(embedding, profile.scale_floor, profile.scale_floor_of)
    except ValueError as e:
        raise RunError(str(e)) from None


def edges(proto: ModelProto, model: ModelFile) -> Check:
    """The nodes from the encoder's whole output on, by themselves: ties, zeros, tiny and huge vectors.

    Raises:
      RunError: these nodes cannot be run.
    """
    profile, limit = model.profile, "cut, codes and scales equal in every bit"
    tail = tail_of(proto, profile.native_dims)
    if tail is None:
        return Check("quantiser edges", False, "it reads more than the encoder's output", limit, WHY, NUMBERS)
    native = edge_vectors(profile.native_dims, profile.dims)
    values = Session(tail.SerializeToString()).values({NATIVE: native}, ("codes", "scale", "embedding"))
    cut = native[:, : profile.dims]
    meant: tuple[Array, ...] = (*requantised(cut, profile), cut)
    faults = []
    for name, got, right in zip(("codes", "scales", "embedding"), values, meant, strict=True):
        if got.dtype != right.dtype or got.shape != right.shape:
            faults.append(f"{name} {got.dtype} {got.shape}")
        elif wrong := int((got != right).reshape(len(right), -1).any(1).sum()):
            faults.append(f"{name} of {wrong} vectors differ")
    if not faults and values[0].min() <= NO_DATA:
        faults.append(f"code {values[0].min()}")
    measured = "; ".join(faults) or f"{len(native)} vectors: ties, zeros, 1e-40 to 3e38, noise"
    return Check("quantiser edges", not faults, measured, limit, WHY, NUMBERS)


def tail_of(proto: ModelProto, native_dims: int) -> ModelProto | None:
    """The nodes from `NATIVE` to the outputs as a model of their own; None where they read anything before it."""
    held = {t.name: t for t in proto.graph.initializer}
    makers = {out: i for i, node in enumerate(proto.graph.node) for out in node.output}
    taken: set[int] = set()
    read: set[str] = set()
    waiting = [v.name for v in proto.graph.output]
    while waiting:
        name = waiting.pop()
        if name in held or name in ("", NATIVE):
            read.add(name)
        elif name not in makers:
            return None  # an input of the graph
        elif makers[name] not in taken:
            taken.add(makers[name])
            waiting += proto.graph.node[makers[name]].input
    if NATIVE not in read:
        return None
    nodes: list[NodeProto] = [proto.graph.node[i] for i in sorted(taken)]
    start = helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, ["pixel", native_dims])
    kept = [held[name] for name in sorted(read & held.keys())]
    graph = helper.make_graph(nodes, "quantiser", [start], list(proto.graph.output), kept)
    return helper.make_model(graph, ir_version=proto.ir_version, opset_imports=proto.opset_import)


def edge_vectors(native_dims: int, dims: int) -> npt.NDArray[np.float32]:
    """Vectors (N, native_dims) at which quantisers part ways; of each the first `dims` values are stored."""
    random = np.random.RandomState(0)
    width = max(dims - 1, 1)
    rows = -(-len(HALVES) // width)
    ties = np.zeros((rows, native_dims), np.float32)
    ties[:, :dims] = np.resize(HALVES, (rows, dims))
    ties[:, 0] = 127  # so that the scale is 1 and every other value a tie
    noise = random.standard_normal((64, native_dims)).astype(np.float32)
    noise[:32, dims:] *= 1_000  # what is not stored must not count
    sized = np.array(SIZES_OF_VECTORS, np.float32)[:, None] * np.clip(noise[: len(SIZES_OF_VECTORS)], -1, 1)
    return np.concatenate([ties, -ties, ties / 8, noise, -np.abs(noise), sized.astype(np.float32)])
