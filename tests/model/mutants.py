"""Mutants: ways to break a model file, each a function that stands for something that goes wrong in the world.

A mutator changes the file's `ModelProto` in place. Its docstring says what it stands for, `mutant` says which files it
is tried on, and `MUTANTS` has every pair of the two.
"""

import base64
import dataclasses
import json
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from small_encoders import SMALL, family_of_case, tensors_of

from model import modelfile, parity
from model.families import profile_for
from model.graph import NATIVE, constants_of
from model.graph_ops import quantise_bias
from model.profile import Profile
from model.weights import CUSTOM_GRU, GATES, EncoderSizes, gru_name, layer_name, tensor_shapes, weights_sha256

TRAINED, RETRAINED = 2, 3  # seeds of the file's weights, and of weights that it was not made from


@dataclasses.dataclass(frozen=True)
class Base:
    """A sound model file that mutants are made from.

    Attributes:
      case: of `small_encoders.SMALL`.
      dims: values that are stored; None for the family's own rule.
      precision, target: of the export.
    """

    case: str
    dims: int | None = None
    precision: str = "fp32"
    target: str = "any"

    @property
    def family(self) -> str:
        return family_of_case(self.case)

    @property
    def sizes(self) -> EncoderSizes:
        return SMALL[self.case]

    @property
    def profile(self) -> Profile:
        return profile_for(self.family, self.sizes.native_dims, self.dims)

    def tensors(self, seed=TRAINED):
        return tensors_of(self.sizes, seed)


BASES = {
    "v1.0-early": Base("v1.0-early"),
    "v1.0-qat": Base("v1.0-qat"),
    "v1.1-mpc": Base("v1.1-mpc", 7),
    "v1.1-mpc GRU": Base("v1.1-mpc", 7, target="cpu"),
    "v1.1-mpc fp16": Base("v1.1-mpc", 7, "fp16"),
    "v1.1-mpc int8": Base("v1.1-mpc", 7, "int8", "cpu"),
    "v1.1-aws": Base("v1.1-aws", 10),
    "v2": Base("v2", 10),
    "v2 fp16": Base("v2", 10, "fp16"),
    "v2 int8": Base("v2", None, "int8", "cpu"),
    "v2 with QK-norm": Base("v2 with QK-norm"),
}
OTHER_SOURCE = {"v1.1-mpc": "v1.1-aws", "v1.1-aws": "v1.1-mpc"}


@dataclasses.dataclass(frozen=True)
class Context:
    """What a mutator may want to know of its file: what it was made from, and the file of other weights."""

    base: Base
    other: Callable[[], ModelProto]

    @property
    def sizes(self) -> EncoderSizes:
        return self.base.sizes

    @property
    def other_profile(self) -> Profile:
        """The same family's for the other source."""
        return profile_for(OTHER_SOURCE[self.base.family], self.sizes.native_dims, self.base.profile.dims)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A mutator and the file that it is tried on.

    Attributes:
      change: the mutator.
      base: key of `BASES`.
      alike: whether the file gives what it gave before: then the digest alone has to know.
      unseen: whether nothing but the checkpoint can tell, once the digests are made good again.
    """

    change: Callable[[ModelProto, Context], None]
    base: str
    alike: bool = False
    unseen: bool = False

    @property
    def name(self) -> str:
        return self.change.__name__

    @property
    def stands_for(self) -> str:
        return (self.change.__doc__ or "").strip()


MUTANTS: list[Mutant] = []


def mutant(*bases: str, alike: bool = False, unseen: bool = False):
    """Registers a mutator for each of the files that it is tried on."""

    def register(change):
        MUTANTS.extend(Mutant(change, base, alike, unseen) for base in bases)
        return change

    return register


def mutate(proto: ModelProto, mutant: Mutant, context: Context) -> ModelProto:
    """A changed copy, its nodes in an order that can be run."""
    changed = ModelProto()
    changed.CopyFrom(proto)
    mutant.change(changed, context)
    settle(changed)
    return changed


def resigned(proto: ModelProto, before: ModelProto, sizes: EncoderSizes) -> ModelProto:
    """A copy in which every digest fits again, as a tool would leave it that edits files and keeps their books.

    Where the float32 weights changed, their sha256 and the name that is made of it are made anew; golden outputs and
    the parity report cannot be, for that takes PyTorch and the checkpoint.
    """
    signed = ModelProto()
    signed.CopyFrom(proto)
    old, new = (weights_of(p, sizes) for p in (before, proto))
    if new is not None and old != new:
        name = records(signed).get("name", "").replace(old[:8], new[:8])
        write(signed, weights_sha256=new, name=name)
    if "graph_digest" in records(signed):
        write(signed, graph_digest=modelfile.graph_digest(signed))
    return signed


def weights_of(proto, sizes):
    """sha256 of the weights as a float32 file holds them; None where they cannot be read as such."""
    held = {t.name: t for t in proto.graph.initializer}
    names = tensor_shapes(sizes)
    if any(n not in held or held[n].data_type != TensorProto.FLOAT or not held[n].HasField("raw_data") for n in names):
        return None
    return weights_sha256({n: numpy_helper.to_array(held[n]) for n in names})


# Tools of the mutators: initialisers, nodes, records.


def tensor(proto, name):
    """A copy of an initialiser."""
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)).copy()


def put(proto, name, array):
    """Gives an initialiser, there or new, these numbers; the type stays the array's."""
    made = numpy_helper.from_array(np.array(array, order="C"), name)  # contiguous, and a scalar stays one
    for held in proto.graph.initializer:
        if held.name == name:
            held.CopyFrom(made)
            return name
    proto.graph.initializer.append(made)
    return name


def edit(proto, name, change):
    """Replaces an initialiser by what `change` makes of it, in its own type."""
    array = tensor(proto, name)
    put(proto, name, np.asarray(change(array.copy())).astype(array.dtype))


def swap(proto, *names):
    """Exchanges the numbers of two initialisers."""
    a, b = (tensor(proto, n) for n in names)
    put(proto, names[0], b)
    put(proto, names[1], a)


def constant(proto, value, dtype=np.float32):
    return put(proto, f"mutant_{len(proto.graph.initializer)}", np.asarray(value, dtype))


def nodes(proto, op, reading=None):
    """Nodes of an operator, those alone that read `reading` where it is given."""
    return [n for n in proto.graph.node if n.op_type == op and (reading is None or reading in n.input)]


def maker(proto, output):
    """The node that makes a tensor."""
    return next(n for n in proto.graph.node if output in n.output)


def gemm(proto, layer):
    """The node of a linear layer."""
    return nodes(proto, "Gemm", f"{layer}.weight")[0]


def add(proto, op, *inputs, out=None, **attributes):
    """A new node at the end; `settle` puts it where it belongs. Gives its output's name."""
    out = out or f"mutant_node_{len(proto.graph.node)}"
    proto.graph.node.append(helper.make_node(op, list(inputs), [out], name=f"mutant_{out}", **attributes))
    return out


def feed(proto, node, place, op, *more, **attributes):
    """Puts an operator in front of one input of a node."""
    node.input[place] = add(proto, op, node.input[place], *more, **attributes)


def through(proto, name, op, *more, **attributes):
    """Puts an operator behind a tensor, for all that read it."""
    node = maker(proto, name)
    node.output[list(node.output).index(name)] = f"{name}_before"
    add(proto, op, f"{name}_before", *more, out=name, **attributes)


def rounded(proto, name, to):
    """Sends a tensor through a narrower type and back."""
    through(proto, name, "Cast", to=TensorProto.FLOAT)
    through(proto, f"{name}_before", "Cast", to=to)


def reroute(proto, old, new):
    """Whatever read `old` reads `new`."""
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def attribute(node, name):
    return next(a for a in node.attribute if a.name == name)


def attributed(node, **values):
    """Sets attributes, there or new."""
    kept = [a for a in node.attribute if a.name not in values]
    made = [helper.make_attribute(name, value) for name, value in values.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])


def rewrite(node, op, *inputs, **attributes):
    """Makes another operator of a node that keeps its outputs."""
    fresh = helper.make_node(op, list(inputs), list(node.output), name=node.name, **attributes)
    node.CopyFrom(fresh)


def softmaxes(proto, sizes):
    """(those of attention, those of the two pools)."""
    found = nodes(proto, "Softmax")
    pools = found[sizes.layers :: sizes.layers + 1]
    return [n for n in found if n not in pools], pools


def steps(proto):
    """(sensor, body) of each Scan."""
    return [(n.output[1][:2], attribute(n, "body").g) for n in nodes(proto, "Scan")]


