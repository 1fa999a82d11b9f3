"""Encoders on one core: model files in ONNX Runtime beside the best of PyTorch and what the core can multiply.

python bench/encoder.py [--cases v1.1,small] [--json] [--check]
"""

import argparse
import copy
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import tell
from torch import nn

from model import parity
from model.checkpoints import Checkpoint
from model.encoders import Encoder, Layer, encoder_of
from model.errors import NotProven
from model.export import export
from model.families import profile_for
from model.modelfile import INPUTS
from model.weights import ATTENTION, CUSTOM_GRU, EncoderSizes, flop_per_px
from pipeline.demo import untrained

# Published shapes, facts/tessera.md 1.7; rows a sensor, and pixels a batch: everyone gets the size that suits it best.
CASES = {
    "shipped": ("v2", untrained.SIZES, 24, (256, 1024)),
    "small": ("v2", EncoderSizes(256, 4, 4, 1024, 1024, 128, False), 40, (32, 256)),
    "large": ("v2", EncoderSizes(640, 4, 4, 2560, 2560, 128, False), 40, (16, 64)),
    "v1.1": ("v1.1-mpc", EncoderSizes(768, 4, 4, 2048, 3072, 192, False, CUSTOM_GRU, False), 40, (16, 64)),
    "v1.0": ("v1.0-qat", EncoderSizes(512, 4, 4, 4096, 0, 128, False, CUSTOM_GRU, False), 40, (16, 64)),
}
# Ours over the best that PyTorch does with the same weights on the same core. The shipped model is too small to
# speak of anything but call overhead, so its int8 row has no floor.
FLOORS = {"fp32": (0.9, 1.15), "int8": (1.5, 2.2)}
REPEATS = 4


def best_rate(run: Callable[[parity.Inputs], Any], cases: list[parity.Inputs]) -> float:
    """Pixels per CPU second at the batch size that suits `run` best."""
    return max(rate(lambda c=case: run(c), len(case["s2"])) for case in cases)


def rate(run: Callable[[], Any], n: int) -> float:
    """Pixels per CPU second of one thread, best of a few: what other work on the machine disturbs least."""
    run()
    best_s = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        best_s = min(best_s, time.process_time() - start)
    return n / best_s


def machine_flops(side: int = 1536) -> float:
    """Float32 operations per CPU second that PyTorch's matrix product reaches on one thread."""
    a = torch.rand(side, side)
    return rate(lambda: a @ a, 1) * 2 * side**3


def fused(encoder: Encoder) -> Encoder:
    """The same encoder with torch's own transformer layers, whose fused kernel eager inference then takes."""
    twin = copy.deepcopy(encoder)
    for backbone in (twin.s2_backbone, twin.s1_backbone):
        backbone.transformer_encoder = nn.ModuleList(_fused(layer) for layer in backbone.transformer_encoder)
    return twin.eval()


def _fused(layer: Layer) -> nn.Module:
    d, f = layer.linear1.in_features, layer.linear1.out_features
    twin = nn.TransformerEncoderLayer(d, layer.heads, f, batch_first=True)
    state = {k: v for k, v in layer.state_dict().items() if k.split(".")[0] in ("linear1", "linear2", "norm1", "norm2")}
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = torch.cat([getattr(getattr(layer, f"{p}_proj"), kind) for p in "qkv"])
        state[f"self_attn.out_proj.{kind}"] = getattr(layer.out_proj, kind)
    twin.load_state_dict(state)
    return twin.eval()


