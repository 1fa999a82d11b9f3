"""Train model: the shipped model, from the synthetic planet to a file that passed the gate and beat its untrained self.

`python -m pipeline.demo.train_model` writes it in place, beside this file; it needs the `train` and `cpu` extras.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import NotProven
from model.extras import need
from model.order import epoch_order
from model.shards import ShardSet, open_shards, write_set
from pipeline import console, inventory
from pipeline.demo import planet, sensors
from pipeline.demo.landscape import Cover
from pipeline.demo.run import FROZEN, PERIOD
from transforms.grid import tile_of
from transforms.periods import period_of
from transforms.regions import region_from_bbox
from transforms.sampling import Rule

MODEL = Path(__file__).with_name("model.onnx")
CONFIG = "demo"
# Every second pixel of rows and columns: 75,000 records, each four pixels from the next but one.
RULE = Rule(every=2, min_dates=10)
LABELS_PER_CLASS = 200
SHARES, SEEDS, HEADS = (0.05, 0.10, 0.30, 1.0), 8, ("knn5", "linear")  # 1 % is one label a class: all by chance
# Of macro-F1, mean over the shares of labels, with logistic regression: below that nothing is shipped.
LEAST_MARGIN = 0.02

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the ground under records is, (N,) each.

    Attributes:
      cover: uint8 of `landscape.Cover`; OUTSIDE where a record is not on the island.
      parcel: uint64 key of the field, roof or stand that it lies in: the same in every tile that sees it.
    """

    cover: NDArray[np.uint8]
    parcel: NDArray[np.uint64]


def truth_of(earth: planet.Planet, tile: NDArray[np.bytes_], row: NDArray[np.int32], col: NDArray[np.int32]) -> Truth:
    """The truth of places in the planet's tiles."""
    cover, parcel = np.zeros(len(tile), np.uint8), np.zeros(len(tile), np.uint64)
    for name in np.unique(tile):
        here = np.flatnonzero(tile == name)
        ground = sensors.ground(tile_of(name.decode()).epsg, earth.size_m)
        top, left, height, width = earth.island(name.decode())
        r, c = row[here] - top, col[here] - left
        there = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        halo = (ground.land.cover.shape[0] - height) // 2
        at = r[there] + halo, c[there] + halo
        cover[here[there]] = ground.land.cover[at]
        parcel[here[there]] = ground.land.key_of[ground.land.parcel[at]]
    return Truth(cover, parcel)


def probe_set(shards: ShardSet, earth: planet.Planet, folder: Path, seed: int, most: int = LABELS_PER_CLASS) -> Path:
    """Some records of each class of ground with that as their label, and their parcel as the group that stays whole."""
    from model.probing.labels import Labels, write_labels

    index = epoch_order(len(shards), seed, 0)[np.arange(len(shards))]
    records = shards.records(index)
    truth = truth_of(earth, records.tile, records.row_px, records.col_px)
    kinds = [c for c in Cover if c != Cover.OUTSIDE]
    chosen = np.sort(np.concatenate([np.flatnonzero(truth.cover == c)[:most] for c in kinds]))
    made = shards.records(index[chosen])
    names = np.array([c.name.lower() for c in Cover])
    origin = {"kind": "probe set", "name": "the synthetic planet", "planet_seed": earth.seed}
    write_set(folder, [made], profile_name=shards.manifest.profile, period=shards.manifest.period, origin=origin)
    labels = Labels(
        name="planet",
        task="classification",
        record=np.arange(len(chosen)),
        label=names[truth.cover[chosen]],
        group=np.array([f"{key:016x}" for key in truth.parcel[chosen].tolist()]),
        lon=made.lon,
        lat=made.lat,
    )
    write_labels(folder, labels)
    return folder


def make_set(work: Path, say: Say) -> tuple[planet.Planet, Path]:
    """The planet and its shard set, made in `work` or found there."""
    from pipeline.shards import ShardOptions, make_shards

    earth = planet.build(work / "planet")
    inv = str(work / "inventory.parquet")
    if not Path(inv).exists():
        inventory.build([(str(earth.catalog.parent), None)], period_of(PERIOD), earth.tiles, inv, now=FROZEN)
    island = region_from_bbox(",".join(map(str, earth.bbox)))
    make_shards(inv, str(work / "shards"), ShardOptions(rule=RULE, region=island), say)
    return earth, work / "shards"


