import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.families import profile_for
from model.profile import ES_C1, PC_RTC
from pipeline import report as report_module
from pipeline.report import CARDS, count, duration, pixel_bar, render, report, share, size
from pipeline.report_facts import Facts, TileFacts, facts_of
from pipeline.report_map import frame_of, land_path, locator_path, path_of, picture_matrix
from transforms import stac, stac_collection
from transforms.grid import TILE_PX, blocks_of, footprint, tile_of
from transforms.land import land_tiles
from transforms.periods import period_of
from transforms.stac import AssetRecord
from transforms.stac_geometry import bbox_of, geometry_of

PROFILE = profile_for("v2", 4)
SHA = "ab" * 32
REV8 = "1f2e3d4c"
MODEL = "untrained-tiny"


def png_of(rgba):
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="PNG", height=rgba.shape[1], width=rgba.shape[2], count=len(rgba), dtype="uint8") as f:
            f.write(rgba)
        return bytes(memory.getbuffer())


def landscape(side_px, seed=0):
    """(3, side, side) colours that are smooth, so that a person who looks at the page sees a picture."""
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px * 6
    waves = [np.sin(x * (1 + i / 3) + seed) * np.cos(y * (1.3 - i / 4) + 2 * i) for i in range(3)]
    return (np.stack(waves) * 100 + 140).astype(np.uint8)


def write_tile(out, name, period, seed=0, side_px=256):
    """A published tile whose files are cut to its north-western corner, but for the preview."""
    tile = tile_of(name)
    folder = out / period / name / REV8
    folder.mkdir(parents=True)
    place = {"crs": tile.crs, "transform": tile.transform, "height": side_px, "width": side_px}
    codes = np.random.default_rng(seed).integers(-127, 128, (PROFILE.dims, side_px, side_px)).astype(np.int8)
    codes[:, 0, 0] = -128
    scales = np.full((1, side_px, side_px), 0.5, np.float32)
    scales[:, 0, 0] = np.nan
    coarse = {**place, "transform": tile.transform @ rasterio.Affine.scale(TILE_PX / side_px)}
    for key, pixels, nodata, where in (
        ("embeddings", codes, -128, place),
        ("scales", scales, np.nan, place),
        ("preview", landscape(side_px, seed), 0, coarse),
    ):
        with rasterio.open(
            folder / f"{key}.tif", "w", driver="GTiff", count=len(pixels), dtype=pixels.dtype, nodata=nodata, **where
        ) as f:
            f.write(pixels)
    (folder / "thumbnail.png").write_bytes(png_of(landscape(side_px, seed)))
    rows = [
        {
            "tile": name, "period": period, "row_px": b.row_px, "col_px": b.col_px, "height_px": b.height_px,
            "width_px": b.width_px, "device": "cpu avx2", "count_embedded": 4_000_000, "count_s2_dates": 60 + n % 9,
            "count_s1_ascending_dates": 30, "count_s1_descending_dates": 28, "count_tokens": 400_000_000,
        }
        for n, b in enumerate(blocks_of(name, 2048))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "blocks.parquet")
    assets = {
        key: AssetRecord(f"./{REV8}/{file}", (folder / file).stat().st_size, "AAAAAA==")
        for key, file in (
            ("embeddings", "embeddings.tif"),
            ("scales", "scales.tif"),
            ("preview", "preview.tif"),
            ("thumbnail", "thumbnail.png"),
            ("blocks", "blocks.parquet"),
        )
    }
    item = stac.item(
        tile=tile,
        period=period_of(period),
        model_name=MODEL,
        model_sha256=SHA,
        profile=PROFILE,
        revision=REV8 + "00" * 28,
        created="2025-02-03T04:05:06Z",
        assets=assets,
        counts={
            "pixels": TILE_PX**2, "embedded": 100_000_000, "no_radar": 5_000_000, "no_optical": 8_000_000,
            "outside": TILE_PX**2 - 108_000_000, "tokens": 1, "s2_dates": 2000,
        },
        device_kinds=["cpu avx2"],
        sources=[ES_C1, PC_RTC],
        inventory_digest="cd" * 32,
        software_version="0.1.0",
    )  # fmt: skip
    (out / stac.item_path(name, period, MODEL)).write_bytes(stac.to_json(item))
    return item