def pooled(proto, sizes):
    """The product of each sensor's pool: weights of the tokens, tokens."""
    return [nodes(proto, "MatMul", n.output[0])[0] for n in softmaxes(proto, sizes)[1]]


def states(proto, sizes):
    """Each sensor's states (T, N, d), as the query sees them."""
    ends = [gemm(proto, f"{m}_backbone.attn_pool.query").input[0] for m in ("s2", "s1")]
    return [maker(proto, end).input[0] for end in ends]


def records(proto):
    return {p.key: p.value for p in proto.metadata_props}


def write(proto, **values):
    """Sets records; None removes one."""
    changed = {**records(proto), **values}
    helper.set_model_props(proto, {k: v for k, v in changed.items() if v is not None})


def amend(proto, record, **fields):
    """Sets fields of a JSON record."""
    write(proto, **{record: json.dumps({**json.loads(records(proto)[record]), **fields}, sort_keys=True)})


def dims_of(value):
    return value.type.tensor_type.shape.dim


def settle(proto):
    """Puts nodes behind those that they read, where a mutator left them elsewhere."""
    graph = proto.graph
    known = {"", *(t.name for t in graph.initializer), *(v.name for v in graph.input)}
    order, waiting = [], list(graph.node)
    while waiting:
        ready = next((n for n in waiting if reads(n) <= known), None)
        if ready is None:  # something reads what nothing makes: left for the gate to find
            order += waiting
            break
        waiting.remove(ready)
        order.append(ready)
        known |= set(ready.output)
    if [n.output for n in order] != [n.output for n in graph.node]:
        copies = [NodeProto.FromString(n.SerializeToString()) for n in order]
        del graph.node[:]
        graph.node.extend(copies)


def reads(node):
    """What a node reads from its own graph, through its branches too."""
    names = set(node.input)
    for graph in (a.g for a in node.attribute if a.HasField("g")):
        inside = {"", *(t.name for t in graph.initializer), *(v.name for v in graph.input)}
        inside |= {out for n in graph.node for out in n.output}
        names |= {name for n in graph.node for name in n.input if name not in inside and not name.endswith(".weight")}
    return names


# Weights that are not those of the checkpoint.


def largest_negated(numbers):
    numbers.flat[np.abs(numbers.astype(np.int64) if numbers.dtype == np.int8 else numbers).argmax()] *= -1
    return numbers


@mutant("v1.0-early", "v1.0-qat", "v1.1-mpc", "v1.1-aws", "v2", "v2 with QK-norm", "v2 fp16", "v2 int8")
def sign_of_one_weight(proto, context):
    """A bit flipped on a disk or in memory: one weight has the other sign."""
    edit(proto, f"{layer_name('s2', 0)}.linear1.weight", largest_negated)


@mutant("v1.0-early", "v1.1-mpc", "v1.1-mpc GRU", "v2")
def one_weight_one_per_cent_off(proto, context):
    """A conversion that rounds where it should copy: one weight is 1 % off."""

    def change(numbers):
        numbers.flat[np.abs(numbers).argmax()] *= 1.01
        return numbers

    edit(proto, "s1_backbone.embedding.2.weight", change)


@mutant("v1.0-qat", "v1.1-aws", "v2", "v2 fp16", "v2 int8")
def two_bands_swapped_in_the_first_layer(proto, context):
    """Weights trained on bands in the order of wavelength, or an importer that sorts them: red and blue exchanged."""
    edit(proto, "s2_backbone.embedding.0.weight", lambda a: a[:, [1, 0, *range(2, 10)]])


@mutant("v1.1-aws", "v2")
def vv_and_vh_swapped(proto, context):
    """Radar channels in the order of another stack: VH first."""
    edit(proto, "s1_backbone.embedding.0.weight", lambda a: a[:, ::-1])