def compiled(encoder: Encoder) -> Callable[..., Any]:
    """torch.compile with weights frozen into the code, its fastest form for inference."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    inductor.freezing = True
    return torch.compile(copy.deepcopy(encoder), dynamic=False)


def dynamo(encoder: Encoder, inputs: parity.Inputs, folder: Path) -> Path:
    """What `torch.onnx.export` makes of the same module, pixel and time axes dynamic."""
    dim = torch.export.Dim
    axes = {name: dim(name) for name in ("pixel", "t2", "t1")}
    shapes = tuple({i: axes[a] for i, a in enumerate(shape) if isinstance(a, str)} for _, shape in INPUTS.values())
    path = folder / "dynamo.onnx"
    sample = tuple(torch.from_numpy(a) for a in inputs.values())
    names = {"input_names": list(INPUTS), "output_names": ["codes", "scale", "embedding"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            encoder, sample, path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
        )
    return path


def weights_of(sizes: EncoderSizes) -> dict[str, Any]:
    """Random weights that keep variances; biases and the state's share of a GRU small, as trained ones are."""
    random = np.random.RandomState(1)
    return {
        name: tensor if tensor.ndim > 1 else (tensor + 0.05 * random.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in untrained.random_weights(sizes, 1).items()
    }


def peers(encoder: Encoder, cases: list[parity.Inputs]) -> dict[str, float | str]:
    """Pixels per CPU second of everything PyTorch offers, or why it was not measured."""

    def on_tensors(run: Callable[..., Any]) -> Callable[[parity.Inputs], Any]:
        return lambda case: run(*(torch.from_numpy(a) for a in case.values()))

    found: dict[str, float | str] = {}
    with torch.inference_mode():
        found["eager"] = best_rate(on_tensors(encoder), cases)
        found["eager_fused"] = best_rate(on_tensors(fused(encoder)), cases)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["compile"] = best_rate(on_tensors(compiled(encoder)), cases)
    except Exception as e:  # no compiler on the machine, for one; its own words say which
        found["compile"] = f"not measured: {str(e).strip().splitlines()[0][:80]}"
    found["dynamo"] = "not measured: only attention encoders are exported that way"
    if encoder.sizes.pooling == ATTENTION and not importlib.util.find_spec("onnxscript"):
        found["dynamo"] = "not measured: onnxscript is not installed"
    elif encoder.sizes.pooling == ATTENTION:
        with tempfile.TemporaryDirectory() as folder:
            peer = parity.Session(dynamo(encoder, parity.inputs_of(4, 3, 5), Path(folder)).read_bytes())
            found["dynamo"] = best_rate(peer.run, cases)
    return found


def rows(names: list[str]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    flops = machine_flops()
    found = []
    for name in names:
        family, sizes, t, batches = CASES[name]
        profile = profile_for(family, sizes.native_dims)
        weights = weights_of(sizes)
        encoder = encoder_of(weights, sizes, profile)
        cases = [parity.inputs_of(n, t, t) for n in batches]
        others = peers(encoder, cases)
        best = max(v for k, v in others.items() if k != "dynamo" and not isinstance(v, str))
        for precision, target in (("fp32", "any"), ("fp32", "cpu"), ("int8", "cpu")):
            if target == "cpu" and precision == "fp32" and sizes.pooling == ATTENTION:
                continue  # the same file
            floor, goal = FLOORS[precision]
            row: dict[str, Any] = {
                "case": f"{name} {precision}{' GRU op' if target == 'cpu' and precision == 'fp32' else ''}",
                "tokens": f"{t}+{t}",
                **others,
                "limit": flops / flop_per_px(sizes, t, t),
                "floor": None if name == "shipped" else floor,
                "target": goal,
            }
            with tempfile.TemporaryDirectory() as folder:
                try:
                    file = Path(folder) / "m.onnx"
                    ours = export(Checkpoint(weights, sizes, {}), profile, "bench", {}, file, precision, target)
                    session = parity.Session(ours.path.read_bytes())
                    row["ours"] = best_rate(session.run, cases)
                    row["ratio"] = row["ours"] / best
                    row["equal"], row["cosine"] = ours.parity["equal_codes_share"], ours.parity["cosine"]
                except NotProven as e:
                    row["ours"] = row["ratio"] = row["equal"] = row["cosine"] = f"not measured: {e}"
            found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 4 below a floor")
    options = parser.parse_args()
    if unknown := sorted(set(options.cases.split(",")) - set(CASES)):
        parser.error(f"--cases {','.join(unknown)}: it must be of {', '.join(CASES)}")
    found = rows(options.cases.split(","))
    columns = ("case", "tokens", "ours", "eager", "eager_fused", "compile", "dynamo", "limit", "ratio")
    columns += ("floor", "target", "equal", "cosine")
    tell("encoder", found, columns, options.json)
    below = [r for r in found if r["floor"] and not isinstance(r["ratio"], str) and r["ratio"] < r["floor"]]
    return 4 if options.check and below else 0


if __name__ == "__main__":
    sys.exit(main())
