"""Golden vectors of the gate's tests: inputs, and what encoders give that share no code with the package.

python tests/model/make_golden.py [FILE.npz ..]

writes tests/model/golden/<case>.npz, for every case of `small_encoders.SMALL` and for a model of the demo's
sizes. The weights are rebuilt from their seed and never stored. Here the encoders are put together from torch's own
modules, in float64: nn.TransformerEncoder, nn.GRU, layer norms; TESSERA's own cell and the QK-norm layer are written
out from their equations. Run it when a case is added or its meaning changes, and say so in the change; never to make
a test pass.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from small_encoders import SMALL, family_of_case, tensors_of  # noqa: E402

from model.families import profile_for  # noqa: E402
from model.parity import inputs_of  # noqa: E402
from pipeline.demo import untrained  # noqa: E402

FOLDER = HERE / "golden"
SEED = 41  # of the weights
DIMS = 10  # values that are stored: fewer than any case gives
CASES = ((5, 8, 40), (6, 24, 16), (3, 7, 1), (2, 1, 1))  # pixels, t2, t1
NANO = "nano"


def names():
    """Every golden file's name without its ending, with its tensors, sizes and profile."""
    for case, sizes in SMALL.items():
        family = family_of_case(case)
        name = case.replace(" with QK-norm", "-qknorm")
        yield name, tensors_of(sizes, SEED), sizes, profile_for(family, sizes.native_dims, DIMS)
    weights = untrained.random_weights(untrained.SIZES, untrained.SEED)
    yield NANO, weights, untrained.SIZES, untrained.untrained_profile()


def native(tensors, sizes, profile, case):
    """The encoder's whole output, float64 (N, native_dims)."""
    w = {name: torch.from_numpy(t.astype(np.float64)) for name, t in tensors.items()}
    s2, s2_doy, s1, orbit, s1_doy = (torch.from_numpy(a.astype(np.int64)) for a in case.values())
    mean, std = (torch.tensor(getattr(profile, f"s2_{stat}")).double() for stat in ("mean", "std"))
    x2 = (s2 - mean) / (std + profile.std_epsilon)
    mean, std = (
        torch.tensor([getattr(profile, f"s1_{way}_{stat}") for way in ("ascending", "descending")]).double()[orbit]
        for stat in ("mean", "std")
    )
    x1 = (s1 - mean) / (std + profile.std_epsilon)
    x2, x1 = x2 * (s2_doy > 0)[..., None], x1 * (s1_doy > 0)[..., None]  # day 0: zeros after standardisation
    z = torch.cat([backbone(w, "s2", x2, s2_doy, sizes), backbone(w, "s1", x1, s1_doy, sizes)], -1)
    z = linear(w, "dim_reducer.0", z)
    if "dim_reducer.4.weight" in w:
        z = F.layer_norm(z, z.shape[-1:], w["dim_reducer.1.weight"], w["dim_reducer.1.bias"])
        z = linear(w, "dim_reducer.4", z.clamp(min=0))
    return F.layer_norm(z, z.shape[-1:]) if profile.family == "v2" else z


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def backbone(w, sensor, x, doy, sizes):
    name = f"{sensor}_backbone"
    x = linear(w, f"{name}.embedding.2", linear(w, f"{name}.embedding.0", x).clamp(min=0))
    x = x + sinusoids(doy, sizes.width)
    x = (qk_norm_layers if sizes.qk_norm else torch_layers)(w, name, x, sizes)
    seen = x
    if f"{name}.attn_pool.temporal_context.weight_ih_l0" in w:
        seen = torch_gru(w, f"{name}.attn_pool.temporal_context.", x)
    elif f"{name}.attn_pool.layer_norm.weight" in w:
        seen = own_gru(w, f"{name}.attn_pool.temporal_context.gru_cell.", x)
        pool = f"{name}.attn_pool.layer_norm"
        seen = F.layer_norm(seen, seen.shape[-1:], w[f"{pool}.weight"], w[f"{pool}.bias"])
    share = linear(w, f"{name}.attn_pool.query", seen)[..., 0].softmax(-1)
    return torch.einsum("nt,ntd->nd", share, x)


def sinusoids(doy, width):
    """The reference's: the angle in float32, sines on even places."""
    step = torch.exp(torch.arange(0, width, 2).float() * (-np.log(10_000.0) / width))
    angle = (doy.float()[..., None] * step).double()
    table = torch.zeros(*doy.shape, width, dtype=torch.float64)
    table[..., 0::2], table[..., 1::2] = angle.sin(), angle.cos()
    return table


