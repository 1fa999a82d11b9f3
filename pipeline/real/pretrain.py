"""Pretrain: `python -m pipeline.real.pretrain REAL_DATA OUT` trains on real sets from scratch, proves and probes."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import BadInput, NotProven
from model.probing.table import cell, grid, number, text
from model.shards import MANIFEST, joined, open_shards, write_set
from pipeline.console import BAD_INPUT, CHECK_FAILED, OK, say, show, warn
from pipeline.model import export_model, gate_model
from pipeline.probing import ALL_BUDGETS, SEEDS, probe
from pipeline.real import parcels, presto, sets
from pipeline.real.probe_set import PROFILE
from pipeline.training import train

CONFIGS = Path(__file__).parents[1] / "configs/real"
# What is trained on together, and what of it is probed. The regions of the parcels have 200 records each: too few.
TRAININGS: dict[str, tuple[str, ...]] = {
    "parcels": parcels.REGIONS, "points": ("points",), **{name: (name,) for name in presto.SETS},
}  # fmt: skip
BY_DEFAULT = ("us", "yc", "nj", "points", *presto.SETS)  # nh stays near chance for every method (facts/model.md 4.6)
UNTRAINED_SEEDS = 3
SAME_PIXELS = "training saw the pixels of its set, tested ones too, without a label: this is no score of new places"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training's files: the model and encoders of the same config before their first step."""

    model: Path
    untrained: tuple[Path, ...]
    seconds: float


def pretrain(
    shared: Path, out: Path, names: Sequence[str] = BY_DEFAULT, settings: Sequence[str] = (), seeds: int = SEEDS
) -> dict[str, Any]:
    """Trains on every set that is asked for, exports, gates, and probes the model file against the untrained encoder.

    Args:
      shared: folder of the real data. out: folder of this run; sets and trainings that it holds are gone on with.
      settings: "table.name=value" in place of what the configs say.

    Returns:
      `trainings` (seconds, gate) and `probes` by set; `better`: per set and head the mean difference over all shares.

    Raises:
      BadInput: a set that nobody knows, data that are not there, or PyTorch missing.
      NotProven: an export that is not its encoder.
    """
    if unknown := [name for name in names if name not in sets.READERS]:
        raise BadInput(f"set {unknown[0]!r}: there are {', '.join(sets.READERS)}")
    result: dict[str, Any] = {"trainings": {}, "probes": {}, "better": {}, "ok": True}
    for training, members in TRAININGS.items():
        wanted = [name for name in names if name in members]
        if not wanted:
            continue
        for name in members:
            if not (out / "sets" / name / MANIFEST).exists():
                sets.build(shared, out / "sets", [name])
        made = _train(training, members, out, settings)
        report, proven = gate_model(made.model)
        result["trainings"][training] = {"model": str(made.model), "seconds": made.seconds, "gate": proven}
        result["ok"] &= proven
        say(f"{training}: {made.seconds:.0f} s, gate {'passed' if proven else 'REFUSED: ' + json.dumps(report)}")
        for name in wanted:
            found = probe(
                out / "sets" / name,
                [made.model],
                seeds=seeds,
                untrained=made.untrained,
                presto=weights if (weights := shared / presto.WEIGHTS).is_file() else None,
                out=out / "probes" / name,
                say=say,
            )
            for words in found["warnings"]:
                warn(words)
            result["probes"][name] = found
            result["better"][name] = [d for d in found["differences"] if d["budget"] == ALL_BUDGETS]
    return result


def _train(training: str, members: Sequence[str], out: Path, settings: Sequence[str]) -> Trained:
    """One training, its model file, and those of several seeds before their first step."""
    folder = out / "trainings" / training
    shards = out / "sets" / training
    if not (shards / MANIFEST).exists():
        parts = [open_shards(out / "sets" / name) for name in members]
        together = joined(part.records(np.arange(len(part))) for part in parts)
        origin = {"kind": "probe sets", "sets": list(members), "labels": "not seen"}
        period = parts[0].manifest.period
        write_set(shards, [together], profile_name=PROFILE, period=period, origin=origin)
    given = [f"data.shards={shards}", *settings]
    clock = time.perf_counter()
    train(CONFIGS / f"{training}.toml", folder, overrides=given, say=say)
    seconds = time.perf_counter() - clock
    model = folder / f"{training}.onnx"
    export_model(folder / "last.pt", model)
    untrained = []
    for seed in range(1, UNTRAINED_SEEDS + 1):
        before = folder / f"untrained-{seed}"
        # A training of one step leaves the encoder as it was in front of it.
        train(CONFIGS / f"{training}.toml", before, overrides=[*given, f"run.seed={seed}", "schedule.steps=1"])
        untrained.append(before / "untrained.onnx")
        export_model(before / "untrained.pt", untrained[-1])
    return Trained(model, tuple(untrained), seconds)


def as_text(result: dict[str, Any]) -> str:
    lines = []
    for found in result["probes"].values():
        lines += [text(found), ""]
    lines.append("training against the untrained encoder, mean over all shares of labels (above 0 is better, ± 95 %)")
    rows = list(result["better"])
    heads = list(dict.fromkeys(d["head"] for gaps in result["better"].values() for d in gaps))
    cells = {(name, d["head"]): cell(d, signed=True) for name, gaps in result["better"].items() for d in gaps}
    lines += grid(rows, heads, cells)
    lines.append(f"  {SAME_PIXELS}")
    for name, t in result["trainings"].items():
        lines.append(f"{name}: trained in {number(t['seconds'])} s, gate {'passed' if t['gate'] else 'REFUSED'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.real.pretrain", description=__doc__)
    parser.add_argument("shared", type=Path, help="folder of the real data, e.g. ../shared/real-data")
    parser.add_argument("out", type=Path, help="folder for sets, trainings and probes")
    parser.add_argument("--sets", default=",".join(BY_DEFAULT), help=f"some of {','.join(sets.READERS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="splits of a set, or draws of its labels")
    parser.add_argument("--set", action="append", default=[], help="TABLE.NAME=VALUE in place of the configs'")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(arguments)
    if not args.shared.is_dir():
        show({"skipped": f"no folder {args.shared}"}, args.json, lambda r: f"skipped: {r['skipped']}")
        return OK
    try:
        result = pretrain(args.shared, args.out, args.sets.split(","), args.set, args.seeds)
    except (BadInput, NotProven) as e:
        say(f"error: {e}")
        return BAD_INPUT if isinstance(e, BadInput) else CHECK_FAILED
    show(result, args.json, as_text)
    return OK if result["ok"] else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