@mutant("v1.0-qat", "v2")
def weights_cut_to_bfloat16(proto, context):
    """A checkpoint saved in bfloat16 on the way, widened again and exported as float32."""
    for name in tensor_shapes(context.sizes):
        edit(proto, name, lambda a: (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


@mutant("v1.1-mpc")
def weights_rounded_to_float16(proto, context):
    """A half-precision copy of the weights, shipped as the float32 one."""
    for name in tensor_shapes(context.sizes):
        edit(proto, name, lambda a: a.astype(np.float16))


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def weights_of_another_training(proto, context):
    """The retrained checkpoint under the old records: sources replace weights under an unchanged name."""
    for held in context.other().graph.initializer:
        put(proto, held.name, numpy_helper.to_array(held))


@mutant("v1.1-mpc", "v1.1-mpc GRU")
def recurrence_of_another_training(proto, context):
    """A loader that tolerates missing keys: the GRU keeps the random numbers that it was born with."""
    other = context.other()
    for modality in ("s2", "s1"):
        for name in tensor_shapes(context.sizes):
            if name.startswith(gru_name(modality)):
                put(proto, name, tensor(other, name))


@mutant("v1.0-early", "v2")
def queries_and_keys_exchanged(proto, context):
    """A packed projection taken apart in the order k, q, v."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        for part in ("weight", "bias"):
            swap(proto, f"{layer}.q_proj.{part}", f"{layer}.k_proj.{part}")


@mutant("v1.1-mpc", "v2 fp16")
def keys_and_values_exchanged(proto, context):
    """A packed projection taken apart in the order q, v, k."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        for part in ("weight", "bias"):
            swap(proto, f"{layer}.k_proj.{part}", f"{layer}.v_proj.{part}")


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def a_head_dropped(proto, context):
    """A tool that prunes heads, or one that writes one head too few."""

    def change(numbers):
        numbers[:, : context.sizes.head_width] = 0
        return numbers

    edit(proto, f"{layer_name('s2', 1)}.out_proj.weight", change)


@mutant("v2", "v1.0-qat")
def layers_in_reverse_order(proto, context):
    """Layers sorted by name as text, or stacked from the top."""
    first, second = (layer_name("s1", i) for i in (0, 1))
    for name in tensor_shapes(context.sizes):
        if name.startswith(f"{first}."):
            swap(proto, name, second + name.removeprefix(first))


@mutant("v2")
def norms_of_a_layer_exchanged(proto, context):
    """A checkpoint's keys mapped by their order: a layer's two norms have each other's weights."""
    layer = layer_name("s2", 0)
    for part in ("weight", "bias"):
        swap(proto, f"{layer}.norm1.{part}", f"{layer}.norm2.{part}")


@mutant("v2 with QK-norm", unseen=True)
def norms_of_queries_and_keys_exchanged(proto, context):
    """The two QK-norms crossed in the import: a product of both, so no output shows it."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        swap(proto, f"{layer}.q_norm.weight", f"{layer}.k_norm.weight")


@mutant("v2", "v1.1-mpc")
def queries_of_the_pools_crossed(proto, context):
    """The pools of the two sensors exchanged: they have the same shapes."""
    for part in ("weight", "bias"):
        swap(proto, *(f"{m}_backbone.attn_pool.query.{part}" for m in ("s2", "s1")))


@mutant("v1.0-qat", "v1.1-mpc GRU")
def reset_and_update_gates_exchanged(proto, context):
    """Gates stacked in the order of another library: r and z have each other's weights."""
    for modality in ("s2", "s1"):
        for part in ("b_{}", "W_i{}.weight", "W_h{}.weight"):
            swap(proto, *(f"{gru_name(modality)}.{part.format(gate)}" for gate in ("r", "z")))


@mutant("v1.1-mpc", "v1.1-aws", unseen=True)
def a_row_beyond_the_stored_values(proto, context):
    """Damage among the 64 values that v1.1 makes and does not store: no code shows it, a later prefix would."""
    edit(proto, "dim_reducer.4.weight", lambda a: np.concatenate([a[:-1], -a[-1:]]))


# Statistics: standardisation that is not the profile's.


def swapped(a):
    return a[..., [0, 1, 3, 2, *range(4, a.shape[-1])]]


@mutant("v1.0-early", "v2", "v2 fp16", "v2 int8")
def statistics_of_two_bands_swapped(proto, context):
    """A table of constants typed in the order of the bands' names."""
    for name in ("s2_mean", "s2_std"):
        edit(proto, name, swapped)


@mutant("v1.0-early", "v2")
def statistics_of_two_bands_swapped_in_the_profile_too(proto, context):
    """The same slip in the table that both the graph and the profile are made from."""
    for name in ("s2_mean", "s2_std"):
        edit(proto, name, swapped)
        amend(proto, "profile", **{name: swapped(np.asarray(getattr(context.base.profile, name))).tolist()})


def constants_crossed(proto, profile):
    for name, array in constants_of(profile).items():
        put(proto, name, array)


@mutant("v1.1-mpc", "v1.1-aws", "v1.1-mpc GRU", "v1.1-mpc fp16", "v1.1-mpc int8")
def norm_sets_crossed(proto, context):
    """The other source's statistics beside these weights: no error, plausible numbers."""
    constants_crossed(proto, context.other_profile)


@mutant("v1.1-mpc", "v1.1-aws")
def norm_sets_crossed_under_the_own_name(proto, context):
    """The other source's statistics in the graph and in a profile that still names this one."""
    constants_crossed(proto, context.other_profile)
    there = dataclasses.asdict(context.other_profile)
    amend(proto, "profile", **{k: v for k, v in there.items() if "mean" in k or "std" in k})


@mutant("v1.1-mpc", "v1.1-aws")
def imported_under_the_other_source(proto, context):
    """A checkpoint of one source imported as the other's: graph, profile and names agree, the weights do not."""
    constants_crossed(proto, context.other_profile)
    profile = context.other_profile
    origin = {**json.loads(records(proto)["origin"]), "family": profile.family}
    name = records(proto)["name"].replace(context.base.family, profile.family)
    write(proto, profile=profile.to_json(), origin=json.dumps(origin, sort_keys=True), name=name)


@mutant("v1.1-mpc", "v1.1-aws", "v2", "v2 fp16", "v2 int8")
def orbits_crossed(proto, context):
    """Ascending passes standardised by the statistics of descending ones."""
    for name in ("s1_mean", "s1_std"):
        edit(proto, name, lambda a: a[::-1])


@mutant("v2")
def orbits_crossed_in_the_profile_too(proto, context):
    """The two orbits crossed in the table that both the graph and the profile are made from."""
    orbits_crossed(proto, context)
    there = context.base.profile
    crossed = {f"s1_{a}_{s}": getattr(there, f"s1_{b}_{s}") for a, b in (ORBITS, ORBITS[::-1]) for s in ("mean", "std")}
    amend(proto, "profile", **crossed)


ORBITS = ("ascending", "descending")


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def orbit_ignored(proto, context):
    """A caller's habit from v1.0 baked in: every pass is taken for an ascending one."""
    index = nodes(proto, "Gather", "s1_mean")[0].input[1]
    through(proto, index, "Mul", constant(proto, 0, np.int64))


@mutant("v2", "v1.1-aws")
def one_set_for_both_orbits(proto, context):
    """The teacher's pooled radar statistics in a student."""
    for name in ("s1_mean", "s1_std"):
        edit(proto, name, lambda a: np.broadcast_to(a.mean(0), a.shape))


@mutant("v2")
def variances_for_deviations(proto, context):
    """A library that keeps variances where this one wants deviations."""
    edit(proto, "s2_std", np.square)


@mutant("v1.0-qat", "v2")
def means_rounded_to_integers(proto, context):
    """Constants copied from a page that prints them short."""
    edit(proto, "s2_mean", np.rint)


@mutant("v2", "v1.0-early")
def another_epsilon_of_the_deviation(proto, context):
    """A division guarded with 1e-3 where the reference has 1e-9: next to nothing at deviations of 1,000."""
    put(proto, "std_epsilon", np.float32(1e-3))


# Raw numbers on their way to tokens.


def raw(proto, modality):
    """The cast of a sensor's numbers to float32."""
    return nodes(proto, "Cast", nodes(proto, "Reshape", modality)[0].output[0])[0]


@mutant("v1.1-mpc", "v2")
def numbers_read_as_int16(proto, context):
    """A stack that keeps reflectance as int16: bright clouds turn negative."""
    feed(proto, raw(proto, "s2"), 0, "Cast", to=TensorProto.INT16)


@mutant("v1.0-qat", "v2", "v2 int8")
def reflectance_clipped_at_one(proto, context):
    """A guard against reflectance above 1: snow and clouds lose what lies beyond 10,000."""
    through(proto, raw(proto, "s2").output[0], "Clip", "", constant(proto, 10_000))


@mutant("v1.1-mpc")
def radar_clipped_at_ten_thousand(proto, context):
    """The bound of one sensor's numbers laid on the other's: bright towns look alike."""
    through(proto, raw(proto, "s1").output[0], "Clip", "", constant(proto, 10_000))


@mutant("v2", "v2 fp16", "v1.1-mpc fp16")
def numbers_in_float16(proto, context):
    """A converter that makes raw numbers half precision too: steps of 4 above 4,096, infinity above 65,504."""
    rounded(proto, raw(proto, "s2").output[0], TensorProto.FLOAT16)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def absent_rows_used(proto, context):
    """The rule for day 0 lost: whatever numbers fill an absent row reach the encoder."""
    for node in nodes(proto, "Where"):
        rewrite(node, "Identity", node.input[2])


@mutant("v1.1-mpc", "v2")
def absent_rows_are_raw_zeros(proto, context):
    """Absent rows filled with zeros before standardisation, where the reference has zeros after it."""
    for node in nodes(proto, "Where"):
        absent, zero, x = node.input
        sub = maker(proto, maker(proto, x).input[0])
        sub.input[0] = add(proto, "Where", absent, zero, sub.input[0])
        rewrite(node, "Identity", x)


@mutant("v1.1-mpc", "v2", "v1.0-early")
def absent_rows_masked_in_the_pools(proto, context):
    """Somebody mends what looks like a bug: padding gets no share in the pool. The weights were not trained so."""
    for node, modality in zip(softmaxes(proto, context.sizes)[1], ("s2", "s1"), strict=True):
        hide(proto, node, f"{modality}_doy", 1)


@mutant("v2", "v2 fp16")
def absent_rows_masked_in_attention(proto, context):
    """Padding hidden from attention, as every text book has it and no TESSERA encoder does."""
    for node in softmaxes(proto, context.sizes)[0]:
        modality = "s2" if "s2" in "".join(records_of_layer(proto, node)) else "s1"
        hide(proto, node, f"{modality}_doy", 2)


def records_of_layer(proto, softmax):
    """Names of the weights of the query that a softmax of attention goes back to."""
    name = softmax.input[0]
    while True:
        node = maker(proto, name)
        if node.op_type == "Gemm":
            return [n for n in node.input if n.endswith(".weight")]
        name = node.input[0]


def hide(proto, softmax, doy, ranks):
    """Takes a great number off the scores (N, .., T) of day 0, unless all of a pixel's rows are absent."""
    absent = add(proto, "Equal", doy, constant(proto, 0, np.int16))
    known = add(proto, "Not", absent)
    some = add(proto, "ReduceMax", add(proto, "Cast", known, to=TensorProto.FLOAT), constant(proto, [1], np.int64))
    cost = add(proto, "Mul", add(proto, "Cast", absent, to=TensorProto.FLOAT), constant(proto, -1e9))
    cost = add(proto, "Mul", cost, some)
    cost = add(proto, "Unsqueeze", cost, constant(proto, list(range(1, ranks + 1)), np.int64))
    feed(proto, softmax, 0, "Add", cost)


# Days.


def table(width, base=10_000.0, days=None):
    """(sines, cosines) of each day, float32 (367, width / 2)."""
    angle = (np.arange(367) if days is None else days)[:, None] * base ** (-np.arange(0, width, 2) / width)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def woven(a, b):
    return np.stack([a, b], -1).reshape(len(a), -1)


def day_indices(proto):
    return [n.input[1] for n in nodes(proto, "Gather", "day_table")]


@mutant("v1.0-early", "v2", "v2 int8")
def day_table_one_day_late(proto, context):
    """A table that begins at 1 for days that begin at 1."""
    edit(proto, "day_table", lambda a: np.roll(a, 1, 0))


@mutant("v1.1-mpc", "v2", "v2 fp16")
def days_counted_from_one_twice(proto, context):
    """Days made of dates by one tool, counted from one again in the graph."""
    for index in day_indices(proto):
        late = add(proto, "Add", index, constant(proto, 1, np.int64))
        late = add(proto, "Min", late, constant(proto, 366, np.int64))
        for node in nodes(proto, "Gather", index):
            node.input[1] = late


@mutant("v2", "v1.1-mpc")
def day_table_of_another_base(proto, context):
    """Sinusoids of base 1,000, as some time-series encoders have them."""
    put(proto, "day_table", woven(*table(context.sizes.width, 1_000.0)))


@mutant("v2", "v1.0-qat")
def sines_and_cosines_swapped(proto, context):
    """Cosines on the even places."""
    put(proto, "day_table", woven(*reversed(table(context.sizes.width))))


@mutant("v2")
def sines_before_cosines(proto, context):
    """All sines, then all cosines, as another well-known library lays them out."""
    put(proto, "day_table", np.concatenate(table(context.sizes.width), 1))


@mutant("v1.1-mpc")
def days_as_parts_of_a_year(proto, context):
    """The day as an angle of the year, where the weights know the raw day."""
    put(proto, "day_table", woven(*table(context.sizes.width, days=np.arange(367) * 2 * np.pi / 365.25)))


@mutant("v1.0-qat", "v2")
def day_table_in_float16(proto, context):
    """A table kept in half precision to save a few kilobytes."""
    edit(proto, "day_table", lambda a: a.astype(np.float16))


@mutant("v1.0-qat", "v2", "v2 int8")
def no_leap_years(proto, context):
    """The last day of a leap year taken for the day before."""
    for index in day_indices(proto):
        through(proto, index, "Min", constant(proto, 365, np.int64))


@mutant("v1.1-aws", "v2")
def days_kept_in_a_byte(proto, context):
    """Days as uint8: autumn becomes January."""
    for index in day_indices(proto):
        node = maker(proto, index)
        feed(proto, node, 0, "Cast", to=TensorProto.UINT8)


@mutant("v2", "v1.1-mpc")
def one_calendar_for_all_pixels(proto, context):
    """The first pixel's days used for its whole batch, as where a stack has one list of dates."""
    first = [constant(proto, [v], np.int64) for v in (0, 1, 0)]
    days = add(proto, "Expand", add(proto, "Slice", "s2_doy", *first), add(proto, "Shape", "s2_doy"))
    nodes(proto, "Reshape", "s2_doy")[0].input[0] = days


@mutant("v2")
def no_day_zero(proto, context):
    """Absent rows without a day's encoding: the reference adds that of day 0, whose cosines are ones."""
    edit(proto, "day_table", lambda a: np.concatenate([np.zeros_like(a[:1]), a[1:]]))


# The encoder.


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def gelu_for_relu(proto, context):
    """The activation that newer encoders have."""
    for modality in ("s2", "s1"):
        behind = gemm_output(proto, f"{layer_name(modality, 0)}.linear1")
        rewrite(nodes(proto, "Relu", behind)[0], "Gelu", behind)


def gemm_output(proto, layer):
    """What a linear layer of tokens gives, in any precision."""
    direct = [n for n in nodes(proto, "Gemm") if n.input[1] == f"{layer}.weight"]
    packed = [n.output[0] for n in nodes(proto, "DequantizeLinear", f"{layer}.weight")]
    return (direct or [n for n in nodes(proto, "Gemm") if n.input[1] in packed])[0].output[0]


@mutant("v2", "v1.1-mpc")
def the_reducer_s_relu_dropped(proto, context):
    """A reducer rebuilt from its keys, which an activation has none of."""
    relu = maker(proto, gemm(proto, "dim_reducer.4").input[0])
    rewrite(relu, "Identity", relu.input[0])


@mutant("v2", "v1.1-aws")
def the_reducer_s_norm_dropped(proto, context):
    """A reducer rebuilt as two linear layers and a ReLU."""
    norm = nodes(proto, "LayerNormalization", "dim_reducer.1.weight")[0]
    rewrite(norm, "Identity", norm.input[0])


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 int8")
def one_layer_skipped(proto, context):
    """A count of layers that is one too small."""
    last = layer_name("s1", context.sizes.layers - 1)
    residual = maker(proto, nodes(proto, "LayerNormalization", f"{last}.norm1.weight")[0].input[0])
    reroute(proto, nodes(proto, "LayerNormalization", f"{last}.norm2.weight")[0].output[0], residual.input[0])


@mutant("v2", "v1.0-qat", "v2 fp16")
def a_residual_dropped(proto, context):
    """A layer written without its shortcut."""
    residual = maker(proto, nodes(proto, "LayerNormalization", f"{layer_name('s2', 1)}.norm1.weight")[0].input[0])
    rewrite(residual, "Identity", residual.input[1])


def norm_epsilon(proto, value):
    for node in nodes(proto, "LayerNormalization"):
        attributed(node, epsilon=value)


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def layer_norm_epsilon_of_1e_3(proto, context):
    """The epsilon of another framework's LayerNorm."""
    norm_epsilon(proto, 1e-3)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def layer_norm_epsilon_of_1e_6(proto, context):
    """The epsilon of vision transformers: invisible in outputs unless a layer's variance is small."""
    norm_epsilon(proto, 1e-6)


@mutant("v2 with QK-norm")
def qk_norm_epsilon_of_1e_5(proto, context):
    """LayerNorm's epsilon in the RMSNorm of queries and keys."""
    put(proto, "qk_norm_epsilon", np.float32(1e-5))


@mutant("v2 with QK-norm")
def qk_norm_epsilon_of_1e_6(proto, context):
    """Another library's default for RMSNorm."""
    put(proto, "qk_norm_epsilon", np.float32(1e-6))


@mutant("v2 with QK-norm")
def qk_norm_dropped(proto, context):
    """The plain student's layer for a checkpoint with QK-norm."""
    for node in nodes(proto, "Div"):
        if maker_is(proto, node.input[1], "Sqrt"):
            rewrite(node, "Identity", node.input[0])


def maker_is(proto, name, op):
    return any(name in n.output and n.op_type == op for n in proto.graph.node)


@mutant("v2 with QK-norm")
def qk_norm_of_length_one(proto, context):
    """Queries and keys scaled to length 1, not to a mean square of 1."""
    for node in nodes(proto, "ReduceMean"):
        node.op_type = "ReduceSum"


@mutant("v1.0-early", "v2", "v2 fp16", "v2 int8")
def scores_scaled_by_the_whole_width(proto, context):
    """Attention divided by the root of the width, not of a head's."""
    edit(proto, "head_scale", lambda a: np.full_like(a, context.sizes.width**-0.5))


@mutant("v1.1-mpc", "v2")
def scores_scaled_twice(proto, context):
    """A fused attention operator that scales what was scaled already."""
    edit(proto, "head_scale", np.square)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def softmax_over_the_queries(proto, context):
    """Attention normalised along the wrong axis."""
    for node in softmaxes(proto, context.sizes)[0]:
        attributed(node, axis=-2)


@mutant("v2", "v1.1-mpc")
def pool_softmax_over_the_pixels(proto, context):
    """The pool normalised over the batch instead of over time."""
    for node in softmaxes(proto, context.sizes)[1]:
        attributed(node, axis=0)


def heads_apart(proto, sizes):
    """The two Concat nodes that say N, T, heads, width of a head."""
    return nodes(proto, "Concat", f"ints_{sizes.heads}_{sizes.head_width}")


@mutant("v2", "v1.0-early")
def heads_interleaved(proto, context):
    """A layout in which every fourth value is of one head, as a view taken the other way round gives."""
    for node in heads_apart(proto, context.sizes):
        node.input[1] = constant(proto, [context.sizes.head_width, context.sizes.heads], np.int64)
    turned = {(0, 2, 3, 1): [0, 3, 2, 1]}
    for node in nodes(proto, "Transpose"):
        perm = tuple(attribute(node, "perm").ints)
        if perm in turned or perm == (0, 2, 1, 3):
            behind = maker_is(proto, node.input[0], "MatMul")
            attributed(node, perm=turned.get(perm, [0, 2, 3, 1] if behind else [0, 3, 1, 2]))


@mutant("v2", "v1.1-mpc", "v2 int8")
def pixels_mixed_in_attention(proto, context):
    """Time before batch where the layer wants batch before time: rows of several pixels attend to each other."""
    for node in heads_apart(proto, context.sizes):
        feed(proto, node, 0, "Gather", constant(proto, [1, 0], np.int64))


@mutant("v1.0-early", "v1.1-mpc", "v2")
def a_mean_in_place_of_the_pool(proto, context):
    """The reference's own fallback: where its pool raises, it prints a line and takes the mean."""
    for node in softmaxes(proto, context.sizes)[1]:
        feed(proto, node, 0, "Mul", constant(proto, 0))


@mutant("v2", "v1.1-aws", "v2 int8")
def sensors_in_the_other_order(proto, context):
    """Radar before optical in front of the reducer."""
    both = maker(proto, gemm(proto, "dim_reducer.0").input[0])
    rewrite(both, "Concat", *reversed(both.input), axis=-1)


@mutant("v2", "v1.0-qat")
def radar_left_out(proto, context):
    """An optical-only run that nobody declared: the radar vector is zero."""
    both = maker(proto, gemm(proto, "dim_reducer.0").input[0])
    feed(proto, both, 1, "Mul", constant(proto, 0))


@mutant("v1.1-mpc GRU", "v2")
def only_64_observations(proto, context):
    """A limit from the days of 64 observations: later ones are cut off."""
    for name in ("s2", "s2_doy"):
        span = [constant(proto, [v], np.int64) for v in (0, 64, 1)]
        cut = add(proto, "Slice", name, *span)
        for node in list(proto.graph.node)[:-1]:
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = cut


# Recurrence.


@mutant("v1.1-mpc GRU")
def reset_after_the_product_in_the_operator(proto, context):
    """`linear_before_reset=1`, the only form that a GPU has: fast and wrong."""
    for node in nodes(proto, "GRU"):
        attributed(node, linear_before_reset=1)


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16")
def reset_after_the_product(proto, context):
    """nn.GRU in place of TESSERA's own cell, as one global archive was computed."""
    for sensor, body in steps(proto):
        reset, product = (next(n for n in body.node if n.output[0] == f"{sensor}_step_{p}") for p in ("reset", "sum_n"))
        _, weight, of_h = product.input
        product.CopyFrom(helper.make_node("Add", [reset.output[0], of_h], list(product.output), name=product.name))
        share = helper.make_node("Gemm", [f"{sensor}_step_h", weight], [f"{sensor}_share"], name="share", transB=1)
        reset.input[1] = share.output[0]
        body.node.insert(0, share)


@mutant("v1.0-early")
def reset_before_the_product(proto, context):
    """TESSERA's own cell in place of nn.GRU: early v1.0 has nn.GRU."""
    for node in nodes(proto, "GRU"):
        attributed(node, linear_before_reset=0)


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-aws")
def update_gate_inverted(proto, context):
    """z keeps the old state, as in nn.GRU, where TESSERA's z takes the new one."""
    for sensor, body in steps(proto):
        kept, new = (next(n for n in body.node if n.output[0] == f"{sensor}_step_{p}") for p in ("kept", "new"))
        kept.input[0], new.input[0] = new.input[0], kept.input[0]


@mutant("v1.1-mpc GRU", "v1.1-mpc int8")
def update_gate_not_negated(proto, context):
    """ONNX's z keeps the old state: the weights of TESSERA's z must be negated, and were not."""
    for node in nodes(proto, "Neg"):
        rewrite(node, "Identity", node.input[0])


@mutant("v1.0-early")
def gates_in_torch_s_order(proto, context):
    """Gates stacked r, z, n as torch has them, where ONNX reads z, r, n."""
    for node in nodes(proto, "Concat"):
        if all(name.endswith(("_r", "_z", "_n")) for name in node.input):
            node.input[0], node.input[1] = node.input[1], node.input[0]


@mutant("v1.0-early", "v1.1-mpc GRU", "v1.1-mpc int8")
def recurrence_backwards_in_the_operator(proto, context):
    """The series read from its end."""
    for node in nodes(proto, "GRU"):
        attributed(node, direction="reverse")


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16")
def recurrence_backwards(proto, context):
    """The series read from its end, its states in the order of time."""
    for node in nodes(proto, "Scan"):
        attributed(node, scan_input_directions=[1, 1, 1], scan_output_directions=[1])


@mutant("v1.1-mpc")
def states_written_backwards(proto, context):
    """States in the order of time reversed: each token gets the weight of another."""
    for node in nodes(proto, "Scan"):
        attributed(node, scan_output_directions=[1])


@mutant("v1.0-qat", "v1.1-aws")
def first_state_of_ones(proto, context):
    """A state that was not cleared before the first step."""
    for node in nodes(proto, "Expand"):
        node.input[0] = "one"


@mutant("v1.0-early", "v1.1-mpc GRU")
def first_state_of_ones_in_the_operator(proto, context):
    """A state left from the batch before."""
    for node in nodes(proto, "GRU"):
        width = constant(proto, [1, 1, context.sizes.width], np.int64)
        size = add(proto, "Shape", node.input[0], start=1, end=2)
        one, rest = (constant(proto, [v], np.int64) for v in (1, context.sizes.width))
        shape = add(proto, "Max", add(proto, "Concat", one, size, rest, axis=0), width)
        node.input.extend(["", add(proto, "Expand", constant(proto, 1.0), shape)])


@mutant("v1.0-early", "v1.1-mpc GRU")
def hard_sigmoids_in_the_operator(proto, context):
    """The gates of a mobile runtime."""
    for node in nodes(proto, "GRU"):
        attributed(node, activations=["HardSigmoid", "Tanh"])


@mutant("v1.0-qat")
def hard_sigmoids(proto, context):
    """The gates of a mobile runtime, written out."""
    for _, body in steps(proto):
        for node in body.node:
            if node.op_type == "Sigmoid":
                node.op_type = "HardSigmoid"


@mutant("v1.0-early")
def gates_clipped(proto, context):
    """A clip on the cell's sums, which some training code has and this has not."""
    for node in nodes(proto, "GRU"):
        attributed(node, clip=0.5)


@mutant("v1.1-mpc GRU")
def biases_counted_twice(proto, context):
    """The cell's one bias given as that of the token and as that of the state."""
    for node in nodes(proto, "GRU"):
        both = maker(proto, node.input[3])
        both.input[1] = both.input[0]


@mutant("v1.0-early", "v1.0-qat", "v1.1-mpc GRU", "v1.1-mpc int8")
def states_pooled_in_place_of_tokens(proto, context):
    """The pool sums the GRU's states, as most code would; TESSERA's sums the tokens."""
    for product, name in zip(pooled(proto, context.sizes), states(proto, context.sizes), strict=True):
        product.input[1] = add(proto, "Transpose", name, perm=[1, 0, 2])


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc GRU", "v1.1-mpc fp16")
def the_pool_s_norm_dropped(proto, context):
    """The states' LayerNorm left out, which early v1.0 has not."""
    for modality in ("s2", "s1"):
        norm = nodes(proto, "LayerNormalization", f"{modality}_backbone.attn_pool.layer_norm.weight")[0]
        rewrite(norm, "Identity", norm.input[0])


@mutant("v1.1-mpc fp16")
def recurrence_in_float16(proto, context):
    """A converter that makes the recurrence half precision as well: what a step rounds away, the next ones carry on."""
    for sensor, body in steps(proto):
        state = f"{sensor}_step_next"
        made = next(n for n in body.node if n.output[0] == state)
        made.output[0] = f"{state}_exact"
        place = list(body.node).index(made) + 1
        to = (TensorProto.FLOAT16, TensorProto.FLOAT)
        names = (f"{state}_exact", f"{state}_half", state)
        casts = [helper.make_node("Cast", [names[i]], [names[i + 1]], name=names[i], to=to[i]) for i in (0, 1)]
        body.node.insert(place, casts[0])
        body.node.insert(place + 1, casts[1])


@mutant("v1.1-mpc int8", unseen=True)
def recurrence_in_int8(proto, context):
    """A quantiser that takes every weight: the recurrence's lie on a grid of int8 steps."""

    def grid(a):
        step = np.abs(a).max() / 127
        return np.rint(a / step) * step

    for name in gru_matrices(context.sizes):
        edit(proto, name, grid)


def gru_matrices(sizes):
    assert sizes.pooling == CUSTOM_GRU
    return [f"{gru_name(m)}.W_{side}{gate}.weight" for m in ("s2", "s1") for side in "ih" for gate in GATES]


# Outputs.


@mutant("v2", "v2 with QK-norm", "v2 fp16", "v2 int8")
def output_norm_dropped(proto, context):
    """v1's last layer on a v2 student."""
    node = maker(proto, NATIVE)
    rewrite(node, "Identity", node.input[0])


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16")
def output_norm_added(proto, context):
    """v2's last layer on a v1 encoder."""
    ones = constant(proto, np.ones(context.sizes.native_dims))
    through(proto, NATIVE, "LayerNormalization", ones, axis=-1, epsilon=1e-5)


@mutant("v1.1-mpc", "v2", "v2 fp16")
def scale_of_all_native_values(proto, context):
    """The scale made before the vector is cut: codes of the stored part do not use their range."""
    nodes(proto, "Abs", "embedding")[0].input[0] = NATIVE


@mutant("v1.1-mpc", "v1.1-mpc int8", "v2")
def last_values_in_place_of_the_first(proto, context):
    """The vector cut at the wrong end."""
    native, dims = context.sizes.native_dims, context.base.profile.dims
    node = nodes(proto, "Slice", NATIVE)[0]
    node.input[1], node.input[2] = (constant(proto, [v], np.int64) for v in (native - dims, native))


@mutant("v2")
def prefix_normalised_again(proto, context):
    """A cut vector brought back to mean 0 and deviation 1, which the reference leaves as it is."""
    ones = constant(proto, np.ones(context.base.profile.dims))
    through(proto, "embedding", "LayerNormalization", ones, axis=-1, epsilon=1e-5)


@mutant("v2", "v1.1-mpc")
def vectors_of_length_one(proto, context):
    """Embeddings brought to unit length, as other products have them."""
    through(proto, "embedding", "LpNormalization", axis=-1, p=2)


@mutant("v1.0-qat", "v2", "v2 fp16", "v2 int8")
def codes_down_to_minus_128(proto, context):
    """The v1 reference's clip: -128 means 'no data' here."""
    put(proto, "code_min", np.float32(-128))


@mutant("v1.1-mpc", "v2")
def codes_up_to_126(proto, context):
    """A bound typed one too low: every pixel's largest value is cut."""
    nodes(proto, "Clip")[0].input[2] = constant(proto, 126)


def scaling(proto):
    """The division by 127 that a scale comes from."""
    return nodes(proto, "Div", "code_max")[0]


@mutant("v1.1-mpc", "v2", "v2 int8")
def scale_by_128(proto, context):
    """Another product's divisor."""
    scaling(proto).input[1] = constant(proto, 128)


@mutant("v2")
def scale_by_126(proto, context):
    """The bound of the codes edited in the graph, the divisor with it."""
    put(proto, "code_max", np.float32(126))


@mutant("v1.1-mpc", "v2")
def rounding_half_up(proto, context):
    """floor(x + 0.5) in place of half to even: only ties tell them apart."""
    node = nodes(proto, "Round")[0]
    rewrite(node, "Floor", add(proto, "Add", node.input[0], constant(proto, 0.5)))


@mutant("v1.0-early", "v2", "v2 int8")
def rounding_by_truncation(proto, context):
    """A cast in place of rounding: every code is pulled towards zero."""
    node = nodes(proto, "Round")[0]
    rewrite(node, "Cast", add(proto, "Cast", node.input[0], to=TensorProto.INT32), to=TensorProto.FLOAT)


@mutant("v1.1-aws", "v2 fp16")
def rounding_down(proto, context):
    """Floor in place of rounding."""
    nodes(proto, "Round")[0].op_type = "Floor"


@mutant("v1.0-qat", "v2")
def another_scale_floor(proto, context):
    """The floor of another version of the reference: only a vector of zeros tells."""
    put(proto, "scale_floor", np.float32(1e-4))


@mutant("v1.1-mpc", "v2")
def scale_floor_dropped(proto, context):
    """A vector of zeros divided by zero."""
    node = nodes(proto, "Max", "scale_floor")[0]
    rewrite(node, "Identity", node.input[0])


@mutant("v2")
def floor_of_the_scale_for_that_of_the_largest(proto, context):
    """The rule of v1.1 in v2: the floor on the scale, not on the largest value."""
    node = nodes(proto, "Max", "scale_floor")[0]
    scaling(proto).input[0] = node.input[0]
    rewrite(node, "Identity", node.input[0])
    through(proto, "scale", "Max", "scale_floor")


@mutant("v1.1-mpc", "v2", "v2 int8")
def scale_in_float16(proto, context):
    """Scales stored in half precision while the codes were made by the exact ones."""
    reroute(proto, "scale", add(proto, "Identity", "scale_before_before"))
    rounded(proto, "scale", TensorProto.FLOAT16)


@mutant("v2")
def embedding_in_float16(proto, context):
    """The vector rounded on its way out, the codes not."""
    reroute(proto, "embedding", add(proto, "Identity", "embedding_before_before"))
    rounded(proto, "embedding", TensorProto.FLOAT16)


@mutant("v2 fp16", "v1.1-mpc fp16")
def quantiser_in_float16(proto, context):
    """A converter that makes the quantiser half precision too: values near a border fall to either side."""
    divided = nodes(proto, "Round")[0].input[0]
    rounded(proto, divided, TensorProto.FLOAT16)


@mutant("v1.1-mpc fp16", "v2 fp16")
def layer_norms_in_float16(proto, context):
    """A converter that leaves no norm in float32: sums of squares overflow with trained weights."""
    for node in nodes(proto, "LayerNormalization"):
        for i in range(len(node.input)):
            feed(proto, node, i, "Cast", to=TensorProto.FLOAT16)
        through(proto, node.output[0], "Cast", to=TensorProto.FLOAT)


@mutant("v2 fp16")
def softmax_in_float16(proto, context):
    """A converter that leaves no softmax in float32."""
    for node in nodes(proto, "Softmax"):
        feed(proto, node, 0, "Cast", to=TensorProto.FLOAT16)
        through(proto, node.output[0], "Cast", to=TensorProto.FLOAT)


@mutant("v2 fp16")
def an_overflow_in_float16(proto, context):
    """Trained weights whose inner activations pass 65,504, made half precision unmeasured."""
    layer = layer_name("s2", 0)
    for part in ("weight", "bias"):
        edit(proto, f"{layer}.linear1.{part}", lambda a: a * 2.0**15)
    edit(proto, f"{layer}.linear2.weight", lambda a: a * 2.0**-15)


@mutant("v2", "v1.1-mpc")
def one_scale_for_the_batch(proto, context):
    """The scale of training's fake quantiser: one for the whole batch."""
    largest = nodes(proto, "ReduceMax")[-1].output[0]
    one = add(proto, "ReduceMax", f"{largest}_before", keepdims=1)
    through(proto, largest, "Max", one)


# Other pixels, other runs.


@mutant("v2", "v1.1-mpc", "v2 int8")
def the_batch_s_mean_taken_off(proto, context):
    """A batch norm that still looks at its batch."""
    mean = add(proto, "ReduceMean", f"{NATIVE}_before", constant(proto, [0], np.int64), keepdims=1)
    through(proto, NATIVE, "Sub", mean)


@mutant("v2", "v1.1-mpc fp16", "v2 int8")
def a_trace_of_the_first_pixel(proto, context):
    """Memory shared between the pixels of a batch: a thousandth of the first one is in all."""
    first = [constant(proto, [v], np.int64) for v in (0, 1, 0)]
    trace = add(proto, "Slice", f"{NATIVE}_before", *first)
    through(proto, NATIVE, "Add", add(proto, "Mul", trace, constant(proto, 1e-3)))


@mutant("v2", "v2 int8")
def dropout_left_on(proto, context):
    """An encoder exported in training mode."""
    through(proto, NATIVE, "Dropout", constant(proto, 0.2), constant(proto, True, np.bool_), seed=1)


@mutant("v2", "v1.0-qat")
def noise_below_every_limit(proto, context):
    """An operator that draws: two runs of one file are no longer the same bytes."""
    noise = add(proto, "RandomNormalLike", f"{NATIVE}_before", scale=1e-7)
    through(proto, NATIVE, "Add", noise)


# Axes, names and types.


@mutant("v1.1-mpc", "v2")
def time_frozen_in_the_signature(proto, context):
    """What an exporter did when a dynamic axis was asked of it: the file says 24."""
    for value in proto.graph.input:
        if value.name.startswith("s2"):
            dims_of(value)[1].dim_value = 24


@mutant("v2")
def one_pixel_at_a_time(proto, context):
    """An export traced with one pixel."""
    for value in proto.graph.input:
        dims_of(value)[0].dim_value = 1


def shapes_baked(proto, sizes, lead):
    """Every reshape to (pixels, time, ..) gets two numbers in place of the axes that it is given."""
    sized = {n.output[0] for n in nodes(proto, "Shape") if n.input[0].endswith("_doy")}
    for node in nodes(proto, "Concat"):
        if node.input[0] in sized:
            node.input[0] = constant(proto, lead, np.int64)


@mutant("v1.1-mpc", "v2")
def time_frozen_at_40(proto, context):
    """A traced reshape: the signature says dynamic, the numbers inside say 40."""
    shapes_baked(proto, context.sizes, [-1, 40])


@mutant("v2", "v1.0-early")
def pixels_frozen_at_64(proto, context):
    """A reshape traced with a batch of 64."""
    shapes_baked(proto, context.sizes, [64, -1])


@mutant("v2")
def time_axes_with_one_name(proto, context):
    """Both sensors' time under one name: a runtime may hold them to one length."""
    for value in proto.graph.input:
        if value.name.startswith("s1"):
            dims_of(value)[1].dim_param = "t2"


@mutant("v2")
def days_as_int64(proto, context):
    """An input of another type than the contract's."""
    for value in proto.graph.input:
        if value.name.endswith("_doy"):
            value.type.tensor_type.elem_type = TensorProto.INT64


@mutant("v2")
def an_input_more(proto, context):
    """An attention mask that nobody reads."""
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["pixel", "t2"]))


