"""Plots: label efficiency as curves with intervals, and embeddings' dims and invariance as pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from model.probing.table import HEAD_WORDS, WORDS

# Okabe and Ito's colours, which people with colour-blindness tell apart too; the lines of models are thick.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MODEL_KINDS = ("model", "fusion")


def draw(result: dict[str, Any], out: str | Path) -> list[str]:
    """Draws the pictures of a probe's result into a folder; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    if any(s["metric"] == result["metric"] and s["share"] is not None for s in result["scores"]):
        made.append(_efficiency(result, out / "labels.png"))
    if any(d["metric"] == result["metric"] for d in result["dims"]):
        made.append(_dims(result, out / "dims.png"))
    if result["invariance"]:
        made.append(_invariance(result, out / "invariance.png"))
    return [str(path) for path in made]


def _efficiency(result: dict[str, Any], path: Path) -> Path:
    """A panel a head: score over the number of labels, by shares; shots are in the table alone."""
    import matplotlib.pyplot as plt

    metric = result["metric"]
    scores = [s for s in result["scores"] if s["metric"] == metric]
    heads = list(dict.fromkeys(s["head"] for s in scores))
    sources = list(dict.fromkeys(s["source"] for s in scores))
    figure, axes = plt.subplots(1, len(heads), figsize=(4.6 * len(heads), 4.8), sharey=True, squeeze=False)
    for axis, head in zip(axes[0], heads, strict=True):
        for n, source in enumerate(sources):
            mine = [s for s in scores if (s["head"], s["source"], s["share"] is not None) == (head, source, True)]
            mine.sort(key=lambda s: s["given"])
            x, y = np.array([s["given"] for s in mine]), np.array([s["mean"] for s in mine])
            kind = mine[0]["kind"] if mine else ""
            thick = kind in MODEL_KINDS
            style = "--" if kind == "untrained" else ":" if source == "chance" else "-"
            low, high = (np.array([s[k] if s[k] is not None else s["mean"] for s in mine]) for k in ("low", "high"))
            # Side by side, lest the bars of one budget lie on each other.
            shift = 1 + 0.025 * (n - len(sources) / 2)
            axis.errorbar(
                x * shift, y, [y - low, high - y], color=COLOURS[n % len(COLOURS)], linestyle=style, capsize=2,
                linewidth=2.4 if thick else 1.2, elinewidth=0.8, marker="o", markersize=4 if thick else 3, label=source,
                zorder=3 if thick else 2,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel("labels given")
        axis.set_title(HEAD_WORDS[head], fontsize=10)
        axis.grid(alpha=0.25)
    means = [s["mean"] for s in scores if s["share"] is not None and s["mean"] is not None]
    least, most = float(min(means)), float(max(means))
    if result["less_is_better"]:  # a head that fails at few labels would press all the others together
        most = min(most, 2.5 * float(np.median(means)))
    room = 0.12 * (most - least or 1)
    axes[0][0].set_ylim(least - room, most + room)
    axes[0][0].set_ylabel(WORDS[metric] + (" (less is better)" if result["less_is_better"] else ""))
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=min(4, len(names)), fontsize=8, frameon=False)
    figure.suptitle(f"{result['name']}, {result['split']}, {result['seeds']} seeds, bars: 95 %", fontsize=11)
    rows = -(-len(names) // min(4, len(names)))
    figure.tight_layout(rect=(0, 0.045 * rows + 0.01, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _dims(result: dict[str, Any], path: Path) -> Path:
    """Score over the number of values that are kept, before and after quantisation."""
    import matplotlib.pyplot as plt

    found = [d for d in result["dims"] if d["metric"] == result["metric"]]
    lines = list(dict.fromkeys((d["of"], d["precision"], d["budget"]) for d in found))
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    colours = {key: COLOURS[n % len(COLOURS)] for n, key in enumerate(dict.fromkeys((o, b) for o, _, b in lines))}
    for of, precision, budget in lines:
        mine = sorted(
            (d for d in found if (d["of"], d["precision"], d["budget"]) == (of, precision, budget)),
            key=lambda d: int(d["dims"]),
        )
        axis.plot(
            [d["dims"] for d in mine], [d["mean"] for d in mine], color=colours[of, budget], marker="o", markersize=4,
            linestyle="-" if precision == "int8" else "--", label=f"{of}, {precision}, {budget} of labels",
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    ticks = sorted({d["dims"] for d in found})
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("values kept")
    axis.set_ylabel(WORDS[result["metric"]] + (" (less is better)" if result["less_is_better"] else ""))
    axis.set_title(f"{result['name']}, {HEAD_WORDS[found[0]['head']]}", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _invariance(result: dict[str, Any], path: Path) -> Path:
    """Cosine of disjoint halves over dates and over clouds; thin lines are what other pixels have."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.2), sharey=True)
    for axis, key, label in ((axes[0], "by_dates", "valid optical dates"), (axes[1], "by_clouds", "masked share")):
        for n, (model, found) in enumerate(result["invariance"].items()):
            parts = [p for p in found[key] if p["cosine"] is not None]
            x = [(p["from"] + p["to"]) / 2 for p in parts]
            for field, style in (("cosine", "-"), ("centred", "--"), ("chance", ":")):
                words = {"cosine": "halves", "centred": "halves, about the mean", "chance": "other pixels"}[field]
                axis.plot(
                    x, [p[field] for p in parts], linestyle=style, marker="o", markersize=3,
                    color=COLOURS[n % len(COLOURS)], label=f"{model}: {words}",
                )  # fmt: skip
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("cosine")
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{result['name']}: embeddings from disjoint halves of a pixel's observations", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
