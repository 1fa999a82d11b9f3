"""What a run would take, told before it begins, and counted when it has ended."""

import json
from urllib.parse import urlsplit

import pytest

from model.errors import BadInput
from model.profile import ES_C1, PC_RTC
from pipeline import inventory, words
from pipeline.demo.api import serve
from pipeline.demo.run import FROZEN
from pipeline.embed import embed
from pipeline.planning import EmbedOptions
from pipeline.quote import as_text, quote
from transforms.catalogs.source import S2_PIXEL_M
from transforms.grid import tile_of
from transforms.hosts import allowed
from transforms.inventory import SourceRecord, write_inventory
from transforms.periods import period_of
from transforms.regions import region_from_bbox
from transforms.remote import HEADERS
from transforms.scenes import ASCENDING, S1, S2, Asset, Scene
from transforms.throttle import COUNTERS

TILE = tile_of("33TWL")
# How much more a quote may foresee than a run asks for, where clouds spare little: it takes every date as clear and
# every internal tile as stored, and cannot know which blocks lie beside a swath.
MOST_OVER = 1.5


def scene_of(sensor, n, assets):
    when = f"2024-{n + 1:02d}-03T10:00:00.000000Z"
    source, orbit = (ES_C1, "") if sensor == S2 else (PC_RTC, ASCENDING)
    return Scene(
        TILE.name,
        sensor,
        source,
        f"{sensor}-{n}",
        when,
        n,
        orbit,
        22,
        "",
        "05.11",
        10.0,
        "",
        "",
        0,
        "",
        True,
        "",
        assets,
    )


def asset_of(band, pixel_m, root="https://sentinel-cogs.s3.us-west-2.amazonaws.com/x/"):
    side = 109_800 // pixel_m
    grid = (float(pixel_m), 0.0, float(TILE.left_m), 0.0, -float(pixel_m), float(TILE.top_m))
    return Asset(band, f"{root}{band}.tif", TILE.epsg, grid, side, side)


@pytest.fixture(scope="module")
def far_away(tmp_path_factory):
    """A tile's inventory of which nobody reads a file: three optical dates and a pass."""
    optical = tuple(asset_of(band, pixel_m) for band, pixel_m in S2_PIXEL_M.items())
    scenes = [scene_of(S2, n, optical) for n in range(3)] + [
        scene_of(S1, 0, tuple(asset_of(b, 10) for b in ("VV", "VH")))
    ]
    path = tmp_path_factory.mktemp("far") / "i.parquet"
    sources = [SourceRecord(name, "https://h", "c") for name in (ES_C1, PC_RTC)]
    write_inventory(path, period_of("2024"), "2026-01-01T00:00:00Z", {TILE.name: scenes}, sources)
    return str(path)


@pytest.mark.slow
def test_a_quote_foresees_what_a_run_over_the_network_asks_for(planet, world, tmp_path):
    region = region_from_bbox(world.bbox)
    inv = str(tmp_path / "i.parquet")
    HEADERS.clear()
    with serve(planet.folder) as url, allowed(urlsplit(url).netloc):
        inventory.build([(url, None)], period_of("2024"), ("32TQR",), inv, now=FROZEN)
        foreseen = quote(inv, world.model, (), region, block_px=512)
        before = COUNTERS.read()
        options = EmbedOptions(region=region, block_px=512)
        summary = embed(inv, world.model, str(tmp_path / "out"), options, "embed", lambda _: None, False)
        after = COUNTERS.read()
    network = summary["network"]
    # All that the process fetched in the run is on the account of its blocks, once.
    for name in ("requests", "bytes"):
        assert network[name] == after[name] - before.get(name, 0)
    blocks = [json.loads(p.read_text()) for p in (tmp_path / "out/_runs").glob("*/blocks/*.json")]
    assert len(blocks) == summary["totals"]["blocks_done"] and all(b["network"]["requests"] > 0 for b in blocks)
    assert sum(b["network"]["requests"] for b in blocks) == network["requests"]
    assert network["requests"] <= foreseen["requests"] <= MOST_OVER * network["requests"]
    assert network["bytes"] <= foreseen["bytes_moved"] <= MOST_OVER * network["bytes"]
    assert f"from servers: {network['requests']:,} requests" in words.embedded(summary)
    # Nothing of it is where two runs must have the same bytes.
    for path in (tmp_path / "out/2024").rglob("*"):
        assert not path.is_file() or b"fetch_s" not in path.read_bytes()


def test_files_on_disk_are_quoted_without_a_request(world):
    q = quote(world.inv, world.model, ("32TQR",))
    assert (q["requests"], q["requests_at_most"], q["bytes_moved"]) == (0, 0, 0)
    assert q["bytes_in"] == q["bytes_needed"] > 0 and q["bytes_moved_per_byte_needed"] is None
    assert "requests    none: the files are on disk" in as_text(q)
    network = embed_summary_without_requests()
    assert "from servers" not in words.embedded(network)


def embed_summary_without_requests():
    totals = dict.fromkeys(
        ("tiles_published", "tiles", "blocks_done", "blocks_skipped", "blocks_failed", "pixels", "blocks_in_doubt"), 1
    )
    return {"totals": totals | {"blocks_failed": 0}, "seconds": 1, "out": "out", "failures": [], "network": {}}


def test_an_operator_sees_what_the_block_size_costs(far_away, world):
    large, small = (quote(far_away, world.model, block_px=side, memory_gib=16) for side in (2048, 1024))
    assert list(large["other_blocks"]) == ["1024"] and list(small["other_blocks"]) == ["2048"]
    assert large["other_blocks"]["1024"] == {k: small[k] for k in large["other_blocks"]["1024"]}
    assert list(quote(far_away, world.model, block_px=512)["other_blocks"]) == ["1024", "2048"]
    # Blocks of 1024 px read each internal tile of the 20 m bands again; so do, with a pixel around, those of 2048 px.
    assert 1.8 < large["bytes_moved_per_byte_needed"] < small["bytes_moved_per_byte_needed"]
    assert large["requests"] < small["requests"] < small["requests_at_most"]
    said = as_text(small).splitlines()
    assert any(f"{small['bytes_moved_per_byte_needed']} bytes move for one" in line for line in said)
    assert any(line.strip().startswith("--block 2048: ") and f"{large['requests']:,} requests" in line for line in said)


def test_a_block_size_that_does_not_fit_is_told_beside_one_that_does(far_away, world):
    q = quote(far_away, world.model, block_px=512, memory_gib=1.0)
    assert q["other_blocks"]["2048"] is None
    assert "--block 2048: needs more than --memory allows" in as_text(q)
    with pytest.raises(BadInput, match=r"a block of 2048 px .* needs"):
        quote(far_away, world.model, block_px=2048, memory_gib=1.0)


def test_a_small_region_is_quoted_for_its_own_windows(far_away, world):
    corner = region_from_bbox("15.1,45.5,15.12,45.52")
    part, whole = quote(far_away, world.model, region=corner), quote(far_away, world.model)
    assert part["blocks"] < 3 and part["bytes_needed"] < 0.001 * whole["bytes_needed"]
    assert part["requests"] < whole["requests"] and part["bytes_moved"] < 0.1 * whole["bytes_moved"]
    assert part["bytes_moved_per_byte_needed"] > 100
