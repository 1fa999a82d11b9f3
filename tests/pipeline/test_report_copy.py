"""What the page needs of a planet's records: those of tiles that are not published."""

import dataclasses
import json

import pytest
from test_report import block_record, write_tile

from pipeline.record import closed
from pipeline.report_copy import local_copy
from pipeline.report_facts import facts_of, tile_of_record
from transforms.grid import Block
from transforms.plans import Plan
from transforms.storage import open_store

RECORDS = [
    block_record("33TWL", 0, 0, attempts=2, network={"requests": 7, "bytes": 90}),
    block_record("33TWL", 0, 2048, timings_s={"read": 80.0, "build": 3.0, "encode": 21.5, "write": 1.5, "total": 99.0}),
    block_record("33TXL", 2048, 4096, "failed", cause="input"),
    block_record("33TXL", 2048, 2048, device="cuda h100"),
]


@pytest.fixture
def out(tmp_path):
    """A published tile and one with a failed block, of one run that has not been closed."""
    folder = tmp_path / "o"
    folder.mkdir()
    write_tile(folder, "33TWL", "2024")
    blocks = folder / "_runs" / "r" / "blocks"
    blocks.mkdir(parents=True)
    for record in RECORDS:
        block = Block(record["tile"], record["row_px"], record["col_px"], 2048, 2048)
        text = json.dumps({"network": {}, "cause": "", **record})
        (blocks / f"{record['tile']}_2024_{block.name}.json").write_text(text)
    job = {"command": "embed", "started": "2026-11-21T02:00:00+00:00", "tiles": [], "blocks": 8, "runner": "local"}
    (folder / "_runs" / "r" / "job.json").write_text(json.dumps({**job, "waits": True}))
    return folder


def close(folder):
    fields = {f.name: f.type for f in dataclasses.fields(Plan)}
    plain = {str: "", int: 0, bool: False}
    plan = Plan(
        **{name: plain[kind] for name, kind in fields.items()} | {"run": "r", "out": str(folder), "period": "2024"}
    )
    return closed(open_store(str(folder)), plan, 60.0)


def told(run):
    return {k: v for k, v in dataclasses.asdict(run).items() if k not in ("record", "seconds")}


@pytest.mark.parametrize("period", ["2024", "2023-07-01_2024-06-30"])
def test_a_record_s_name_tells_tile_and_period(period):
    assert tile_of_record(f"33TWL_{period}_{Block('33TWL', 2048, 0, 2048, 2048).name}.json") == ("33TWL", period)


def test_the_sums_of_a_closed_run_say_what_its_records_do(out):
    before = facts_of(out, 10)
    close(out)
    for path in (out / "_runs" / "r" / "blocks").glob("33TWL_*"):
        path.write_text("not opened any more")
    after = facts_of(out, 10)
    assert told(before.runs[0]) == told(after.runs[0])
    assert after.runs[0].again == 1 and after.runs[0].slowest == (99.0, "33TWL", 0, 2048)
    assert [b for t in after.tiles for b in t.blocks] == [b for t in before.tiles for b in t.blocks]
    assert after.failures == before.failures and len(after.failures) == 1


def test_only_records_of_tiles_that_are_not_published_are_copied_from_a_bucket(out):
    def copied():
        with local_copy(open_store(str(out)), 10) as folder:
            return sorted(p.name for p in folder.glob("_runs/r/blocks/*"))

    assert len(copied()) == 4  # a run that was never closed: they are all that is known of it
    close(out)
    assert copied() == ["33TXL_2024_r02048_c02048.json", "33TXL_2024_r02048_c04096.json"]


def test_a_run_closed_by_an_older_release_is_told_from_its_records(out):
    close(out)
    end = out / "_runs" / "r" / "run.json"
    record = json.loads(end.read_text())
    stages = facts_of(out, 10).runs[0].stages_s
    del record["blocks"]
    end.write_text(json.dumps({**record, "version": 2}))
    assert facts_of(out, 10).runs[0].stages_s == stages and stages["read"] == 96.0
    with local_copy(open_store(str(out)), 10) as folder:
        assert len(list(folder.glob("_runs/r/blocks/*"))) == 4
