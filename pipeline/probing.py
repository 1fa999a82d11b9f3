"""Probing: what a model's embeddings of a labelled set are worth, beside what can be had without the model."""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.extras import need
from model.families import PREFIXES
from model.modelfile import ModelFile, open_model
from model.probing import baselines, fusion, heads, invariance, splits
from model.probing.evaluate import (
    BASELINE,
    FUSION,
    MODEL,
    OTHER,
    UNTRAINED,
    Experiment,
    RecordTask,
    Run,
    Source,
    Task,
    difference,
    experiment,
    interval,
    metrics_of,
)  # fmt: skip
from model.probing.labels import SEGMENTATION, Labels, read_labels
from model.probing.regions import overlap
from model.probing.scores import LESS_IS_BETTER, METRICS, Interval
from model.probing.splits import Budget
from model.shards import Batch, Manifest, ShardSet, open_shards
from pipeline.probe_embed import Embedded, RecordEncoder, prefix
from transforms.grid import bbox_of

FORMAT, VERSION = "tessera-beam/probe", 1
Floats = NDArray[np.float32]

UNTRAINED_NAME, PRESTO, PRESTO_ALL = "untrained encoder", "Presto", "Presto, all its inputs"
SOURCES = ("chance", "steps", "monthly", "harmonic", "pca", "untrained", "presto")
NAMES = {"steps": "raw steps", "monthly": "monthly composites", "harmonic": "harmonic fit", "pca": "PCA of the series"}
SEEDS = 10
UNTRAINED_SEEDS = 3  # encoders of random weights whose scores are averaged: one alone may be lucky
DIMS_BUDGETS = (0.10, 1.0)  # shares at which prefixes are compared
DIMS_HEAD = "linear"
ALL_BUDGETS = "mean of shares"
PRESTO_FILE = "presto.npz"