def torch_layers(w, name, x, sizes):
    """nn.TransformerEncoder, its projections packed as in the published checkpoints."""
    layer = nn.TransformerEncoderLayer(
        sizes.width, sizes.heads, sizes.feed_forward, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    stack = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
    state = {}
    for i in range(sizes.layers):
        here, there = f"{name}.transformer_encoder.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            packed = torch.cat([w[f"{here}.{p}_proj.{kind}"] for p in "qkv"])
            state[f"{there}.self_attn.in_proj_{kind}"] = packed
            state[f"{there}.self_attn.out_proj.{kind}"] = w[f"{here}.out_proj.{kind}"]
            for part in ("linear1", "linear2", "norm1", "norm2"):
                state[f"{there}.{part}.{kind}"] = w[f"{here}.{part}.{kind}"]
    stack.load_state_dict(state)
    return stack.train()(x)  # in training mode, so not by the fused path; dropout is 0


def qk_norm_layers(w, name, x, sizes):
    """Layers with an RMSNorm over each head's queries and keys, which torch has no module for."""
    n, t, d = x.shape
    for i in range(sizes.layers):
        here = f"{name}.transformer_encoder.{i}"
        q, k, v = (linear(w, f"{here}.{p}_proj", x).view(n, t, sizes.heads, -1).transpose(1, 2) for p in "qkv")
        q, k = (
            F.rms_norm(y, y.shape[-1:], w[f"{here}.{p}_norm.weight"], torch.finfo(torch.float32).eps)
            for y, p in ((q, "q"), (k, "k"))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        x = normed(w, f"{here}.norm1", x + linear(w, f"{here}.out_proj", mixed))
        wide = linear(w, f"{here}.linear1", x).clamp(min=0)
        x = normed(w, f"{here}.norm2", x + linear(w, f"{here}.linear2", wide))
    return x


def normed(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def torch_gru(w, name, x):
    gru = nn.GRU(x.shape[-1], x.shape[-1], batch_first=True, dtype=torch.float64)
    gru.load_state_dict({key.removeprefix(name): value for key, value in w.items() if key.startswith(name)})
    return gru(x)[0]


def own_gru(w, name, x):
    """r = s(W_ir x + W_hr h + b_r), z alike, n = tanh(W_ih x + W_hh (r h) + b_h), h' = (1 - z) h + z n."""
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):

        def gate(letter, state, token=x[:, t]):
            sides = ((f"{name}W_i{letter}.weight", token), (f"{name}W_h{letter}.weight", state))
            return sum(values @ w[side].T for side, values in sides) + w[f"{name}b_{letter}"]

        r, z = gate("r", h).sigmoid(), gate("z", h).sigmoid()
        h = torch.lerp(h, gate("h", r * h).tanh(), z)
        states.append(h)
    return torch.stack(states, 1)


def quantised(values, floor, floor_of):
    """Codes and scale of float32 rows, by the rule of facts 1.9, row by row."""
    codes, scales = [], []
    for row in values:
        largest = np.abs(row).max()
        scale = largest / np.float32(127) if floor_of == "scale" else max(largest, np.float32(floor)) / np.float32(127)
        scales.append(np.float32(max(scale, np.float32(floor)) if floor_of == "scale" else scale))
        codes.append(np.clip(np.round(row / scales[-1]), -127, 127).astype(np.int8))
    return np.stack(codes), np.array(scales, np.float32)


def on_one_thread(function, *arguments):
    """So that sums do not depend on the machine's number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return function(*arguments)
    finally:
        torch.set_num_threads(threads)


def golden(tensors, sizes, profile):
    """Arrays of one file: inputs, native output, codes and scale, of each case under its number."""
    arrays = {}
    for i, size in enumerate(CASES):
        case = inputs_of(*size, seed=SEED)
        whole = on_one_thread(native, tensors, sizes, profile, case).numpy().astype(np.float32)
        codes, scale = quantised(whole[:, : profile.dims], profile.scale_floor, profile.scale_floor_of)
        for name, array in {**case, "native": whole, "codes": codes, "scale": scale}.items():
            arrays[f"{i}_{name}"] = array
    return arrays


if __name__ == "__main__":
    wanted = {Path(argument).stem for argument in sys.argv[1:]}
    for name, tensors, sizes, profile in names():
        if not wanted or name in wanted:
            np.savez_compressed(FOLDER / f"{name}.npz", **golden(tensors, sizes, profile))
            print(f"{name}.npz, {(FOLDER / f'{name}.npz').stat().st_size:,} bytes")
