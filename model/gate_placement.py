"""Gate placement: which provider ran each node of a model file, as ONNX Runtime's own profile tells."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.extras import need
from model.gate_report import PLACEMENT, Check
from model.parity import Inputs, RunError, Session
from model.variant import Variant

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SHAPES = "int64"  # what shapes are made of


def placement(content: bytes, variant: Variant, case: Inputs) -> Check:
    """Runs the file on every provider that is here and that its variant names.

    Raises:
      RunError: ONNX Runtime cannot run it there.
    """
    here = need("onnxruntime", "model gate").get_available_providers()
    found, strays = [], []
    for device, provider in PROVIDERS.items():
        if device not in variant.devices:
            found.append(f"{device}: this file is not for it")
        elif provider not in here:
            found.append(f"{device}: not present here, not measured")
        elif (events := profiled(content, provider, case)) is None:
            found.append(f"{device}: no such device answers here, not measured")
        else:
            found.append(f"{device}: {len(nodes_of(events))} nodes")
            strays += [f"{device}: {stray}" for stray in strays_of(events, provider)]
    few = "; ".join(strays[:4]) + (f"; and {len(strays) - 4} more" if len(strays) > 4 else "")
    return Check(
        "placement",
        not strays,
        "; ".join([*found, *([few] if strays else [])]),
        "every node on the provider that was asked; on cuda shapes (int64, one axis at most) may stay on the CPU",
        "a worker would pay for a device and compute elsewhere, without a word",
        PLACEMENT,
    )


def profiled(content: bytes, provider: str, case: Inputs) -> list[dict[str, Any]] | None:
    """What ONNX Runtime wrote down of a run; None where it could not have the provider.

    Raises:
      RunError: ONNX Runtime cannot run the file there, or what it wrote cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(content, provider=provider, profile=f"{folder}/run")
        if provider not in session.providers:
            return None
        session.run(case)
        text = Path(session.end_profile()).read_text(encoding="utf-8", errors="replace")
        try:
            events: list[dict[str, Any]] = json.loads(text)
        except ValueError as e:
            raise RunError(f"ONNX Runtime's profile cannot be read, names of nodes may be at fault: {e}") from None
        return events


def nodes_of(events: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By node, what the profile says of it; nodes inside a Scan too, each once."""
    return {
        e["name"].removesuffix("_kernel_time"): e["args"]
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    }


def strays_of(events: list[dict[str, Any]], provider: str) -> list[str]:
    """Nodes that ran elsewhere, in words.

    ONNX Runtime keeps shapes on the CPU by design, beside any provider: a node whose every output is an int64 tensor of
    at most one axis is no stray there.
    """
    nodes = nodes_of(events)
    strays = [
        f"{args.get('op_name')} {name} on {args.get('provider') or 'nobody knows what'}"
        for name, args in nodes.items()
        if args.get("provider") != provider and not (args.get("provider") == PROVIDERS["cpu"] and _is_shape(args))
    ]
    return strays if nodes else ["the profile names no node"]


def _is_shape(args: Mapping[str, Any]) -> bool:
    outputs = args.get("output_type_shape") or []
    kinds = [(kind, axes) for output in outputs for kind, axes in output.items()]
    return bool(kinds) and all(kind == SHAPES and len(axes) <= 1 for kind, axes in kinds)