@mutant("v2", "v1.0-early")
def a_constant_that_callers_may_replace(proto, context):
    """Initialisers listed as inputs, as old exporters do: whoever runs the file may change the means."""
    proto.graph.input.append(helper.make_tensor_value_info("s2_mean", TensorProto.FLOAT, [10]))


@mutant("v2")
def an_output_more(proto, context):
    """A tensor somebody wanted to look at and left in."""
    native = context.sizes.native_dims
    proto.graph.output.append(helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, ["pixel", native]))


@mutant("v2")
def outputs_with_other_names(proto, context):
    """codes under another name."""
    maker(proto, "codes").output[0] = "quantized"
    next(v for v in proto.graph.output if v.name == "codes").name = "quantized"


@mutant("v2", alike=True)
def an_inner_shape_frozen(proto, context):
    """A tool that writes down the shapes of one run: inner tensors are said to have 7 pixels."""
    proto.graph.value_info.append(
        helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, [7, context.sizes.native_dims])
    )


# The file.


@mutant("v2")
def a_newer_opset(proto, context):
    """An exporter's newest operators, which older runtimes refuse."""
    proto.opset_import[0].version = 23


@mutant("v2")
def a_newer_ir(proto, context):
    """The file format that onnx writes unless it is told otherwise."""
    proto.ir_version = 12


