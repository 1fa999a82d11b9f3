"""Table: what a probe found, as lines of text."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

WORDS = {
    "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy", "mean_iou": "mean IoU",
    "rmse": "RMSE", "r2": "R2",
}  # fmt: skip
HEAD_WORDS = {
    "knn5": "five nearest neighbours", "linear": "one linear layer", "mlp": "one hidden layer", "unet": "small UNet",
}  # fmt: skip


def number(value: float | None, signed: bool = False) -> str:
    """Three digits that say something: 0.123 or 25.9; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{'+' if signed else ''}.{digits}f}"


def cell(entry: dict[str, Any], signed: bool = False) -> str:
    """`0.612 ±0.034`: the larger half of the interval."""
    reach = [abs(entry[k] - entry["mean"]) for k in ("low", "high") if entry[k] is not None]
    return number(entry["mean"], signed) + (f" ±{number(max(reach))}" if reach else "")


def grid(rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], str]) -> list[str]:
    """Lines of a table; an empty cell is "-"."""
    widths = [max([len(c), *(len(cells.get((r, c), "-")) for r in rows)]) for c in columns]
    first = max([len(r) for r in rows], default=0)
    lines = [" " * first + "".join(f"  {c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    lines += [
        f"{r:<{first}}" + "".join(f"  {cells.get((r, c), '-'):>{w}}" for c, w in zip(columns, widths, strict=True))
        for r in rows
    ]
    return lines


def text(result: dict[str, Any]) -> str:
    """All of a probe's result as a person reads it."""
    metric = result["metric"]
    lines = [
        f"{result['name']}: {result['task']} of {result['labels']:,} labelled records in {result['groups']:,} groups, "
        f"{result['split']}, {result['seeds']} seeds",
    ]
    if result["classes"]:
        lines.append("  classes: " + ", ".join(f"{c} {n}" for c, n in result["classes"].items()))
    for name, why in result["skipped"].items():
        lines.append(f"  left out: {name}: {why}")
    better = "less is better" if result["less_is_better"] else "more is better"
    for head in _unique(s["head"] for s in result["scores"]):
        mine = [s for s in result["scores"] if s["head"] == head and s["metric"] == metric]
        lines += ["", f"{WORDS[metric]} ({better}, ± 95 %) of {HEAD_WORDS[head]}, by labels given"]
        cells = {(s["source"], s["budget"]): cell(s) for s in mine}
        lines += grid(_unique(s["source"] for s in mine), _unique(s["budget"] for s in mine), cells)
    lines += _differences(result)
    lines += _dims(result)
    lines += _invariance(result)
    return "\n".join([*lines, "", f"{result['seconds']} s"])


def _differences(result: dict[str, Any]) -> list[str]:
    found = result["differences"]
    if not found:
        return []
    lines = ["", f"how much better than the untrained encoder in {WORDS[result['metric']]}, pair by pair (± 95 %)"]
    rows = {f"{d['source']}, {d['head']}" for d in found}
    ordered = [r for r in _unique(f"{d['source']}, {d['head']}" for d in found) if r in rows]
    cells = {(f"{d['source']}, {d['head']}", d["budget"]): cell(d, signed=True) for d in found}
    return lines + grid(ordered, _unique(d["budget"] for d in found), cells)


def _dims(result: dict[str, Any]) -> list[str]:
    found = [d for d in result["dims"] if d["metric"] == result["metric"]]
    if not found:
        return []
    lines = ["", f"{WORDS[result['metric']]} of {HEAD_WORDS[found[0]['head']]} by the first values of an embedding"]
    cells = {(f"{d['of']}, {d['dims']} {d['precision']}", d["budget"]): cell(d) for d in found}
    return lines + grid(_unique(r for r, _ in cells), _unique(c for _, c in cells), cells)


def _invariance(result: dict[str, Any]) -> list[str]:
    if not result["invariance"]:
        return []
    columns = ("cosine", "chance", "centred", "found", "pixels")
    cells: dict[tuple[str, str], str] = {}

    def row(name: str, entry: dict[str, Any] | None) -> None:
        if entry:
            cells.update({(name, c): str(entry[c]) if c == "pixels" else number(entry[c]) for c in columns})

    for model, found in result["invariance"].items():
        row(f"{model}: disjoint halves", found["halves"])
        for part in found["by_dates"]:
            row(f"  {part['from']:.0f} to {part['to']:.0f} dates", part)
        for part in found["by_clouds"]:
            row(f"  {part['from']:.0%} to {part['to']:.0%} masked", part)
        row("  radar removed", found["radar_removed"])
    lines = ["", "alike: the cosine of two embeddings of a pixel, of two pixels (chance), about the mean, pixels found"]
    return lines + grid(_unique(r for r, _ in cells), columns, cells)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
