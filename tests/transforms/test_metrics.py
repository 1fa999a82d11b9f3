"""Counters and log lines: what a receipt adds to them, under names that stand in one place."""

import dataclasses
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import logs, metrics
from transforms.failures import CAUSES
from transforms.receipts import DONE, FAILED, Receipt

WELL = Receipt(
    "33TWL", "2024", "5ca1ab1e" * 8, 0, 2048, 256, 256, DONE,
    counts={"pixels": 65536, "embedded": 60000, "no_radar": 7, "tokens": 9, "s2_dates": 40},
    timings_s={"read": 1.5, "encode": 2.25, "total": 4.0},
    network={"requests": 12, "bytes": 3e6, "retries_503": 2, "retries_reset": 1, "throttled_s": 0.5},
)  # fmt: skip
ROOT = Path(__file__).parents[2]


def test_a_block_that_is_done_counts_pixels_times_and_bytes():
    assert metrics.amounts_of(WELL) == {
        "blocks_done": 1, "attempts": 1, "pixels": 65536, "pixels_embedded": 60000, "pixels_no_radar": 7, "tokens": 9,
        "encode_ms": 2250, "read_ms": 1500, "block_ms": 4000, "requests": 12, "bytes": 3_000_000, "retries": 3,
        "throttled_ms": 500,
    }  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_a_failed_block_counts_under_its_cause(cause):
    found = metrics.amounts_of(dataclasses.replace(WELL, status=FAILED, cause=cause, counts={}, attempts=2))
    assert found["blocks_failed"] == 1 and found[f"failed_{cause}"] == 1 and found["attempts"] == 2


def test_every_counter_has_a_name_and_every_name_is_used_and_explained():
    steps = (ROOT / "transforms/steps.py").read_text()
    constants = {k: v for k, v in vars(metrics).items() if isinstance(v, str) and v in metrics.NAMES}
    assert [k for k in constants if f"metrics.{k}" not in steps] == []
    named = set(constants.values())
    full = dataclasses.replace(
        WELL, counts=dict.fromkeys(("pixels", "embedded", "no_optical", "no_radar", "outside", "drift", "tokens"), 1),
        timings_s=dict.fromkeys(("read", "build", "encode", "write", "total"), 1.0),
        network={"requests": 1, "bytes": 1, "retries_503": 1, "throttled_s": 1, "fetch_s": 1},
    )  # fmt: skip
    made = {name for r in [full, *(dataclasses.replace(WELL, status=FAILED, cause=c) for c in CAUSES)]
            for name in metrics.amounts_of(r)}  # fmt: skip
    assert made | named == set(metrics.NAMES)
    page = (ROOT / "docs/operations.md").read_text()
    assert [n for n in metrics.NAMES if f"`{n}`" not in page and not n.startswith("failed_")] == []


def test_a_log_line_names_tile_block_and_cause(caplog):
    with caplog.at_level(logging.INFO, "tessera"):
        logs.block_ended(WELL)
        logs.block_ended(
            dataclasses.replace(WELL, status=FAILED, cause="input", scene="S2A_X", band="B04", reason='no "B04"')
        )
        logs.tile_published("33TWL", "2024", "5ca1ab1e" * 8, swept=True)
    done, failed, published = caplog.messages
    assert done == "block_done tile=33TWL block=0_2048 period=2024 pixels=60000 seconds=4.0 attempt=1"
    assert failed.startswith("block_failed tile=33TWL block=0_2048") and 'reason="no \\"B04\\""' in failed
    assert published == "tile_published tile=33TWL period=2024 revision=5ca1ab1e swept=True"
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING", "INFO"]


@given(st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), st.text(max_size=12), max_size=3))
def test_a_line_is_one_line_and_its_fields_can_be_read_back(fields):
    text = logs.line("event", **fields)
    assert text.isprintable()
    found = re.findall(r'([a-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^ ]*))', text)
    plain = {k: re.sub(r"\\(.)", r"\1", q) if q else p for k, q, p in found}
    assert plain == {k: "".join(c if c.isprintable() else " " for c in v) for k, v in fields.items()}