@mutant("v2", "v2 fp16")
def an_operator_of_one_runtime(proto, context):
    """A fused operator left by an optimiser: the same numbers, in one runtime alone."""
    node = softmaxes(proto, context.sizes)[1][0]
    product = nodes(proto, "MatMul", node.output[0])[0]
    product.op_type, product.domain = "FusedMatMul", "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@mutant("v2")
def a_foreign_domain_announced(proto, context):
    """A domain imported and not used."""
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@mutant("v2")
def a_local_function(proto, context):
    """A function defined in the file, which some runtimes do not inline."""
    node = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", modelfile.OPSET)]
    proto.functions.append(helper.make_function("local", "Activation", ["x"], ["y"], [node], opset))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    relu = maker(proto, gemm(proto, "dim_reducer.4").input[0])
    relu.op_type, relu.domain = "Activation", "local"


@mutant("v2")
def weights_in_another_file(proto, context):
    """A file saved with its weights beside it, and sent alone."""
    held = next(t for t in proto.graph.initializer if t.name == "dim_reducer.0.weight")
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value="weights.bin")


@mutant("v2", "v1.1-mpc")
def a_branch(proto, context):
    """Control flow that a tracer left in: both ways the same, and no GPU graph can hold it."""
    info = [helper.make_tensor_value_info("way", TensorProto.FLOAT, None)]

    def way(name):
        node = helper.make_node("Identity", [f"{NATIVE}_before"], ["way"])
        return helper.make_graph([node], name, [], info)

    node = maker(proto, NATIVE)
    node.output[0] = f"{NATIVE}_before"
    yes = constant(proto, True, np.bool_)
    add(proto, "If", yes, out=NATIVE, then_branch=way("then"), else_branch=way("else"))


