"""Gate page: a gate's report as one HTML page that a reviewer reads in a minute."""

import math
from collections.abc import Sequence
from typing import Any

import jinja2

from model import limits
from model.describe import describe
from model.gate_report import GROUPS, GateReport
from model.modelfile import ModelFile
from model.parity import DECADES, STEPS, Distance
from model.variant import PRECISIONS

BAR_PX, STEP_PX, CHART_PX = 52, 62, 150  # width of a bar, distance between bars, height of a histogram
ABOVE_PX, BELOW_PX = 18, 40  # room for counts and labels


def page(report: GateReport) -> str:
    """The report as one HTML page without outside files."""
    failed = [check for check in report.checks if not check.ok]
    return _PAGE.render(
        report=report,
        failed=failed,
        facts=_facts(report.model),
        about=describe(report.model),
        groups=[
            (words, [c for c in report.checks if c.group == group])
            for group, words in GROUPS.items()
            if any(c.group == group for c in report.checks)
        ],
        charts=_charts(report.distance, report.model.variant.precision) if report.distance else [],
        precisions=_precisions(report.model.variant.precision),
        others=limits.OTHERS,
        px={"bar": BAR_PX, "chart": CHART_PX, "above": ABOVE_PX, "below": BELOW_PX},
    )


def _facts(model: ModelFile) -> dict[str, str]:
    """What the file is, in a few lines; `describe` has the rest."""
    profile, sizes, variant = model.profile, model.encoder, model.variant
    cut = (
        f"the first {profile.dims} of {profile.native_dims} values"
        if profile.dims < profile.native_dims
        else "all values"
    )
    return {
        "profile": f"{profile.name}, family {profile.family}",
        "takes": f"{' or '.join(profile.s2_sources)}; {' or '.join(profile.s1_sources)}",
        "gives": f"{profile.dims} int8 codes and a scale per pixel ({cut})",
        "encoder": f"width {sizes.width}, {sizes.layers} layers, {sizes.heads} heads, pooling {sizes.pooling}",
        "numbers": f"{variant.precision}: {PRECISIONS[variant.precision]}",
        "runs on": " and ".join(variant.devices),
        "file": f"{model.size_bytes:,} bytes, sha256 {model.sha256}",
        "weights": f"sha256 {model.weights_sha256}",
    }


def _charts(measured: Distance, precision: str) -> list[dict[str, Any]]:
    """Histograms of errors and of differences of codes; what lies beyond its limit is marked."""
    limit = limits.LIMITS[precision]
    edges = [f"< {DECADES[0]:.0e}", *(f"{edge:.0e} .." for edge in DECADES)]
    beyond = [False, *(edge >= limit.error_per_rms * 0.999 for edge in DECADES)]  # 1e-5 is the edge of a bar
    step = math.inf if limit.code_step is None else limit.code_step
    labels = [*map(str, range(STEPS)), f"{STEPS} ..."]
    return [
        {
            "title": "Errors",
            "text": "|error| of every embedding value, in units of the rms, against the NumPy reference",
            "bars": _bars(measured.histogram, edges, beyond),
            "width": STEP_PX * len(edges),
        },
        {
            "title": "Codes",
            "text": f"by how much codes differ; {measured.equal_codes_share:.2%} of {measured.codes:,} are equal, "
            f"least cosine {measured.cosine:.8f}",
            "bars": _bars(measured.code_steps, labels, [i > step for i in range(STEPS + 1)]),
            "width": STEP_PX * len(labels),
        },
    ]


def _bars(counts: Sequence[int], labels: Sequence[str], beyond: Sequence[bool]) -> list[dict[str, Any]]:
    """Bars whose height is the logarithm of the count, so that one stray value can be seen."""
    top = math.log1p(sum(counts)) or 1.0
    return [
        {
            "x": i * STEP_PX,
            "height": round(CHART_PX * math.log1p(n) / top, 1),
            "label": label,
            "count": n,
            "bad": bad and n > 0,
        }
        for i, (n, label, bad) in enumerate(zip(counts, labels, beyond, strict=True))
    ]


def _precisions(precision: str) -> list[tuple[str, limits.Limits]]:
    """The limits that this file is held to, and what they are of."""
    return [
        ("from the reference", limits.LIMITS[precision]),
        ("from the reference, single and absent rows", limits.UNUSUAL[precision]),
        ("from the reference, numbers over their whole range", limits.EXTREME[precision]),
        ("from its own codes, other settings", limits.SAME_FILE[precision]),
        ("from its own codes, other neighbours", limits.NEIGHBOURS[precision]),
    ]