def probe(
    set_folder: str | Path,
    models: Sequence[str | Path],
    *,
    sources: Sequence[str] = SOURCES,
    fuse: Sequence[str | Path] = (),
    shares: Sequence[float] = splits.SHARES,
    shots: Sequence[int] = splits.SHOTS,
    seeds: int = SEEDS,
    dims: Sequence[int] = PREFIXES,
    names: Sequence[str] = (),
    untrained: Sequence[str | Path] = (),
    presto: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    invariant: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Probes models on a labelled set; all features see the same splits and labels.

    Args:
      set_folder: a probe set: shards with labels beside their manifest.
      models: model files.
      sources: baselines, some of `SOURCES`; what cannot be had is left out with its reason.
      fuse: .npy files (records of the set, D) of other embeddings, which are probed alone and side by side with the
        models': in pairs and all together.
      shares, shots: budgets of labels: shares of the training side, labels of each class.
      seeds: random splits; of a set with a split of its own, draws of the labels that are given.
      dims: prefixes of embeddings to compare, where a model has so many values.
      names: heads; by default all three, or for a segmentation the UNet and one linear layer.
      untrained: model files of random weights; by default some of the first model's sizes are made, which needs torch.
      presto: published weights of Presto.
      out: folder for result and pictures.
      device: auto, cpu or cuda.
      invariant: whether the models' invariance is measured too.

    Returns:
      `scores` (source, head, budget, metric, mean, low, high, given), `differences` to the untrained encoder, `dims`,
      `invariance`, `regions`, `warnings`, `skipped`, and what the set is. The scores of models are those of the codes
      that are stored, at full length.

    Raises:
      BadInput: a set, model, file or argument that cannot be used.
    """
    clock = time.perf_counter()
    need("sklearn", "train probe")
    if unknown := [s for s in sources if s not in SOURCES]:
        raise BadInput(f"source {unknown[0]!r}: there are {', '.join(SOURCES)}")
    if not models and not fuse and not sources:
        raise BadInput("nothing to probe: give a model, --fuse or a source")
    shards = open_shards(set_folder)
    labels = read_labels(set_folder, len(shards))
    opened = [open_model(m) for m in models]
    if len({m.name for m in opened}) < len(opened):
        raise BadInput("two of the models have one name: they are one file, or copies of it")
    names = tuple(names) or _heads_of(labels.task)
    if wrong := [h for h in names if h not in (*heads.HEADS, "unet") or (h == "unet") > (labels.task == SEGMENTATION)]:
        raise BadInput(f"head {wrong[0]!r} for a {labels.task}: there are {', '.join(_heads_of(labels.task))}")
    job = _Job(shards, labels, opened, tuple(sources), say)
    job.embed(device, untrained)
    job.read(fuse)
    labels = job.settle()
    result = job.about(seeds)
    task = _task_of(labels)
    made = experiment(task, [*(Budget(share=s) for s in shares), *(Budget(shots=s) for s in shots)], seeds)
    job.skipped |= {f"{name} labels": why for name, why in made.skipped.items()}
    runs: list[Run] = []
    for source in job.sources(presto, set_folder):
        say(f"probing {source.name}")
        runs += made.run(source, names)
    result["scores"] = [entry for run in runs for entry in _entries(run)]
    result["differences"] = _differences(runs, names, result["metric"])
    result["dims"] = job.dims(made, dims, names)
    longest = max((m.dims for m in opened), default=0)
    job.skipped |= {f"{d} values": "no model has so many" for d in dims if opened and d > longest and d not in PREFIXES}
    result["invariance"] = job.invariance(device) if invariant else {}
    result["skipped"] = job.skipped
    result["seconds"] = round(time.perf_counter() - clock, 1)
    if out:
        _write(result, Path(out))
    return result


class _Job:
    """The parts of one probe, and what they leave for each other."""

    def __init__(
        self,
        shards: ShardSet,
        labels: Labels,
        models: list[ModelFile],
        wanted: tuple[str, ...],
        say: Callable[[str], None],
    ) -> None:
        self.shards, self.labels, self.models, self.wanted, self.say = shards, labels, models, wanted, say
        self.skipped: dict[str, str] = {}
        self._embedded: dict[str, Embedded] = {}
        self._untrained: list[Embedded] = []
        self._others: dict[str, Floats] = {}
        self._kept = np.ones(len(labels), bool)

    def embed(self, device: str, untrained: Sequence[str | Path]) -> None:
        for model in self.models:
            self.say(f"embedding {len(self.labels):,} records with {model.name}")
            self._embedded[model.name] = RecordEncoder(model, device).embed(self.shards, self.labels.record)
        if "untrained" not in self.wanted:
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = [open_model(u) for u in untrained] or self._random(Path(folder))
            except BadInput as e:
                if untrained:
                    raise
                self.skipped[UNTRAINED_NAME] = str(e)
                return
            for n, file in enumerate(files, 1):
                self.say(f"embedding with an untrained encoder, {n} of {len(files)}")
                self._untrained.append(RecordEncoder(file, device).embed(self.shards, self.labels.record))

    def _random(self, folder: Path) -> list[ModelFile]:
        """Encoders of the first model's sizes and profile with random weights. Raises BadInput where there is none."""
        if not self.models:
            raise BadInput("no model is given whose sizes it could have")
        need("torch", "making the untrained encoder")
        from model.checkpoints import Checkpoint, args_of
        from model.export import export
        from pipeline.demo.untrained import random_weights

        like, made = self.models[0], []
        for seed in range(1, UNTRAINED_SEEDS + 1):
            tensors = random_weights(like.encoder, seed)
            # Biases of TESSERA's own GRU, which are not called so, start at zero too.
            tensors = {k: np.zeros_like(v) if ".b_" in k or ".bias_" in k else v for k, v in tensors.items()}
            origin = {"kind": "untrained", "family": like.profile.family, "seed": seed, "args": args_of(like.encoder)}
            checkpoint = Checkpoint(tensors, like.encoder, args_of(like.encoder))
            made.append(export(checkpoint, like.profile, "untrained", origin, folder / f"{seed}.onnx"))
        return made

    def read(self, fuse: Sequence[str | Path]) -> None:
        for path in fuse:
            name = Path(path).stem
            if name in self._others or name in self._embedded:
                raise BadInput(f"{path}: another source is called {name} too; rename the file")
            self._others[name] = fusion.read_features(path, len(self.shards))[self.labels.record]

    def settle(self) -> Labels:
        """Leaves out records that some source has no embedding of, so that all are compared on the same ones."""
        for x in [e.stored for e in (*self._embedded.values(), *self._untrained)]:
            self._kept &= np.isfinite(x).all(1)
        for x in self._others.values():
            self._kept &= ~np.isnan(x).all(1)
        if lost := int((~self._kept).sum()):
            self.skipped[f"{lost:,} records"] = "a source has no embedding of them"
        if not self._kept.any():
            raise BadInput("no record has an embedding of every source")
        self.all, self.labels = self.labels, self.labels[self._kept]
        return self.labels

    def about(self, seeds: int) -> dict[str, Any]:
        labels = self.labels
        metric = next(iter(METRICS[labels.task]))
        tested = labels if labels.test is None else labels[labels.test]
        digest = digest_of(self.shards.manifest)
        places = {m.name: (m.origin, tested.lon, tested.lat, digest, bbox_of) for m in self.models}
        regions = {name: overlap(*place) for name, place in places.items()}
        said = [f"{name}: {found['warning']}" for name, found in regions.items() if found["warning"]]
        return {
            "format": FORMAT,
            "version": VERSION,
            "set": str(self.shards.folder),
            "name": labels.name,
            "task": labels.task,
            "metric": metric,
            "less_is_better": metric in LESS_IS_BETTER,
            "records": len(self.shards),
            "labels": len(labels),
            "classes": {c: int((labels.label == c).sum()) for c in labels.classes},
            "groups": len(set(labels.group.tolist())),
            "split": "the set's own split" if labels.test is not None else "random splits that keep groups whole",
            "seeds": seeds,
            "models": [{"name": m.name, "sha256": m.sha256, "dims": m.dims, "origin": m.origin} for m in self.models],
            "regions": regions,
            "warnings": said,
        }

    def sources(self, presto: str | Path | None, folder: str | Path) -> list[Source]:
        """Everything that is probed, models first."""
        found = [
            Source(
                m.name, MODEL, (self._embedded[m.name].stored[self._kept],), of=m.name, dims=m.dims, precision="int8"
            )
            for m in self.models
        ]
        found += [Source(name, OTHER, (x[self._kept],)) for name, x in self._others.items()]
        if self._others:
            parts = {s.name: s.variants[0] for s in found}
            for names in fusion.combinations(list(parts)):
                x, blocks = fusion.fused(parts, names)
                found.append(Source(" + ".join(names), FUSION, (x,), blocks))
        if self._untrained:
            found.append(Source(UNTRAINED_NAME, UNTRAINED, tuple(e.stored[self._kept] for e in self._untrained)))
        return found + self._baselines(presto, Path(folder))

    def _baselines(self, presto: str | Path | None, folder: Path) -> list[Source]:
        batch = self.shards.take(self.labels.record)
        made: dict[str, Floats] = {}
        if "monthly" in self.wanted or "pca" in self.wanted:
            monthly = baselines.monthly(batch)
            made |= {NAMES["monthly"]: monthly} if "monthly" in self.wanted else {}
        if "harmonic" in self.wanted:
            made[NAMES["harmonic"]] = baselines.harmonic(batch)
        if "pca" in self.wanted:
            made[NAMES["pca"]] = baselines.components(monthly)
        if "steps" in self.wanted:
            if (raw := baselines.steps(batch)) is None:
                self.skipped[NAMES["steps"]] = "over a tenth of them are masked, or records have different numbers"
            else:
                made[NAMES["steps"]] = raw
        if "presto" in self.wanted:
            made |= self._presto(batch, presto, folder)
        if "chance" in self.wanted:
            made["chance"] = np.zeros((len(batch), 1), np.float32)
        return [Source(name, BASELINE, (x,)) for name, x in made.items()]

    def _presto(self, batch: Batch, path: str | Path | None, folder: Path) -> dict[str, Floats]:
        if path is None:
            self.skipped[PRESTO] = "no weights given; --presto takes default_model.pt of nasaharvest/presto"
            return {}
        try:
            need("torch", "Presto's encoder")
        except BadInput as e:
            self.skipped[PRESTO] = str(e)
            return {}
        from model.probing import presto

        weights = presto.read_weights(path)
        made = {}
        records = self.labels.record
        places = self.shards.records(records)
        lat, lon = (
            np.where(np.isnan(a), b, a) for a, b in ((places.lat, self.labels.lat), (places.lon, self.labels.lon))
        )
        try:
            made[PRESTO] = presto.embed(weights, presto.inputs_of(batch, lat, lon))
        except BadInput as e:
            self.skipped[PRESTO] = str(e)
        if (folder / PRESTO_FILE).is_file():
            with np.load(folder / PRESTO_FILE) as file:
                fields = {f.name: file[f.name][records] for f in dataclasses.fields(presto.Inputs)}
            made[PRESTO_ALL] = presto.embed(weights, presto.Inputs(**fields))
        return made

    def dims(self, made: Experiment, dims: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Prefixes of every model, as floats and as codes."""
        head = DIMS_HEAD if DIMS_HEAD in names else names[0]
        budgets = [b for b in made.budgets if b.share in DIMS_BUDGETS]
        found: list[dict[str, Any]] = []
        if not dims or not budgets:
            return found
        for model in self.models:
            for n in sorted({*(d for d in dims if 0 < d <= model.dims), model.dims}, reverse=True):
                for precision in ("fp32", "int8"):
                    self.say(f"probing {n} values of {model.name}, {precision}")
                    x = prefix(self._embedded[model.name], model, n, precision == "int8")[self._kept]
                    source = Source(f"{model.name} {n} {precision}", MODEL, (x,), (), model.name, n, precision)
                    found += [e for run in made.run(source, (head,), budgets) for e in _entries(run)]
        return found

    def invariance(self, device: str) -> dict[str, Any]:
        """Of every model, on some of the records."""
        some = self.labels.record[np.sort(splits.shuffled(len(self.labels), "invariance")[: invariance.MOST])]
        batch = self.shards.take(some)
        found = {}
        for model in self.models:
            self.say(f"invariance of {model.name}")
            found[model.name] = invariance.measure(batch, RecordEncoder(model, device).stored)
        return found


def digest_of(manifest: Manifest) -> str:
    """What a shard set holds, hexadecimal: as the record of a training on it names it."""
    entries = [[s.records, s.sha256] for s in manifest.shards]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _heads_of(task: str) -> tuple[str, ...]:
    return ("unet", "linear") if task == SEGMENTATION else heads.HEADS


def _task_of(labels: Labels) -> Task:
    if labels.task != SEGMENTATION:
        return RecordTask(labels)
    need("torch", "the head for segmentations")
    from model.probing.segmentation import PatchTask

    return PatchTask(labels)


def _numbers(found: Interval) -> dict[str, float | None]:
    values = {"mean": found.mean, "low": found.low, "high": found.high}
    return {k: round(float(v), 6) if np.isfinite(v) else None for k, v in values.items()}


def _entries(run: Run) -> list[dict[str, Any]]:
    source = run.source
    about = {
        "source": source.name, "kind": source.kind, "head": run.head, "budget": run.budget.name,
        "share": run.budget.share, "shots": run.budget.shots, "given": round(run.labels, 1), "train": run.train,
        "test": run.test, "of": source.of, "dims": source.dims or source.variants[0].shape[1],
        "precision": source.precision,
    }  # fmt: skip
    return [{**about, "metric": metric, **_numbers(interval(run, metric))} for metric in metrics_of(run)]


def _differences(runs: Sequence[Run], names: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Of models and fusions to the untrained encoder: each budget, and the mean over all shares."""
    base = {(r.head, r.budget): r for r in runs if r.source.kind == UNTRAINED}
    found = []
    for name in dict.fromkeys(r.source.name for r in runs if r.source.kind in (MODEL, OTHER, FUSION)):
        for head in names:
            mine = [r for r in runs if r.source.name == name and r.head == head and (head, r.budget) in base]
            parts = [(r.budget.name, [r]) for r in mine]
            parts.append((ALL_BUDGETS, [r for r in mine if r.budget.share is not None]))
            for budget, some in parts:
                if some:
                    gap = difference(some, [base[head, r.budget] for r in some], metric)
                    found.append({"source": name, "to": UNTRAINED_NAME, "head": head, "budget": budget,
                                  "metric": metric, **_numbers(gap)})  # fmt: skip
    return found


def _write(result: dict[str, Any], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: there is a file of that name")
    need("matplotlib", "the pictures of train probe")
    from model.probing.plots import draw

    out.mkdir(parents=True, exist_ok=True)
    result["pictures"] = draw(result, out)
    (out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
