"""Ablate: the demo's encoder with one thing changed at a time, and what each change costs a small head.

`python -m pipeline.demo.ablate` trains on the synthetic planet and probes through the model files; it needs the `train`
and `cpu` extras. `--quick` is for a look at the program, not at the methods.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.extras import need
from model.probing.scores import METRICS, Interval, t_975
from model.probing.splits import Budget
from model.probing.table import number
from model.shards import ShardSet, open_shards, write_set
from pipeline import console

FORMAT, VERSION = "tessera-beam/ablation", 1
SEEDS, STEPS = 3, 300
QUICK_SEEDS, QUICK_STEPS, QUICK_BATCH = 1, 20, 64
QUICK = ("no-mix", "dates-4")
HEAD, SHARES, SPLITS = "linear", (0.05, 0.30), 5
METRIC = "macro_f1"
BASE = "base"
# Of every run. The set's own statistics, so that families differ in what they are, not in what they standardise by.
SHARED = ('encoder.statistics="shards"', "run.threads=1", "run.ahead=1", "run.save-every=100000")
NOT_STATED = "not stated"

Floats = NDArray[np.float64]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One thing that is done in another way.

    Attributes:
      name: as --only has it. what: in words.
      changes: of the config, "table.name=value".
      paper: where the paper's text, as far as it is known here (arXiv 2506.20380), sees it against the base.
      by_tile: whether records are stored as they were sampled: tile by tile, row by row.
    """

    name: str
    what: str
    changes: tuple[str, ...] = ()
    paper: str = NOT_STATED
    by_tile: bool = False