@mutant("v2")
def an_initialiser_twice(proto, context):
    """Two tensors of one name: which one counts is the runtime's choice."""
    again = proto.graph.initializer.add()
    again.CopyFrom(numpy_helper.from_array(tensor(proto, "dim_reducer.4.bias") + 1, "dim_reducer.4.bias"))


@mutant("v2", alike=True)
def an_unused_initialiser(proto, context):
    """The projector's weights left in the file: ballast that nobody reads."""
    put(proto, "projector.0.weight", np.ones((4, 4), np.float32))


@mutant("v2", alike=True)
def an_unused_node(proto, context):
    """A node whose result goes nowhere."""
    add(proto, "Abs", "embedding")


@mutant("v2", "v1.1-mpc", alike=True)
def a_node_renamed(proto, context):
    """A viewer that gives nodes names of its own and saves."""
    proto.graph.node[3].name = "Concat_3"


@mutant("v2", alike=True)
def a_note_on_a_node(proto, context):
    """A doc string, with the path of the machine that wrote it."""
    proto.graph.node[5].doc_string = "traced in encoder.py, line 41"


@mutant("v2", alike=True)
def a_clip_less(proto, context):
    """The quantiser's clip taken out, which a largest value of 127 never needs."""
    node = nodes(proto, "Clip")[0]
    rewrite(node, "Identity", node.input[0])