def probed(folder: Path, models: Sequence[Path], out: Path | None, say: Say) -> dict[str, Any]:
    """The probe of the first model: its scores beside the untrained encoder's, and the margin with its interval."""
    from pipeline.probing import ALL_BUDGETS, UNTRAINED_NAME, probe

    result = probe(
        folder, models, sources=("monthly", "untrained"), shares=SHARES, shots=(),
        seeds=SEEDS, dims=(), names=HEADS, out=out, invariant=False, say=say,
    )  # fmt: skip
    name = result["models"][0]["name"]
    gap = next(
        d for d in result["differences"]
        if d["source"] == name and d["head"] == HEADS[-1] and d["budget"] == ALL_BUDGETS
    )  # fmt: skip
    scores = {
        head: {
            source: [
                next(
                    s["mean"] for s in result["scores"]
                    if (s["source"], s["head"], s["share"], s["metric"]) == (source, head, share, result["metric"])
                )
                for share in SHARES
            ]
            for source in (name, UNTRAINED_NAME, "monthly composites")
        }
        for head in HEADS
    }  # fmt: skip
    return {
        "set": "cover classes of the synthetic planet; parcels stay whole, on one side of a split",
        "pixels": "the training saw those of this set, tested ones too, without labels",
        "metric": result["metric"],
        "labels": result["labels"],
        "classes": len(result["classes"]),
        "shares": list(SHARES),
        "seeds": SEEDS,
        "head": HEADS[-1],
        "margin_over_untrained": {k: gap[k] for k in ("mean", "low", "high")},
        "scores": {
            head: {"trained" if s == name else s: v for s, v in found.items()} for head, found in scores.items()
        },
    }


def check_margin(margin: Mapping[str, float], out: Path) -> None:
    """Raises NotProven unless training has gained enough to be told from chance."""
    if margin["mean"] < LEAST_MARGIN or margin["low"] <= 0:
        raise NotProven(
            f"{out} was left as it is: the trained encoder is {margin['mean']:.3f} ({margin['low']:.3f} to "
            f"{margin['high']:.3f}) above the untrained one, and must be {LEAST_MARGIN} above it, all of it above 0"
        )


def write(
    out: Path = MODEL, work: Path | None = None, overrides: Sequence[str] = (), say: Say = print
) -> dict[str, Any]:
    """Makes the model file; what was there stays until the new one has passed.

    Args:
      work: folder for planet, shards and checkpoints; found there, they are taken. A temporary one by default.
      overrides: of the config, "table.name=value".

    Raises:
      BadInput: an extra is missing. NotProven: the gate refuses the file, or it is not better than untrained.
    """
    need("torch", "training the shipped model")
    need("sklearn", "probing the shipped model")
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            return write(out, Path(folder), overrides, say)
    from model.training import checkpoint
    from pipeline.model import export_model, gate_model
    from pipeline.training import train

    work.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    clock = time.perf_counter()

    def took(what: str) -> None:
        nonlocal clock
        times[what] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()
        say(f"{what}: {times[what]} s")

    earth, shards = make_set(work, say)
    took("planet and shards")
    trained = train(CONFIG, work / "run", overrides=[f"data.shards={json.dumps(str(shards))}", *overrides], say=say)
    took("training")
    made = work / "model.onnx"
    export_model(trained["checkpoint"], made)
    labelled = work / "labelled"
    if not labelled.exists():
        probe_set(open_shards(shards), earth, labelled, seed=1)
    found = probed(labelled, [made], work / "probe", say)
    took("probe")
    margin = found["margin_over_untrained"]
    say(f"macro-F1 above the untrained encoder: {margin['mean']:.3f} ({margin['low']:.3f} to {margin['high']:.3f})")
    check_margin(margin, out)
    told = {"planet": {"seed": earth.seed, "size_m": earth.size_m, "period": PERIOD}, "probe": found}
    checkpoint.release(Path(trained["checkpoint"]), work / "release.pt", told)
    shown = export_model(work / "release.pt", made)
    report, ok = gate_model(made, work / "release.pt")
    took("export and gate")
    if not ok:
        refused = ", ".join(c["name"] for c in report["checks"] if not c["ok"])
        raise NotProven(f"{out} was left as it is: the gate refuses the new file ({refused}); see {made}")
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(made.read_bytes())
    part.replace(out)
    say(f"{out}: {shown['name']}, gated")
    return {"out": str(out), "name": shown["name"], "probe": found, "last": trained["last"], "seconds": times}


def main(argv: Sequence[str]) -> int:
    """The program. Returns its exit code."""
    from pipeline.exits import ended

    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.train_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL, help="model file to write; the shipped one by default")
    parser.add_argument(
        "--work", type=Path, help="folder to keep planet, shards, checkpoints and the probe's tables in"
    )
    parser.add_argument("--set", action="append", default=[], help="TABLE.NAME=VALUE in place of the config's")
    said = parser.parse_args(argv)

    def program(**_: Any) -> None:
        console.show(write(said.out, said.work, said.set, console.say), True, str)

    return ended(program, [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