VARIANTS = (
    Variant(BASE, "random dates, shuffled, mixed, quantised at the end, attention, 128 values, 10 dates", paper=""),
    Variant("same-dates", "both views see the same, evenly spread dates", ("views.random=false",)),
    Variant(
        "unshuffled", "records in the order of tiles, rows and columns", ('data.order="stored"',),
        "worse, without a figure", by_tile=True,
    ),
    Variant("no-mix", "no mix regulariser", ('loss.mix="none"',), "worse, without a figure"),
    Variant("no-qat", "never quantised in training", ("qat.start=1.0",), "nearly the same"),
    Variant("qat-always", "quantised from the first step on", ("qat.start=0.0",)),
    Variant(
        "gru", "TESSERA's own GRU: family v1.1-mpc, with its reducer and no output norm",
        ('encoder.family="v1.1-mpc"', "encoder.stored-dims=128"),
    ),
    Variant("mean", "mean over dates in place of attention", ('encoder.pooling="mean"',)),
    Variant("dims-64", "64 values", ("encoder.native-dims=64",)),
    Variant("dims-32", "32 values", ("encoder.native-dims=32",)),
    Variant("dates-8", "views of 8 dates a sensor", ("views.s2-length=8", "views.s1-length=8")),
    Variant("dates-4", "views of 4 dates a sensor", ("views.s2-length=4", "views.s1-length=4")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      variants: the base first. seeds, steps: of every variant's trainings.
      more: changes of all of them, base included.
    """

    variants: tuple[Variant, ...]
    seeds: int = SEEDS
    steps: int = STEPS
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise BadInput(f"--seeds {self.seeds} --steps {self.steps}: give 1 or more")

    @property
    def runs(self) -> int:
        return len(self.variants) * self.seeds


def chosen(names: Sequence[str]) -> tuple[Variant, ...]:
    """The base and the variants of these names, in the order of `VARIANTS`; all of them for no name.

    Raises:
      BadInput: a name that is none.
    """
    known = [v.name for v in VARIANTS]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--only {unknown[0]}: there are {', '.join(known)}")
    return tuple(v for v in VARIANTS if not names or v.name == BASE or v.name in names)


def over_seeds_and_splits(scores: Floats, train: int, test: int) -> Interval:
    """The mean of scores (K, S) of K trainings and S splits of one labelled set, with its 95 % interval.

    Trainings are independent, splits overlap: the variance of the mean is that of the trainings' means over K, and that
    of the splits' means times (1 / S + test / train), as in `scores.over_splits`. Degrees of freedom after
    Satterthwaite. One training says nothing about trainings: the interval is that of the splits then.
    """
    mean = float(scores.mean())
    k, s = scores.shape
    parts = []  # (variance of the mean, degrees of freedom)
    if k > 1:
        parts.append((float(scores.mean(1).var(ddof=1)) / k, k - 1))
    if s > 1:
        parts.append((float(scores.mean(0).var(ddof=1)) * (1 / s + test / train), s - 1))
    variance = sum(v for v, _ in parts)
    if not parts:
        return Interval(mean, math.nan, math.nan)
    if not variance:
        return Interval(mean, mean, mean)
    # By shares of the variance: squares of what is next to nothing are nothing. 7 must not come out as 6.99..
    freedom = max(1, int(1 / sum((v / variance) ** 2 / f for v, f in parts) + 1e-9))
    reach = t_975(freedom) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)


def stored_by_tile(shards: ShardSet, folder: Path) -> Path:
    """The same records as they were sampled: tile by tile, row by row, column by column."""
    if not (folder / "manifest.json").exists():
        everything = shards.records(np.arange(len(shards)))
        order = np.lexsort((everything.col_px, everything.row_px, everything.tile))
        made = shards.manifest
        write_set(
            folder, [shards.records(order)], profile_name=made.profile, period=made.period,
            origin={"ablation": "by tile"}, shard_records=made.shard_records, sources=made.sources,
        )  # fmt: skip
    return folder


class Ablation:
    """The runs of a plan in a folder: what is there already is taken."""

    def __init__(self, plan: Plan, work: Path, say: Say) -> None:
        """Makes or finds the planet, its shards and the labelled set. Raises BadInput where an extra is missing."""
        need("torch", "the ablations")
        need("sklearn", "the ablations")
        from model.probing.evaluate import RecordTask, experiment
        from model.probing.labels import read_labels
        from pipeline.demo.train_model import make_set, probe_set

        self.plan, self.work, self.say = plan, work, say
        work.mkdir(parents=True, exist_ok=True)
        earth, self.shards = make_set(work, say)
        shards = open_shards(self.shards)
        self.by_tile = work / "by-tile"
        if any(v.by_tile for v in plan.variants):
            stored_by_tile(shards, self.by_tile)
        labelled = work / "labelled"
        if not (labelled / "labels.parquet").exists():
            probe_set(shards, earth, labelled, seed=1)
        self.labelled = open_shards(labelled)
        self.labels = read_labels(labelled, len(self.labelled))
        self.experiment = experiment(RecordTask(self.labels), [Budget(share=s) for s in SHARES], SPLITS)
        self.sides = (0, 0)

    def scores(self, variant: Variant, seed: int) -> Floats:
        """(S,) of the splits: the mean over the shares of labels, through the exported file."""
        from model.modelfile import open_model
        from model.probing.evaluate import MODEL, Source
        from pipeline.model import export_model
        from pipeline.probe_embed import RecordEncoder
        from pipeline.training import read_config, train

        shards = self.by_tile if variant.by_tile else self.shards
        changes = [
            f"data.shards={json.dumps(str(shards))}", f"run.seed={seed}", f"schedule.steps={self.plan.steps}",
            *SHARED, *self.plan.more, *variant.changes,
        ]  # fmt: skip
        folder = self.work / f"{variant.name}-{seed}"
        kept, key = folder / "scores.json", read_config("demo", changes).digest
        if kept.exists() and (found := json.loads(kept.read_text()))["config"] == key:
            self.sides = tuple(found["sides"])
            return np.array(found["scores"])
        run = train("demo", folder, overrides=changes, resume=_same(folder, key), say=lambda line: None)
        made = folder / "model.onnx"
        export_model(run["checkpoint"], made)
        model = open_model(made)
        x = RecordEncoder(model).embed(self.labelled, self.labels.record).stored
        runs = list(self.experiment.run(Source(model.name, MODEL, (x,)), (HEAD,)))
        scores: Floats = np.mean([r.scores(METRICS[self.labels.task][METRIC]) for r in runs], axis=0)
        self.sides = runs[0].train, runs[0].test
        kept.write_text(json.dumps({"config": key, "scores": scores.tolist(), "sides": self.sides}))
        return scores

    def run(self) -> dict[str, Any]:
        """All of it: a row a variant."""
        plan, clock = self.plan, time.perf_counter()
        scores = {v.name: np.full((plan.seeds, SPLITS), math.nan) for v in plan.variants}
        done = 0
        for seed in range(plan.seeds):
            for variant in plan.variants:
                scores[variant.name][seed] = found = self.scores(variant, seed + 1)
                done += 1
                took = time.perf_counter() - clock
                self.say(f"{variant.name}, seed {seed + 1}: macro-F1 {found.mean():.3f}, {took:,.0f} s")
                if done == 1 and plan.runs > 1:
                    self.say(f"{plan.runs} runs: some {plan.runs * took / 60:,.0f} minutes in all")
        rows = [self._row(v, scores) for v in plan.variants]
        return {
            "format": FORMAT, "version": VERSION, "seeds": plan.seeds, "steps": plan.steps, "splits": SPLITS,
            "head": HEAD, "shares": list(SHARES), "metric": METRIC, "labels": len(self.labels),
            "records": len(open_shards(self.shards)), "changes": list(plan.more), "rows": rows,
            "seconds": round(time.perf_counter() - clock, 1),
        }  # fmt: skip

    def _row(self, variant: Variant, scores: dict[str, Floats]) -> dict[str, Any]:
        mine, base = scores[variant.name], scores[BASE]
        gap = None if variant.name == BASE else over_seeds_and_splits(mine - base, *self.sides)
        return {
            "variant": variant.name,
            "what": variant.what,
            "score": _numbers(over_seeds_and_splits(mine, *self.sides)),
            "difference": _numbers(gap) if gap else None,
            "paper": variant.paper,
            "ours": direction(gap) if gap else "",
            "scores": mine.tolist(),
        }


def _same(folder: Path, key: str) -> bool:
    """Whether what the folder holds is this training, as far as it says: else it is begun anew."""
    mark = folder / "config.txt"
    same = mark.exists() and mark.read_text() == key
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)
    return same


def _numbers(found: Interval) -> dict[str, float | None]:
    values = dataclasses.asdict(found)
    return {k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()}


def direction(gap: Interval) -> str:
    """A difference to the base in a word."""
    if gap.low > 0:
        return "better"
    return "worse" if gap.high < 0 else "cannot be told"


def cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """A row as a person reads it."""

    def said(entry: dict[str, Any] | None, signed: bool = False) -> str:
        if entry is None:
            return "-"
        reach = "" if entry["low"] is None else f" ±{number(entry['mean'] - entry['low'])}"
        return number(entry["mean"], signed) + reach

    return row["variant"], said(row["score"]), said(row["difference"], True), row["paper"] or "-", row["ours"] or "-"


def text(result: dict[str, Any]) -> str:
    """The table, and what it is of."""
    head = ("variant", "macro-F1", "less base", "paper", "ours")
    rows = [head, *(cells(row) for row in result["rows"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    shares = ", ".join(f"{100 * s:g}" for s in result["shares"])
    seeds = "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    about = [
        f"{result['steps']:,} steps of {seeds}, {result['splits']} splits of {result['labels']:,} labels, one linear "
        f"layer at {shares} % of the training side's, ± 95 %"
    ]
    if result["changes"]:
        about.append(f"with {', '.join(result['changes'])}")
    if result["seeds"] == 1:
        about.append("one seed: the intervals say nothing about other trainings")
    words = [f"{row['variant']}: {row['what']}" for row in result["rows"]]
    return "\n".join([*about, "", *lines, "", *words, "", f"{result['seconds']:,} s"])


def ablate(plan: Plan, work: Path | None = None, say: Say = console.say) -> dict[str, Any]:
    """Runs a plan.

    Args:
      work: folder that keeps planet, shards and trainings; a temporary one by default.

    Raises:
      BadInput: an extra is missing.
    """
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            return Ablation(plan, Path(folder), say).run()
    return Ablation(plan, work, say).run()


def main(argv: Sequence[str]) -> int:
    """The program. Returns its exit code."""
    from pipeline.exits import ended

    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.ablate", description=__doc__)
    parser.add_argument("--seeds", type=int, help=f"trainings of every variant; {SEEDS} by default")
    parser.add_argument("--steps", type=int, help=f"of every training; {STEPS} by default")
    parser.add_argument("--only", default="", help=f"beside the base, of {', '.join(v.name for v in VARIANTS[1:])}")
    parser.add_argument("--work", type=Path, help="folder to keep planet, shards and trainings in; goes on from it")
    parser.add_argument("--set", action="append", default=[], help="TABLE.NAME=VALUE in every training's config")
    parser.add_argument("--quick", action="store_true", help="two variants, one seed, some steps: shows the program")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    said = parser.parse_args(argv)

    def program(**_: Any) -> None:
        names = [name.strip() for name in said.only.split(",") if name.strip()] or (QUICK if said.quick else ())
        seeds, steps = (QUICK_SEEDS, QUICK_STEPS) if said.quick else (SEEDS, STEPS)
        more = ((f"data.batch={QUICK_BATCH}",) if said.quick else ()) + tuple(said.set)
        seeds, steps = (d if s is None else s for s, d in ((said.seeds, seeds), (said.steps, steps)))
        plan = Plan(chosen(names), seeds, steps, more)
        console.show(ablate(plan, said.work), said.json, text)

    return ended(program, [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