def block_record(tile, row_px=0, col_px=0, status="done", **changed):
    done = status == "done"
    record = {
        "tile": tile, "period": "2024", "row_px": row_px, "col_px": col_px, "height_px": 2048, "width_px": 2048,
        "status": status, "reason": "" if done else "the file ends early: 4,096 of 9,000 bytes",
        "scene": "" if done else "S2B_T33TXL_20240611T100031_L2A", "band": "" if done else "B11",
        "counts": {"pixels": 2048**2, "embedded": 4_000_000, "no_optical": 194_304, "s2_dates": 61} if done else {},
        "timings_s": {"read": 8.0, "build": 3.0, "encode": 21.5, "write": 1.5, "total": 25.0} if done else {},
        "device": "cpu avx2", "started": "2026-11-21T02:00:00Z", "ended": "2026-11-21T02:01:00Z", "attempts": 1,
    }  # fmt: skip
    return {**record, **changed}


def write_run(out, name, records, **changed):
    folder = out / "_runs" / name
    (folder / "blocks").mkdir(parents=True)
    for n, record in enumerate(records):
        (folder / "blocks" / f"{n}.json").write_text(json.dumps(record))
    run = {
        "format": "tessera-beam/run", "version": 1, "run": name, "started": "2026-11-21T02:00:00Z",
        "ended": "2026-11-21T02:03:00Z", "seconds": 134.2, "command": "tessera-beam embed inv.parquet --model m.onnx",
        "model": MODEL, "inventory": "inv.parquet", "runner": "local", "device": "cpu avx2",
        "totals": {"tiles": 3, "blocks": 72, "blocks_done": 70, "pixels": 280_000_000, "tiles_published": 1},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**run, **changed}))


@pytest.fixture
def out(tmp_path):
    """Two published tiles, one that failed, one that a run began."""
    folder = tmp_path / "balkans"
    folder.mkdir()
    items = [write_tile(folder, "33TWL", "2024", 1), write_tile(folder, "33TWM", "2024", 2)]
    collection = stac_collection.collection(
        product=stac.product_record(MODEL, SHA, PROFILE), profile=PROFILE, items=items, created="2025-02-03T04:05:06Z"
    )
    (folder / "collection.json").write_bytes(stac.to_json(collection))
    bad = block_record("33TXL", 2048, 4096, "failed")
    good = [block_record("33TXL", row, 2048 * col) for row in (0, 2048) for col in range(3) if (row, col) != (2048, 2)]
    write_run(folder, "20261121-020000", [*good, bad, block_record("33TXM"), block_record("33TWL", attempts=2)])
    failure = {k: bad[k] for k in ("tile", "period", "row_px", "col_px", "scene", "band", "reason")}
    command = (
        f"tessera-beam inventory amend inv.parquet --drop {bad['scene']}:B11 --reason 'ends early' --out inv2.parquet"
    )
    pq.write_table(pa.Table.from_pylist([{**failure, "command": command}]), folder / "failures.parquet")
    return folder


