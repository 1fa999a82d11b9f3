"""Model verbs: import, export, gate and show, as functions that return what the command line prints."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2

from model.errors import BadInput
from model.extras import need
from model.families import profile_for
from model.gate import GateReport, gate
from model.modelfile import ModelFile, describe, open_model
from model.parity import DECADES, Distance

BAR_PX, STEP_PX, CHART_PX = 72, 88, 160  # width of a bar, distance between bars, height of the histogram


def import_model(checkpoint: str | Path, family: str, out: str | Path) -> dict[str, Any]:
    """Turns a published checkpoint into a model file.

    Raises:
      BadInput: unknown family, PyTorch missing, a checkpoint that cannot be read, that is not of the family, or that is
        one of ours (`model export` takes those).
      RuntimeError: the exported graph is not the encoder; nothing is written.
    """
    profile_for(family, 1)  # an unknown family is refused before PyTorch is asked for
    need("torch", "model import")
    from model.checkpoints import load_v2
    from model.export import export

    loaded = load_v2(checkpoint)
    if loaded.record:
        raise BadInput(
            f"{checkpoint} is a checkpoint of ours with a profile of its own ({loaded.record.profile.name}): "
            f"use `tessera-beam model export {checkpoint} --out {out}`"
        )
    profile = profile_for(family, loaded.sizes.native_dims)
    origin = {
        "kind": "import",
        "family": family,
        "file_name": loaded.file_name,
        "file_sha256": loaded.file_sha256,
        "args": loaded.args,
    }
    return show(export(loaded, profile, family, origin, out))


def export_model(checkpoint: str | Path, out: str | Path) -> dict[str, Any]:
    """Turns a checkpoint that was trained here into a model file; family, profile and name are in the checkpoint.

    Raises:
      BadInput: PyTorch missing, a checkpoint that cannot be read, or one that was not trained here.
      RuntimeError: the exported graph is not the encoder; nothing is written.
    """
    need("torch", "model export")
    from model.checkpoints import load_v2
    from model.export import export

    loaded = load_v2(checkpoint)
    if loaded.record is None:
        raise BadInput(
            f"{checkpoint} was not trained here, so nothing in it says which profile it wants: "
            f"use `tessera-beam model import {checkpoint} --family v2 --out {out}`"
        )
    origin = {
        "kind": "training",
        "family": loaded.record.profile.family,
        "file_name": loaded.file_name,
        "file_sha256": loaded.file_sha256,
        "args": loaded.args,
        "training": loaded.record.training,
    }
    return show(export(loaded, loaded.record.profile, loaded.record.name, origin, out))


def show_model(path: str | Path) -> dict[str, Any]:
    """What a model file is: `text` for people, the rest for programs. Raises BadInput as `open_model` does."""
    return show(open_model(path))


def show(model: ModelFile) -> dict[str, Any]:
    """The same for a file that is open already."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    return {
        **fields,
        "path": str(model.path),
        "profile": json.loads(model.profile.to_json()),
        "profile_digest": model.profile.digest,
        "encoder": dataclasses.asdict(model.encoder),
        "dims": model.dims,
        "text": describe(model),
    }


def gate_model(
    path: str | Path, against: str | Path | None = None, full: bool = False, report_html: str | Path | None = None
) -> tuple[dict[str, Any], bool]:
    """Runs every check on a model file; writes them as one HTML page where `report_html` names a file.

    Returns:
      what was found, and whether all of it is as it must be.

    Raises:
      BadInput: what `gate` refuses, or a page that cannot be written where it was asked for.
    """
    if report_html is not None and (not Path(report_html).parent.is_dir() or Path(report_html).is_dir()):
        raise BadInput(f"the report cannot be written to {report_html}: give a file in a folder that exists")
    report = gate(path, against, full)
    if report_html is not None:
        Path(report_html).write_text(page(report), encoding="utf-8")
    found: dict[str, Any] = {
        "path": str(path),
        "name": report.model.name,
        "sha256": report.model.sha256,
        "ok": report.ok,
        "checks": [dataclasses.asdict(check) for check in report.checks],
        "errors": None,
    }
    if report.distance:
        found["errors"] = {"edges_of_rms": list(DECADES), "counts": list(report.distance.histogram)}
    return found, report.ok


def page(report: GateReport) -> str:
    """The report as one HTML page without outside files."""
    return _PAGE.render(
        report=report,
        about=describe(report.model),
        failed=sum(not check.ok for check in report.checks),
        bars=_bars(report.distance) if report.distance else [],
        bar_px=BAR_PX,
        chart_px=CHART_PX,
        width_px=STEP_PX * (len(DECADES) + 1),
    )


def _bars(measured: Distance) -> list[dict[str, Any]]:
    """Bars of the error histogram; their height is the share of values."""
    labels = [f"< {DECADES[0]:.0e}", *(f"{edge:.0e} ..." for edge in DECADES)]
    total = sum(measured.histogram)
    return [
        {"x": i * STEP_PX, "height": CHART_PX * count / total, "label": label, "count": count}
        for i, (label, count) in enumerate(zip(labels, measured.histogram, strict=True))
    ]


_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Gate: {{ report.model.name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
pre { background: #f4f5f7; padding: .8rem; white-space: pre-wrap }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #dde1e6 }
.ok { color: #19692c } .failed { color: #a81e1e; font-weight: 600 }
svg { max-width: 100%; height: auto } svg text { font-size: 11px; fill: #1c2430 } rect { fill: #3a6ea5 }
</style>
<h1>{{ report.model.name }}:
{% if failed %}
<span class="failed">{{ failed }} of {{ report.checks|length }} checks failed</span>
{% else %}
<span class="ok">all {{ report.checks|length }} checks passed</span>
{% endif %}
</h1>
<pre>{{ about }}</pre>
<table>
<tr><th>check</th><th></th><th>measured</th><th>must be</th><th>otherwise</th></tr>
{% for check in report.checks %}
<tr><td>{{ check.name }}</td><td class="{{ 'ok' if check.ok else 'failed' }}">{{ 'ok' if check.ok else 'failed' }}</td>
<td>{{ check.measured }}</td><td>{{ check.limit }}</td><td>{{ check.why }}</td></tr>
{% endfor %}
</table>
{% if bars %}
<h2>Errors against the NumPy reference</h2>
<p>Every embedding value of every case, by |error| / rms.</p>
<svg viewBox="0 0 {{ width_px }} {{ chart_px + 50 }}" role="img" aria-label="histogram of errors">
{% for bar in bars %}
<rect x="{{ bar.x }}" y="{{ 16 + chart_px - bar.height }}" width="{{ bar_px }}" height="{{ bar.height }}"/>
<text x="{{ bar.x }}" y="{{ 11 + chart_px - bar.height }}">{{ bar.count }}</text>
<text x="{{ bar.x }}" y="{{ chart_px + 34 }}">{{ bar.label }}</text>
{% endfor %}
</svg>
{% endif %}
</html>
""")