@mutant("v2", "v1.1-mpc", alike=True)
def a_transpose_folded(proto, context):
    """An optimiser's work: a weight stored transposed, and the layer told so."""
    node = gemm(proto, "dim_reducer.0")
    node.input[1] = constant(proto, tensor(proto, "dim_reducer.0.weight").T)
    attributed(node, transB=0)


# Records.


@mutant("v1.0-early", "v2", "v2 int8")
def a_mean_in_the_profile(proto, context):
    """A statistic corrected in the profile by hand, the graph left as it is."""
    mean = list(context.base.profile.s2_mean)
    mean[4] += 10
    amend(proto, "profile", s2_mean=mean)


@mutant("v1.1-mpc", "v1.1-aws")
def the_sampler_of_v2(proto, context):
    """The two padding rules confused: v2's on a v1.1 encoder."""
    amend(proto, "profile", sampler="v2")


@mutant("v2")
def the_sampler_of_v1_1(proto, context):
    """The two padding rules confused: v1.1's on a v2 student."""
    amend(proto, "profile", sampler="v1.1", empty_modality="bin-of-absent-rows")


@mutant("v1.1-mpc", "v1.1-aws")
def the_other_source_allowed(proto, context):
    """A file made to accept the catalogue at hand."""
    profile = context.other_profile
    amend(proto, "profile", s2_sources=profile.s2_sources, s1_sources=profile.s1_sources)


@mutant("v1.1-mpc")
def the_profile_of_v1_0(proto, context):
    """v1.0's profile laid on v1.1's weights."""
    sizes = context.sizes
    write(proto, profile=profile_for("v1.0-qat", sizes.native_dims, context.base.profile.dims).to_json())


@mutant("v1.1-mpc", "v2")
def fewer_values_in_the_profile(proto, context):
    """A product of 8 values announced, one of 10 written."""
    amend(proto, "profile", dims=8)


@mutant("v1.1-mpc")
def another_native_width(proto, context):
    """A profile of an encoder with more values than this one has."""
    amend(proto, "profile", native_dims=192)


@mutant("v1.1-mpc", "v1.0-qat")
def another_resampling_claimed(proto, context):
    """The training era's resampling set by hand in a file that is named for today's."""
    amend(proto, "profile", s2_resampling="nearest")


@mutant("v2", "v1.1-mpc")
def cirrus_masked(proto, context):
    """A stricter mask set by hand: snow and thin cirrus are data to these weights."""
    amend(proto, "profile", scl_invalid=[0, 1, 2, 3, 8, 9, 10, 11])


@mutant("v2")
def bands_in_another_order(proto, context):
    """Two bands exchanged in the profile: d-pixels would be built in that order."""
    bands = list(context.base.profile.s2_bands)
    bands[3], bands[4] = bands[4], bands[3]
    amend(proto, "profile", s2_bands=bands)


@mutant("v1.1-mpc")
def a_sampler_without_long_series(proto, context):
    """The largest bins taken out to save memory: 128 observations where the weights saw 256."""
    amend(proto, "profile", sampler_bins=list(range(8, 129, 8)))


@mutant("v1.1-aws")
def radar_scaled_in_the_other_width(proto, context):
    """float64 for OPERA's radar, where the reference has float32: some values move by one."""
    amend(proto, "profile", s1_arithmetic="float64")


@mutant("v1.0-qat")
def minus_128_in_the_profile(proto, context):
    """The v1 reference's clip in the profile."""
    amend(proto, "profile", code_min=-128)


