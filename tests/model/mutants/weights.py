"""Mutants of weights: numbers that are not those of the checkpoint."""

import numpy as np
from onnx import numpy_helper

from model.weights import gru_name, layer_name, tensor_shapes
from mutants.bases import mutant
from mutants.tools import edit, put, swap, tensor


def largest_negated(numbers):
    numbers.flat[np.abs(numbers.astype(np.int64) if numbers.dtype == np.int8 else numbers).argmax()] *= -1
    return numbers


@mutant(
    "v1.0-early",
    "v1.0-qat",
    "v1.1-mpc",
    "v1.1-aws",
    "v2",
    "v2 with QK-norm",
    "v2 fp16",
    "v2 int8",
    by=("golden outputs",),
)
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


@mutant("v1.0-qat", "v1.1-aws", "v2", "v2 fp16", "v2 int8", by=("golden outputs",))
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


@mutant("v1.1-mpc", seldom=True)
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


@mutant("v1.0-early", "v2", "v2 with QK-norm", by=("golden outputs",))
def queries_and_keys_exchanged(proto, context):
    """A packed projection taken apart in the order k, q, v."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        for part in ("weight", "bias"):
            swap(proto, f"{layer}.q_proj.{part}", f"{layer}.k_proj.{part}")


@mutant("v1.1-mpc", "v2 fp16", seldom=True)
def keys_and_values_exchanged(proto, context):
    """A packed projection taken apart in the order q, v, k."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        for part in ("weight", "bias"):
            swap(proto, f"{layer}.k_proj.{part}", f"{layer}.v_proj.{part}")


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8", by=("golden outputs",))
def a_head_dropped(proto, context):
    """A tool that prunes heads, or one that writes one head too few."""

    def change(numbers):
        numbers[:, : context.sizes.head_width] = 0
        return numbers

    edit(proto, f"{layer_name('s2', 1)}.out_proj.weight", change)


@mutant("v2", "v1.0-qat", seldom=True)
def layers_in_reverse_order(proto, context):
    """Layers sorted by name as text, or stacked from the top."""
    first, second = (layer_name("s1", i) for i in (0, 1))
    for name in tensor_shapes(context.sizes):
        if name.startswith(f"{first}."):
            swap(proto, name, second + name.removeprefix(first))


@mutant("v2", seldom=True)
def norms_of_a_layer_exchanged(proto, context):
    """A checkpoint's keys mapped by their order: a layer's two norms have each other's weights."""
    layer = layer_name("s2", 0)
    for part in ("weight", "bias"):
        swap(proto, f"{layer}.norm1.{part}", f"{layer}.norm2.{part}")


@mutant("v2 with QK-norm", unseen=True, seldom=True)
def norms_of_queries_and_keys_exchanged(proto, context):
    """The two QK-norms crossed in the import: a product of both, so no output shows it."""
    for layer in (layer_name(m, i) for m in ("s2", "s1") for i in range(context.sizes.layers)):
        swap(proto, f"{layer}.q_norm.weight", f"{layer}.k_norm.weight")


@mutant("v2", "v1.1-mpc", seldom=True)
def queries_of_the_pools_crossed(proto, context):
    """The pools of the two sensors exchanged: they have the same shapes."""
    for part in ("weight", "bias"):
        swap(proto, *(f"{m}_backbone.attn_pool.query.{part}" for m in ("s2", "s1")))


@mutant("v1.0-qat", "v1.1-mpc GRU", seldom=True)
def reset_and_update_gates_exchanged(proto, context):
    """Gates stacked in the order of another library: r and z have each other's weights."""
    for modality in ("s2", "s1"):
        for part in ("b_{}", "W_i{}.weight", "W_h{}.weight"):
            swap(proto, *(f"{gru_name(modality)}.{part.format(gate)}" for gate in ("r", "z")))


@mutant("v1.1-mpc", "v1.1-aws", unseen=True)
def a_row_beyond_the_stored_values(proto, context):
    """Damage among the 64 values that v1.1 makes and does not store: no code shows it, a later prefix would."""
    edit(proto, "dim_reducer.4.weight", lambda a: np.concatenate([a[:-1], -a[-1:]]))
