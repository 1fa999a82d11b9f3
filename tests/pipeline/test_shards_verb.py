import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import shapely
import typer
from store_places import PLACES, servers_ended
from typer.testing import CliRunner

from model.errors import BadInput
from model.families import profile_for
from model.records import Records, chosen
from model.shards import open_shards
from pipeline import cli_train, console, inventory, shards
from pipeline.engines import Local
from pipeline.shards import ShardOptions, expected_bytes, make_shards, tiles_wanted
from transforms.dpixels import build, read_stack
from transforms.grid import TILE_PX, lonlat_of, tile_of
from transforms.inventory import read_header, read_tile
from transforms.land import land_fraction
from transforms.regions import clip_of, region_from_bbox, region_from_file
from transforms.sampling import FAILED, Rule

RULE = Rule(3, 2)
PROFILE = profile_for("v2", native_dims=128)


@pytest.fixture(scope="module", autouse=True)
def ended():
    with servers_ended():
        yield


def options(world, **more):
    said = {"rule": RULE, "region": region_from_bbox(world.bbox), "shard_records": 300}
    return ShardOptions(**said | more)


def made(world, out, inv=None, **more):
    said: list[str] = []
    return make_shards(inv or world.inv, str(out), options(world, **more), said.append), said


@pytest.fixture(scope="module")
def done(sparse, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "set"
    return out, made(sparse, out)[0]


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def of_tile(records, tile):
    """A tile's records by row and column."""
    here = np.flatnonzero(records.tile == tile.encode())
    return chosen(records, here[np.lexsort((records.col_px[here], records.row_px[here]))])


def looped(world, tile, region, rule=RULE):
    """(row, col) -> a pixel's record of a tile's island, by a loop over its d-pixels."""
    row0, col0, height, width = world.earth.island(tile)
    rows, cols = range(row0, row0 + height), range(col0, col0 + width)
    roots = read_header(world.inv).roots
    with ThreadPoolExecutor(4) as pool:
        stack = read_stack(read_tile(world.inv, tile), roots, PROFILE, tile_of(tile), rows, cols, pool)
    pixels = build(stack, PROFILE, rows)
    clip = clip_of(region, tile)
    inside = np.ones((height, width), bool) if clip is None else clip.mask(tile, row0, col0, height, width)
    found = {}
    for y in range(height):
        for x in range(width):
            at = row0 + y, col0 + x
            if at[0] % rule.every or at[1] % rule.every or not inside[y, x]:
                continue
            days = np.flatnonzero(pixels.masks[:, y, x])
            if len(days) < rule.min_dates:
                continue
            s1 = [pixels.sar_ascending[:, y, x], pixels.sar_descending[:, y, x]]
            seen = [np.flatnonzero(v.any(-1)) for v in s1]
            doys = pixels.sar_ascending_doy, pixels.sar_descending_doy
            found[at] = {
                "s2": pixels.bands[days, y, x],
                "s2_doy": pixels.doys[days],
                "s1": np.concatenate([v[there] for v, there in zip(s1, seen, strict=True)]),
                "s1_doy": np.concatenate([d[there] for d, there in zip(doys, seen, strict=True)]),
                "s1_orbit": np.repeat([0, 1], list(map(len, seen))),
            }
    return found


def test_the_set_holds_every_sampled_pixel_once_as_a_loop_over_the_tiles_finds_it(sparse, done):
    out, summary = done
    found = open_shards(out, check=True)
    records = found.records(np.arange(len(found)))
    region, total = region_from_bbox(sparse.bbox), 0
    for tile in sparse.earth.tiles:
        here, wanted = of_tile(records, tile), looped(sparse, tile, region)
        places = list(zip(here.row_px.tolist(), here.col_px.tolist(), strict=True))
        assert places == sorted(wanted)
        total += len(places)
        for i, at in enumerate(places):
            a, b = here.s2_offsets[i : i + 2], here.s1_offsets[i : i + 2]
            for name, column in wanted[at].items():
                part = slice(*a) if name.startswith("s2") else slice(*b)
                np.testing.assert_array_equal(getattr(here, name)[part], column, err_msg=f"{tile} {at} {name}")
        lon, lat = lonlat_of(tile, here.row_px, here.col_px)
        np.testing.assert_array_equal(here.lon, lon)
        np.testing.assert_array_equal(here.lat, lat)
        assert set(here.land.tolist()) <= {np.float32(land_fraction(tile))}
    assert total == len(records) == summary["records"] > 1000
    assert records.s2_valid.all() and records.s1_valid.all()


def test_all_shards_but_the_last_are_of_the_size_that_was_asked_for(done):
    out, summary = done
    sizes = [s.records for s in open_shards(out).manifest.shards]
    assert sizes[:-1] == [300] * (summary["records"] // 300) and sum(sizes) == summary["records"]


def test_the_manifest_says_what_the_set_is_and_what_was_left_out(sparse, done):
    out, summary = done
    manifest = open_shards(out).manifest
    inv = read_header(sparse.inv)
    assert (manifest.profile, manifest.profile_sha256) == ("v2", PROFILE.digest)
    assert (manifest.period, manifest.every, manifest.min_dates, manifest.seed) == ("2024", 3, 2, 0)
    assert set(manifest.sources) == {s.name for s in inv.sources}
    assert manifest.origin["inventory"] == inv.digest and list(manifest.tiles) == list(inv.tiles)
    counts = manifest.counts
    assert counts["kept"] == manifest.records == summary["records"]
    assert counts["sampled"] == counts["kept"] + sum(counts["left_out"].values())
    assert not manifest.failed and not manifest.exclude
    assert sorted(content(out)) == ["manifest.json", *(s.name for s in manifest.shards)]  # nothing of the way is left


@pytest.mark.slow
def test_blocks_of_another_size_give_the_same_bytes(sparse, done, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "block_px_for", lambda every: 256)
    first, _ = done
    made(sparse, tmp_path / "s")
    assert content(tmp_path / "s") == content(first)


@pytest.mark.slow
def test_another_number_of_buckets_is_another_order_of_the_same_records(sparse, done, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "bits_for", lambda expected, bucket: 3)
    made(sparse, tmp_path / "s")
    some, other = (open_shards(f).records(np.arange(done[1]["records"])) for f in (done[0], tmp_path / "s"))
    assert open_shards(tmp_path / "s").manifest.origin["buckets"] == 8
    assert content(tmp_path / "s") != content(done[0])
    for tile in sparse.earth.tiles:
        for field in dataclasses.fields(Records):
            np.testing.assert_array_equal(*(getattr(of_tile(r, tile), field.name) for r in (some, other)))


@pytest.mark.slow
def test_several_worker_processes_give_the_same_bytes(sparse, done, tmp_path):
    made(sparse, tmp_path / "s", engine=Local(2))
    assert content(tmp_path / "s") == content(done[0])


def test_a_second_run_says_that_the_set_is_there_and_does_nothing(sparse, done):
    before = {p: p.stat().st_mtime_ns for p in done[0].iterdir()}
    summary, said = made(sparse, done[0])
    assert summary == done[1] | {"already": True}
    assert any("holds these shards already" in line for line in said)
    assert {p: p.stat().st_mtime_ns for p in done[0].iterdir()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rule": Rule(4, 2)}, "every: there 3, now 4"),
        ({"rule": Rule(3, 5)}, "min_dates: there 2, now 5"),
        ({"seed": 1}, "seed: there 0, now 1"),
        ({"region": None, "tiles": ("32TQQ",)}, "region: .*tiles: there"),
    ],
)
def test_another_set_in_the_folder_is_refused(sparse, done, more, words):
    with pytest.raises(BadInput, match=f"holds other shards .*{words}.*choose another --out"):
        made(sparse, done[0], **more)


def test_a_folder_of_something_else_is_refused(sparse, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds other files \(photo.jpg\)"):
        made(sparse, tmp_path)


@pytest.mark.slow
def test_a_run_that_was_killed_is_begun_again_by_the_same_command_and_by_no_other(sparse, done, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    out = tmp_path / "s"
    with monkeypatch.context() as patched:
        patched.setattr(shards, "MakeShards", killed)
        with pytest.raises(KeyboardInterrupt):
            made(sparse, out)
    (out / "shard-00000-of-00007.bin").write_bytes(b"half")
    with pytest.raises(BadInput, match="holds other shards"):
        made(sparse, out, seed=4)
    made(sparse, out)
    wanted = content(done[0])
    assert {k: v for k, v in content(out).items() if k in wanted} == wanted


def drawn(tmp_path, sparse):
    """The western half of the island, as a file."""
    west, south, east, north = sparse.earth.bbox
    middle = (west + east) / 2
    ring = [[west, south], [middle, south], [middle, north], [west, north], [west, south]]
    path = tmp_path / "test regions.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def test_what_lies_in_an_excluded_region_is_not_there_and_is_told(sparse, done, tmp_path):
    path = drawn(tmp_path, sparse)
    summary, _ = made(sparse, tmp_path / "s", exclude=(str(path),))
    region = region_from_file(path)
    whole, rest = (open_shards(f) for f in (done[0], tmp_path / "s"))
    a, b = (s.records(np.arange(len(s))) for s in (whole, rest))
    left = 0
    for tile in sparse.earth.tiles:
        here, there = of_tile(a, tile), of_tile(b, tile)
        out = clip_of(region, tile).mask(tile, 0, 0, TILE_PX, TILE_PX)[here.row_px, here.col_px]
        np.testing.assert_array_equal(there.row_px, here.row_px[~out])
        np.testing.assert_array_equal(there.col_px, here.col_px[~out])
        left += int(out.sum())
    assert 0 < left == len(whole) - len(rest) <= summary["counts"]["left_out"]["excluded"]
    assert rest.manifest.exclude == (
        {
            "name": "test regions.geojson",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bounds": list(region.shape.bounds),
            "geojson": shapely.to_geojson(region.shape),
        },
    )
    assert rest.manifest.counts["sampled"] == whole.manifest.counts["sampled"]


def test_a_read_that_fails_is_told_with_tile_scene_and_band_and_the_run_goes_on(sparse, done, tmp_path, monkeypatch):
    from transforms import dpixels, read

    scene = next(s for s in read_tile(sparse.inv, "32TQR") if s.kept and s.sensor == "S2")
    real = read.read_for

    def failing(found, asset, *rest, **more):
        if (found.id, asset.band) == (scene.id, "B11"):
            raise read.ReadError(found.id, asset.band, "cut short")
        return real(found, asset, *rest, **more)

    monkeypatch.setattr(dpixels, "read_for", failing)
    summary, _ = made(sparse, tmp_path / "s")
    found = open_shards(tmp_path / "s", check=True)
    said = [{k: f[k] for k in ("tile", "scene", "band", "cause", "reason")} for f in found.manifest.failed]
    one = {"tile": "32TQR", "scene": scene.id, "band": "B11", "cause": "input", "reason": "cut short"}
    assert said and all(f == one for f in said) and summary["failed"] == list(found.manifest.failed)
    whole = open_shards(done[0])
    a, b = (s.records(np.arange(len(s))) for s in (whole, found))
    for tile in ("32TQQ", "33TUL"):
        np.testing.assert_array_equal(of_tile(a, tile).row_px, of_tile(b, tile).row_px)
    counts = found.manifest.counts
    assert counts["left_out"][FAILED] > 0
    assert counts["sampled"] == counts["kept"] + sum(counts["left_out"].values()) == whole.manifest.counts["sampled"]
    # The command says so by its exit code, the first time and when it finds the set there.
    for _ in range(2):
        result = invoked(sparse, tmp_path / "s")
        assert result.exit_code == console.WITH_FAILURES, result.output


def invoked(world, out, *more):
    line = ["shards", world.inv, "--out", str(out), "--every", "3", "--min-dates", "2", "--bbox", world.bbox]
    return CliRunner().invoke(cli_train.app, [*line, "--shard-records", "300", *more])


def test_the_command_makes_what_the_function_makes(sparse, done, tmp_path):
    app = typer.Typer()
    app.add_typer(cli_train.app, name="train")
    result = invoked(sparse, tmp_path / "s", "--json")
    assert result.exit_code == console.OK, result.output
    assert json.loads(result.stdout) == done[1] | {"out": str(tmp_path / "s")}
    assert content(tmp_path / "s") == content(done[0])
    told = invoked(sparse, tmp_path / "s")
    assert f"{done[1]['records']:,} records in" in told.stdout


def test_no_pixel_with_so_many_dates_is_refused_and_leaves_no_set(sparse, tmp_path):
    with pytest.raises(BadInput, match=r"no pixel of .* was kept .*lower --min-dates"):
        made(sparse, tmp_path / "s", rule=Rule(9, 300))
    assert not list((tmp_path / "s").iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tiles": ("33TWL",)}, "tile 33TWL is not in"),
        ({"region": region_from_bbox("0,0,1,1")}, "touches none"),
        ({"stratify": 4, "region": None}, "--stratify 4: there are 3 tiles"),
        ({"stratify": 1, "tiles": ("32TQQ",), "region": None}, "--stratify 1 with --tiles"),
        ({"profile": "v1.1-aws"}, "was made for"),
        ({"shard_records": 0}, "--shard-records 0"),
        ({"bucket_mb": 0}, "--bucket-mb 0"),
        ({"memory_gib": 0.1}, "give more --memory"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(sparse, tmp_path, more, words):
    with pytest.raises(BadInput, match=words):
        made(sparse, tmp_path / "s", **more)
    assert not (tmp_path / "s").exists()


def test_tiles_are_chosen_where_none_are_named(sparse):
    inv = read_header(sparse.inv)
    found = tiles_wanted(inv, ShardOptions(stratify=2, seed=1))
    assert len(found) == 2 and set(found) <= set(inv.tiles)
    assert tiles_wanted(inv, ShardOptions()) == sorted(inv.tiles)


def test_a_region_is_expected_to_give_its_share_and_a_larger_step_less(sparse, done):
    inv = read_header(sparse.inv)
    whole = expected_bytes(inv, inv.tiles, Rule(3), None)
    part = expected_bytes(inv, inv.tiles, Rule(3), region_from_bbox(sparse.bbox))
    assert done[1]["bytes"] < part < whole / 1000
    assert 0.24 < expected_bytes(inv, inv.tiles, Rule(6), None) / whole < 0.26


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_bucket_holds_what_a_disk_would(sparse, done, place):
    with PLACES[place]() as store:
        summary, _ = made(sparse, store.url)
        assert {e.name: store.get(e.name) for e in store.walk("")} == content(done[0])
        assert made(sparse, store.url)[0] == summary | {"already": True}


@pytest.mark.slow
def test_an_inventory_without_radar_makes_shards_with_a_warning(sparse, tmp_path):
    optical = tmp_path / "optical.parquet"
    header = read_header(sparse.inv)
    kept = {t: [s for s in read_tile(sparse.inv, t) if s.sensor == "S2"] for t in header.tiles}
    with inventory.InventoryWriter(optical, header.period, header.frozen) as writer:
        for tile, scenes in kept.items():
            writer.add(tile, scenes)
        writer.finish([s for s in header.sources if s.name.startswith("sentinel-2")])
    summary, said = made(sparse, tmp_path / "s", inv=str(optical), rule=Rule(9, 2))
    assert any("never searched for radar" in line for line in said)
    assert summary["records"] and not len(open_shards(tmp_path / "s").records(np.array([0])).s1)