@mutant("v2", alike=True)
def notes_edited(proto, context):
    """The notes to the reader rewritten."""
    amend(proto, "profile", notes="Approved for every source.")


@mutant("v1.1-mpc GRU", "v1.1-mpc int8")
def a_gpu_promised(proto, context):
    """`linear_before_reset=0` announced for CUDA, which would hand it back to the CPU without a word."""
    amend(proto, "variant", devices=["cpu", "cuda"])


@mutant("v1.1-mpc GRU")
def a_scan_promised(proto, context):
    """A record of another recurrence than the file has."""
    amend(proto, "variant", recurrence="scan", devices=["cpu", "cuda"])


@mutant("v2", "v1.1-mpc")
def wider_limits_claimed(proto, context):
    """A damaged float32 file that calls itself int8, whose limits are wide."""
    one_weight_one_per_cent_off(proto, context)
    amend(proto, "variant", precision="int8", devices=["cpu"])
    write(proto, name=records(proto)["name"] + "-int8")


@mutant("v2")
def float16_claimed(proto, context):
    """A float32 file under the record of a half-precision one."""
    amend(proto, "variant", precision="fp16")
    write(proto, name=records(proto)["name"] + "-fp16")


@mutant("v2 int8", "v2 fp16")
def float32_claimed(proto, context):
    """A narrow file sold as the exact one."""
    suffix = f"-{context.base.precision}"
    amend(proto, "variant", precision="fp32", devices=["cpu", "cuda"])
    write(proto, name=records(proto)["name"].removesuffix(suffix))


@mutant("v1.0-early", "v2")
def other_heads_in_the_record(proto, context):
    """The number of heads in the record is not that of the graph."""
    amend(proto, "encoder", heads=context.sizes.heads * 2)


@mutant("v1.0-qat", "v2", "v2 fp16")
def other_heads_in_record_and_graph(proto, context):
    """Heads assumed wrongly at import: no tensor tells how many there are."""
    sizes = dataclasses.replace(context.sizes, heads=context.sizes.heads * 2)
    for node in heads_apart(proto, context.sizes):
        node.input[1] = constant(proto, [sizes.heads, sizes.head_width], np.int64)
    edit(proto, "head_scale", lambda a: np.full_like(a, sizes.head_width**-0.5))
    amend(proto, "encoder", heads=sizes.heads)


@mutant("v2 with QK-norm")
def no_qk_norm_in_the_record(proto, context):
    """The record of a plain student."""
    amend(proto, "encoder", qk_norm=False)


@mutant("v2")
def no_output_norm_in_the_record(proto, context):
    """The record of an encoder without the last norm."""
    amend(proto, "encoder", output_norm=False)


@mutant("v2", "v2 fp16", "v2 int8")
def another_weights_digest(proto, context):
    """The digest of other weights, and the name that goes with it."""
    held = records(proto)
    digest = records(context.other())["weights_sha256"]
    write(proto, weights_sha256=digest, name=held["name"].replace(held["weights_sha256"][:8], digest[:8]))


@mutant("v2", "v1.1-mpc")
def another_name(proto, context):
    """A name that promises other weights: products are told apart by it."""
    write(proto, name="v2-00000000")


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def golden_outputs_of_another_model(proto, context):
    """The proof of another file."""
    write(proto, golden=records(context.other())["golden"])


@mutant("v2", "v1.1-mpc", "v2 int8")
def no_golden_outputs(proto, context):
    """A proof over no cases at all, with an empty digest that fits."""
    amend(proto, "golden", cases=[], inputs_sha256=parity.digest_of([]), codes="", scales="")


@mutant("v2", "v2 fp16")
def one_golden_case(proto, context):
    """A proof cut down to the case that still holds."""
    golden = json.loads(records(proto)["golden"])
    pixels, dims = golden["cases"][0][0], context.base.profile.dims
    short = {
        name: base64.b64encode(base64.b64decode(golden[name])[: pixels * size]).decode()
        for name, size in (("codes", dims), ("scales", 4))
    }
    inputs = parity.digest_of([parity.inputs_of(*golden["cases"][0])])
    amend(proto, "golden", cases=golden["cases"][:1], inputs_sha256=inputs, **short)


@mutant("v2")
def a_golden_code_changed(proto, context):
    """One number of the proof edited."""
    codes = np.frombuffer(base64.b64decode(json.loads(records(proto)["golden"])["codes"]), np.int8).copy()
    codes[codes.argmin()] += 9
    amend(proto, "golden", codes=base64.b64encode(codes.tobytes()).decode())


@mutant("v2", "v1.1-mpc")
def no_parity_report(proto, context):
    """An export that was never measured."""
    write(proto, parity="{}")


@mutant("v2")
def a_parity_report_that_fails(proto, context):
    """An export that was measured, found wrong and shipped."""
    amend(proto, "parity", max_abs_error=0.5, equal_codes_share=0.4, max_code_step=60)


@mutant("v2", "v1.1-mpc")
def a_record_cut_out(proto, context):
    """Metadata cleaned by a tool that does not know them."""
    write(proto, parity=None)


@mutant("v2")
def another_family_in_the_origin(proto, context):
    """An import record of another family than the profile's."""
    amend(proto, "origin", family="v1.1-aws")


@mutant("v2")
def a_version_of_tomorrow(proto, context):
    """A file of a release that this one does not know."""
    amend(proto, "tessera_beam", version=modelfile.VERSION + 1)


@mutant("v2", alike=True)
def a_record_more(proto, context):
    """A remark among the records, by somebody else's tool."""
    write(proto, checked_by="nobody")


# Int8 files.


def integer_weights(proto):
    return [n for n in nodes(proto, "DequantizeLinear") if n.input[0].endswith(".weight")]


@mutant("v2 int8", "v1.1-mpc int8")
def eight_bit_weights(proto, context):
    """Weights over all of int8: right with VNNI, saturating in the kernels of CPUs without it."""
    tensors = context.base.tensors()
    for node in integer_weights(proto):
        name = node.input[0].removesuffix(".weight")
        weight = tensors[f"{name}.weight"]
        scale = np.abs(weight).max(1) / np.float32(127)
        put(proto, f"{name}.weight", np.rint(weight / scale[:, None]).astype(np.int8))
        ratio = scale / tensor(proto, f"{name}.weight_scale")
        put(proto, f"{name}.weight_scale", scale.astype(np.float32))
        product = (tensor(proto, f"{name}.bias_scale") * ratio).astype(np.float32)
        put(proto, f"{name}.bias_scale", product)
        put(proto, f"{name}.bias", quantise_bias(tensors[f"{name}.bias"], product))


@mutant("v2 int8", "v1.1-mpc int8")
def ranges_of_each_batch(proto, context):
    """Dynamic quantisation, the usual way: a pixel's codes depend on its neighbours."""
    for node in nodes(proto, "QuantizeLinear"):
        behind = nodes(proto, "DequantizeLinear", node.output[0])[0]
        names = [f"{node.output[0]}_{part}" for part in ("scale", "zero")]
        made = helper.make_node("DynamicQuantizeLinear", [node.input[0]], [node.output[0], *names], name=node.name)
        node.CopyFrom(made)
        behind.input[1], behind.input[2] = names


@mutant("v2 int8")
def zero_points_one_apart(proto, context):
    """Inputs quantised around 128 and read around 127."""
    other = constant(proto, 127, np.uint8)
    for node in nodes(proto, "DequantizeLinear", "zero_128"):
        node.input[2] = other


@mutant("v2 int8")
def zero_points_of_unsigned_inputs(proto, context):
    """A zero point of 0 for inputs that may be negative: they are cut off."""
    put(proto, "zero_128", np.uint8(0))


@mutant("v2 int8")
def ranges_halved(proto, context):
    """Ranges measured on too few pixels: larger inputs are clipped."""
    for held in [t.name for t in proto.graph.initializer if t.name.endswith(".input_scale")]:
        edit(proto, held, lambda a: a / 2)


@mutant("v2 int8")
def biases_in_other_units(proto, context):
    """Integer biases scaled without the inputs' step."""
    for held in [t.name for t in proto.graph.initializer if t.name.endswith(".bias_scale")]:
        edit(proto, held, lambda a: a * 2)


@mutant("v2 int8")
def rows_scaled_as_one(proto, context):
    """One scale for all rows of a weight under numbers that were made row by row."""
    for node in integer_weights(proto):
        edit(proto, node.input[1], lambda a: np.full_like(a, a.mean()))
