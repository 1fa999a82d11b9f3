import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest

from model import limits
from model.gate import gate
from model.gate_report import GROUPS
from model.parity import DECADES, STEPS, Outputs, distance
from pipeline.gate_page import page

SHIPPED = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"


@pytest.fixture(scope="module")
def report():
    return gate(SHIPPED)


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def with_fault(report, name="golden outputs"):
    """The report as it would be if one check had failed."""
    checks = [
        dataclasses.replace(c, ok=False, measured="5 < 6 & <b>codes</b>") if c.name == name else c
        for c in report.checks
    ]
    return dataclasses.replace(report, checks=tuple(checks))


def test_the_verdict_comes_first(report):
    body = text_of(page(report).partition("</style>")[2])
    assert body.index(f"Proven: all {len(report.checks)} checks passed") < body.index("profile")


def test_a_failed_check_is_told_at_the_top_with_what_it_means(report):
    body = text_of(page(with_fault(report)).partition("</style>")[2])
    top = body[: body.index("profile")]
    assert f"Refused: 1 of {len(report.checks)} checks failed" in top
    assert "golden outputs : 5 < 6 & <b>codes</b>. Must be: " in top
    assert next(c.why for c in report.checks if c.name == "golden outputs") in top


def test_what_a_file_says_of_itself_is_text_and_never_markup(report):
    made = page(with_fault(report))
    assert "<b>codes</b>" not in made
    assert "&lt;b&gt;codes&lt;/b&gt;" in made


def test_every_check_has_a_row_under_its_group(report):
    made = page(report)
    assert made.count("<tr>") == len(report.checks) + 1
    shown = text_of(made)
    places = [shown.index(words) for group, words in GROUPS.items() if group != "checkpoint"]
    assert places == sorted(places)
    for check in report.checks:
        for part in (check.name, check.measured, check.limit, check.why):
            assert re.sub(r"\s+", " ", part) in shown, check.name


def test_the_histograms_have_a_bar_for_every_count(report):
    made = page(report)
    counts = [*report.distance.histogram, *report.distance.code_steps]
    bars = re.findall(r'<rect x="\d+" y="([\d.]+)" width="\d+" height="([\d.]+)"', made)
    assert len(bars) == len(counts) == len(DECADES) + 1 + STEPS + 1
    for (_, height), count in zip(bars, counts, strict=True):
        assert (float(height) > 0) == (count > 0)
    for count in counts:
        assert f">{count:,}</text>" in made


def test_bars_beyond_the_limit_are_marked(report):
    right = Outputs(np.zeros((1, 4), np.int8), np.ones(1, np.float32), np.ones((1, 4), np.float32))
    wrong = Outputs(np.array([[0, 1, 2, 9]], np.int8), right.scale, right.embedding + np.float32([0, 1e-6, 5e-5, 1]))
    made = page(dataclasses.replace(report, distance=distance([wrong], [right])))
    marked = re.findall(r'height="([\d.]+)" class="bad"', made)
    plain = re.findall(r'height="([\d.]+)"/>', made)
    assert len(marked) == 4  # errors of 5e-5 and 1, steps of 2 and 9
    assert sum(float(h) > 0 for h in plain) == 4  # errors of 0 and 1e-6, steps of 0 and 1
    assert 'class="bad"' not in page(report)


def test_the_limits_stand_there_with_their_reasons(report):
    shown = text_of(page(report))
    for why in (limits.LIMITS["fp32"].why, limits.SAME_FILE["fp32"].why, *(why for _, _, why in limits.OTHERS)):
        assert why in shown


def test_a_file_that_could_not_be_run_has_a_page_without_histograms(report):
    made = page(dataclasses.replace(report, distance=None))
    assert "<svg" not in made
    assert "The file was not run" in made


def test_the_page_needs_nothing_from_outside(report):
    made = page(report)
    assert not re.search(r"(src|href)=|url\(|@import|<script|https?://", made)