class Page(HTMLParser):
    """What a browser would fetch, the ids and links of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.ids, self.links, self.text, self.codes, self._code = [], [], [], [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        self.fetched += [at[k] for k in ("src", "srcset", "data") if k in at]
        self.fetched += [at["href"]] if tag in ("link", "image", "use") and "href" in at else []
        self.links += [at["href"]] if tag == "a" else []
        self.ids += [at["id"]] if "id" in at else []
        self._code = at.get("id", "") if tag == "code" else self._code
        assert tag not in ("script", "iframe", "object", "embed")

    def handle_endtag(self, tag):
        self._code = "" if tag == "code" else self._code

    def handle_data(self, data):
        self.text.append(data)
        if self._code:
            self.codes[self._code] = self.codes.get(self._code, "") + data

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(folder):
    return Page(Path(report(folder)).read_text(encoding="utf-8"))


def test_the_page_loads_nothing_but_what_it_holds(out):
    assert report(out) == str(out / "_runs/report.html")
    text = (out / "_runs/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.fetched) == 4 and all(u.startswith("data:image/png;base64,") for u in page.fetched)
    assert "@import" not in text and "url(" not in text and "http" not in text.replace("http-equiv", "")


def test_every_link_leads_to_a_part_of_the_page_or_a_file_of_the_folder(out):
    page = page_of(out)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all((out / "_runs" / link).is_file() for link in page.links if not link.startswith("#"))
    assert f"../2024/33TWL/{REV8}/embeddings.tif" in page.links


def test_the_headline_counts_tiles_pixels_blocks_and_time(out):
    words = page_of(out).words
    assert "Tiles published 2 of 4 1 failed , 1 not finished" in words
    assert "Pixels embedded 224 M" in words  # two tiles of 100 M, and six blocks of 4 M on the others
    assert "Blocks made 7 1 failed , 1 tried again" in words
    assert "2 min 14 s" in words and "209 k px/s" in words


def test_each_tile_says_what_became_of_its_pixels_and_how_often_it_was_seen(out):
    facts = {(t.tile, t.status): t for t in facts_of(out, 200).tiles}
    assert list(facts) == [("33TWL", "done"), ("33TWM", "done"), ("33TXL", "failed"), ("33TXM", "missing")]
    done, failed = facts["33TWL", "done"], facts["33TXL", "failed"]
    assert done.dates["s2_dates"] == (60, 68) and done.counts["no_optical"] == 8_000_000
    assert done.tokens == 36 * 400_000_000
    assert failed.counts["embedded"] == 5 * 4_000_000 and failed.dates["s2_dates"] == (61, 61)
    assert sorted((b.row_px, b.col_px) for b in failed.blocks if not b.done) == [(2048, 4096)]
    assert "Sentinel-2 dates 60–68" in page_of(out).words


def test_failures_come_with_scene_band_reason_and_the_next_command(out):
    words = page_of(out).words
    assert "33TXL 2024 2048, 4096 – S2B_T33TXL_20240611T100031_L2A B11 the file ends early" in words
    assert "tessera-beam inventory amend inv.parquet --drop S2B_T33TXL_20240611T100031_L2A:B11" in words


def test_without_a_failures_file_the_records_tell_which_blocks_are_left_and_what_helps(out):
    (out / "failures.parquet").unlink()
    (failure,) = facts_of(out, 200).failures
    assert (failure.tile, failure.row_px, failure.col_px, failure.band) == ("33TXL", 2048, 4096, "B11")
    assert failure.command.startswith(
        "tessera-beam inventory amend inv.parquet --drop S2B_T33TXL_20240611T100031_L2A:B11"
    )
    later = block_record("33TXL", 2048, 4096)
    write_run(out, "20261122-020000", [later], started="2026-11-22T02:00:00Z")
    assert facts_of(out, 200).failures == []


def test_what_fetching_took_is_told_of_each_run_that_asked_servers(out):
    """Retries by kind, and how much of the time was waiting: is the provider slow, or are we too many?"""
    network = {
        "requests": 12_000, "bytes": 345_000_000, "retries_503": 3, "fetch_s": 100.0, "throttled_s": 12.5, "cuts": 2,
    }  # fmt: skip
    more = {"requests": 345, "retries_503": 4, "retries_reset": 1, "failures_timeout": 1, "quarantined": 5}
    records = [
        block_record("33TWM", 0, 0, network=network),
        block_record("33TWM", 0, 2048, network={}),
        block_record("33TWM", 2048, 0, status="failed", network=more),
    ]
    write_run(out, "20261122-020000", records, started="2026-11-22T02:00:00Z", version=2)
    words = page_of(out).words
    assert words.count("From servers") == 1  # the older runs have no counters, and say nothing
    assert "Requests 12,345 Moved 345 MB" in words
    assert "Tried again 8 (503 busy x 7, connection lost)" in words
    assert "Given up 1 (no answer); 5 more not asked for, since their file had failed" in words
    assert "Waited for a turn 12.5 % of the time that fetching took (12.5 s of 1 min 40 s, all threads" in words
    assert "2 times a host was asked for half as much at once" in words


def test_a_run_whose_block_records_are_gone_still_tells_what_fetching_took(out):
    write_run(out, "20261122-020000", [], version=2, network={"requests": 77, "bytes": 5_000})
    assert "Requests 77 Moved 5 kB Tried again none Given up none" in page_of(out).words


def test_an_untrained_model_is_said_in_plain_sight_and_a_trained_one_is_not(out):
    assert f"Untrained model {MODEL} has random weights" in page_of(out).words
    collection = json.loads((out / "collection.json").read_text())
    collection["tessera:product"]["model"] = "v2-2026"
    (out / "collection.json").write_text(json.dumps(collection))
    assert "ntrained model" not in page_of(out).words


def test_the_demos_model_is_said_to_be_for_demonstration_and_no_other(out):
    said = "Demonstration model"
    assert said not in page_of(out).words
    collection = json.loads((out / "collection.json").read_text())
    collection["tessera:product"]["model"] = "demo-01234567"
    (out / "collection.json").write_text(json.dumps(collection))
    assert f"{said} demo-01234567 was trained for minutes on a synthetic planet" in page_of(out).words


def test_what_others_wrote_is_text_and_never_markup(out):
    evil = '<script>alert("x")</script>'
    row = {"tile": "33TXL", "period": "2024", "row_px": 0, "col_px": 0, "scene": evil, "band": evil, "reason": evil}
    pq.write_table(pa.Table.from_pylist([{**row, "command": evil}]), out / "failures.parquet")
    assert page_of(out).words.count(evil) == 4


@pytest.mark.parametrize(
    "gone",
    [
        ["collection.json"],
        ["failures.parquet"],
        ["_runs"],
        [f"2024/33TWL/{REV8}/thumbnail.png", f"2024/33TWL/{REV8}/preview.tif", f"2024/33TWL/{REV8}/blocks.parquet"],
        ["_runs/20261121-020000/run.json"],
        ["_runs/20261121-020000/blocks"],
        ["2024", "failures.parquet"],
    ],
)
def test_missing_pieces_are_left_out_and_the_rest_stays(out, gone):
    for name in gone:
        path = out / name
        for file in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir() if path.is_dir() else path.unlink()
    page = page_of(out)
    assert "product" in page.ids and MODEL in page.words


@pytest.mark.parametrize("what", ["absent", "empty", "scheme"])
def test_what_is_no_output_folder_is_refused_by_name(tmp_path, what):
    (tmp_path / "empty").mkdir()
    given_path = {"absent": tmp_path / "absent", "empty": tmp_path / "empty", "scheme": "ftp://there/out"}[what]
    with pytest.raises(BadInput, match=what if what != "scheme" else "ftp://there/out"):
        report(given_path)


def test_records_that_are_broken_or_newer_are_refused_by_name(out):
    run = out / "_runs/20261121-020000/run.json"
    run.write_text(json.dumps({"version": 4}))
    with pytest.raises(BadInput, match=r"run\.json: version 4.*newer"):
        report(out)
    run.write_text("{")
    with pytest.raises(BadInput, match=r"run\.json: not JSON"):
        report(out)


def test_many_tiles_become_a_table_without_pictures(out, monkeypatch):
    monkeypatch.setattr(report_module, "CARDS", 3)
    monkeypatch.setattr(report_module, "MAP_PICTURES", 3)
    page = page_of(out)
    assert page.fetched == [] and "tile-33TXM-2024" in page.ids
    assert "33TWM 2024 ✓ done 100 M 5 M 8 M" in page.words


def test_pictures_stop_where_the_page_would_grow_too_large(out, monkeypatch):
    one = len((out / f"2024/33TWL/{REV8}/thumbnail.png").read_bytes())
    monkeypatch.setattr(report_module, "MAP_PICTURES", 0)
    monkeypatch.setattr(report_module, "PICTURE_BYTES", int(1.5 * one))
    assert len(page_of(out).fetched) == 1


@pytest.mark.slow
def test_a_planet_of_tiles_stays_under_twenty_megabytes(tmp_path):
    names = land_tiles()[::20]  # every twentieth of the planet's: the page grows by the tile
    counts = {"pixels": TILE_PX**2, "embedded": 100_123_456, "no_optical": 20_436_944}
    tiles = [
        TileFacts(name, "2023-07-01_2024-06-30", status="done", item_path=f"2024/{name}/{name}.json", counts=counts)
        for name in names
    ]
    page = render(Facts(tmp_path, {}, tiles, [], [], unnamed=0))
    fixed = len(render(Facts(tmp_path, {}, tiles[: CARDS + 1], [], [], unnamed=0)))
    assert len(names) > 800 and (len(page) - fixed) / (len(names) - CARDS) * 18_400 < 19e6
    assert Page(page).fetched == []


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (count, 0, "0"), (count, 950, "950"), (count, 12_345, "12,345"), (count, 209_300, "209 k"),
        (count, 120_560_400, "121 M"), (count, 4.25, "4.2"), (count, 2.2e12, "2,200 G"),
        (duration, 0.1234, "0.123 s"), (duration, 59, "59 s"), (duration, 134.2, "2 min 14 s"),
        (duration, 3599.9, "1 h 0 min"), (duration, 100_000, "1 d 3 h"), (size, 768_000, "768 kB"), (size, 3, "3 B"),
        (share, 0.0, "0 %"), (share, 1e-9, "< 0.1 %"), (share, 1 - 1e-9, "> 99.9 %"), (share, 1.0, "100 %"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(write, number, text):
    assert write(number) == text


@given(st.lists(st.integers(0, 10**9), min_size=4, max_size=4))
def test_the_pixel_bar_is_whole_and_counts_pixels_without_radar_once(numbers):
    with_radar, no_radar, no_optical, outside = numbers
    counts = {"embedded": with_radar + no_radar, "no_radar": no_radar, "no_optical": no_optical, "outside": outside}
    parts = pixel_bar(counts)
    assert sum(p.amount for p in parts) == sum(numbers)
    assert not parts or sum(p.share for p in parts) == pytest.approx(1)


@pytest.mark.parametrize("name", ["33TWL", "01CCV", "60VXH", "24XWR"])
def test_a_tile_lies_whole_inside_its_map_even_across_the_antimeridian(name):
    geometry = geometry_of(footprint(name))
    frame = frame_of([bbox_of(geometry)])
    numbers = [tuple(map(float, p.split())) for p in re.findall(r"[-\d.]+ [-\d.]+", path_of(geometry, frame))]
    xs, ys = zip(*numbers, strict=True)
    assert min(xs) > 0 and max(xs) < 1000 and min(ys) > 0 and max(ys) < frame.height
    assert max(xs) - min(xs) > 200
    matrix = [float(v) for v in picture_matrix(tile_of(name), frame)[7:-1].split()]
    corners = [(matrix[0] * u + matrix[2] * v + matrix[4], matrix[1] * u + matrix[3] * v + matrix[5])
               for u, v in ((0, 0), (1, 0), (0, 1))]  # fmt: skip
    assert all(min(np.hypot(x - a, y - b) for a, b in numbers) < 1 for x, y in corners)


def test_land_lies_where_people_live_and_not_in_mid_ocean():
    world = frame_of([(-180, -85, 180, 85)])
    assert land_path(world) and land_path(frame_of([(15, 45, 16, 46)])) == ""
    cells = [tuple(map(int, c)) for c in re.findall(r"M(\d+) (\d+)H(\d+)V", locator_path())]

    def is_land(lon, lat):
        return any(y == 89 - np.floor(lat) and x0 <= lon + 180 < x1 for x0, y, x1 in cells)

    assert is_land(37.6, 55.7) and is_land(-58.5, -34.7) and is_land(149.1, -35.3)  # Moscow, Buenos Aires, Canberra
    assert not is_land(-30.5, 30.5) and not is_land(-140.5, -30.5)


@pytest.mark.slow
def test_the_code_on_the_page_runs_as_it_stands(out):
    pytest.importorskip("odc.stac")
    codes = page_of(out).codes
    for name, checks in (
        ("with-rasterio", "assert embedding.shape == (4, 256, 256) and embedding.dtype == 'float32'"),
        ("with-odc-stac", "assert set(embedding.dims) >= {'dimension', 'time'} and embedding.sizes['dimension'] == 4"),
    ):
        # The files of this test hold the tile's corner alone, so that is where the code looks here.
        code = codes[name].replace("Window(5490, 5490", "Window(0, 0")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{code}\n{checks}"], cwd=out, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