_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Gate: {{ report.model.name }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 74rem; margin: 1.5rem auto; padding: 0 1rem; color: #1c2430 }
h1 { margin: 0 0 .2rem; font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
.verdict { padding: .7rem 1rem; border-left: 6px solid; margin: .8rem 0; font-size: 1.1rem }
.verdict.ok { background: #e9f5ec; border-color: #19692c }
.verdict.failed { background: #fbeaea; border-color: #a81e1e }
.verdict ul { margin: .4rem 0 0; padding-left: 1.2rem; font-size: .95rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #dde1e6 }
td { overflow-wrap: anywhere } td.name, td.ok, td.failed { white-space: nowrap }
.group th { background: #f0f2f5; font-weight: 600 }
.facts th { width: 6rem; font-weight: 600 } .facts td, .facts th { border: 0; padding: .1rem .6rem .1rem 0 }
td.ok { color: #19692c } td.failed { color: #a81e1e; font-weight: 700 }
pre { background: #f4f5f7; padding: .8rem; white-space: pre-wrap; font-size: .8rem }
.charts { display: flex; flex-wrap: wrap; gap: 2.5rem } .charts figure { margin: 0 } figcaption { max-width: 31rem }
svg text { font-size: 11px; fill: #1c2430 } rect { fill: #3a6ea5 } rect.bad { fill: #a81e1e }
</style>
<h1>{{ report.model.name }}</h1>
{% if failed %}
<div class="verdict failed"><b>Refused:</b> {{ failed|length }} of {{ report.checks|length }} checks failed
<ul>
{% for check in failed %}
<li><b>{{ check.name }}</b>: {{ check.measured }}. Must be: {{ check.limit }}. Otherwise {{ check.why }}.</li>
{% endfor %}
</ul></div>
{% else %}
<div class="verdict ok"><b>Proven:</b> all {{ report.checks|length }} checks passed</div>
{% endif %}
<table class="facts">
{% for key, value in facts.items() %}
<tr class="fact"><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% if charts %}
<h2>Against the NumPy reference</h2>
<div class="charts">
{% for chart in charts %}
<figure>
<svg width="{{ chart.width }}" height="{{ px.chart + px.above + px.below }}" role="img" aria-label="{{ chart.title }}">
{% for bar in chart.bars %}
<rect x="{{ bar.x }}" y="{{ px.above + px.chart - bar.height }}" width="{{ px.bar }}" height="{{ bar.height }}"
{%- if bar.bad %} class="bad"{% endif %}/>
<text x="{{ bar.x }}" y="{{ px.above + px.chart - bar.height - 4 }}">{{ "{:,}".format(bar.count) }}</text>
<text x="{{ bar.x }}" y="{{ px.above + px.chart + 16 }}">{{ bar.label }}</text>
{% endfor %}
</svg>
<figcaption><b>{{ chart.title }}</b>: {{ chart.text }}. Heights are logarithms of the counts; red lies beyond the limit.
</figcaption>
</figure>
{% endfor %}
</div>
{% else %}
<p>The file was not run: see the failed checks.</p>
{% endif %}
<h2>Checks</h2>
<table>
<tr><th>check</th><th></th><th>measured</th><th>must be</th><th>otherwise</th></tr>
{% for words, checks in groups %}
<tr class="group"><th colspan="5">{{ words }}</th></tr>
{% for check in checks %}
<tr><td class="name">{{ check.name }}</td>
<td class="{{ 'ok' if check.ok else 'failed' }}">{{ 'ok' if check.ok else 'failed' }}</td>
<td>{{ check.measured }}</td><td>{{ check.limit }}</td><td>{{ check.why }}</td></tr>
{% endfor %}
{% endfor %}
</table>
<h2>Limits of {{ report.model.variant.precision }}</h2>
<table>
<tr class="limit"><th>how far</th><th>error / rms</th><th>equal codes</th><th>step</th><th>cosine</th><th>why</th></tr>
{% for what, limit in precisions %}
<tr class="limit"><td>{{ what }}</td>
<td>{{ "%.0e"|format(limit.error_per_rms) if limit.error_per_rms < 1 else "not set" }}</td>
<td>{{ "{:.2%}".format(limit.equal_codes_share) if limit.equal_codes_share else "not set" }}</td>
<td>{{ "not set" if limit.code_step is none else limit.code_step }}</td>
<td>{{ "%g"|format(limit.cosine) }}</td><td>{{ limit.why }}</td></tr>
{% endfor %}
</table>
<table>
<tr class="limit"><th>threshold</th><th>value</th><th>why</th></tr>
{% for what, value, why in others %}
<tr class="limit"><td>{{ what }}</td><td>{{ value }}</td><td>{{ why }}</td></tr>
{% endfor %}
</table>
<h2>The file in its own words</h2>
<details><summary>encoder, origin and the whole profile</summary><pre>{{ about }}</pre></details>
</html>
""")
