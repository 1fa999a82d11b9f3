"""What others find in an output: COGs, STAC, the right place on Earth; and tiles whose publisher died or raced."""

import dataclasses
import json
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
from conftest import SHARED, contents
from rasterio.warp import transform
from rio_cogeo.cogeo import cog_validate
from stac_schemas import complaints

from model.errors import BadInput
from pipeline.embed import embed
from pipeline.planning import EmbedOptions, make_plan
from transforms import embed as steps
from transforms import read
from transforms.embed import embed_block, open_worker
from transforms.fragments import RASTERS
from transforms.grid import TILE_PX, tile_of
from transforms.inventory import read_tile
from transforms.plans import desk_of
from transforms.publish import published_revision
from transforms.receipts import DONE, FAILED
from transforms.regions import region_from_bbox
from transforms.scenes import S1
from transforms.storage import open_store
from transforms.tiles import plan_tile, publish_if_complete

TILE = "33TUL"
HOST = "a-host-that-only-receipts-name"


@pytest.fixture(scope="module")
def options(sparse):
    return EmbedOptions(region=region_from_bbox(sparse.bbox), block_px=256, tiles=(TILE,))


@pytest.fixture(scope="module")
def out(sparse, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: HOST)
        embed(sparse.inv, sparse.model, str(folder), options, "embed", lambda _: None, False)
    return folder


@pytest.fixture(scope="module")
def item(out):
    return json.loads(next((out / "2024" / TILE).glob("*.json")).read_text())


@pytest.mark.parametrize("key", RASTERS)
def test_every_raster_is_a_valid_cog_in_the_right_place(out, item, key):
    path = out / "2024" / TILE / item["assets"][key]["href"]
    valid, errors, _ = cog_validate(path)
    assert valid, errors
    tile = tile_of(TILE)
    with rasterio.open(path) as f:
        assert (f.height, f.width) == (TILE_PX, TILE_PX)
        assert f.crs.to_epsg() == tile.epsg
        assert tuple(f.bounds) == tile.bounds_m
        assert f.transform.e < 0, "north-up"
        assert f.count == 1 or f.profile["interleave"] == "pixel"
        assert f.profile["compress"] == "zstd"
        assert f.tags()["TESSERA_REVISION"] == item["properties"]["tessera:revision"]


def test_the_island_lies_where_the_planet_has_it(sparse, out, item):
    west, south, east, north = sparse.earth.bbox
    with rasterio.open(out / "2024" / TILE / item["assets"]["scales"]["href"]) as f:
        rows, cols = np.nonzero(np.isfinite(f.read(1)))
        x, y = f.transform * (cols + 0.5, rows + 0.5)
        lon, lat = transform(f.crs, "EPSG:4326", x, y)
    assert west - 1e-4 < min(lon) and max(lon) < east + 1e-4
    assert south - 1e-4 < min(lat) and max(lat) < north + 1e-4


def test_odc_stac_loads_the_embeddings(sparse, out, item):
    stac = pystac.Item.from_file(str(next((out / "2024" / TILE).glob("*.json"))))
    row, col, height, width = sparse.earth.island(TILE)
    tile = tile_of(TILE)
    x0, y1 = tile.left_m + col * 10, tile.top_m - row * 10
    cube = odc.stac.load(
        [stac], bands=["embeddings.1", "embeddings.128", "scales"], crs=tile.crs, resolution=10,
        x=(x0, x0 + width * 10), y=(y1 - height * 10, y1),
    )  # fmt: skip
    with rasterio.open(out / "2024" / TILE / item["assets"]["embeddings"]["href"]) as f:
        want = f.read([1, 128], window=rasterio.windows.Window(col, row, width, height))
    assert np.array_equal(cube["embeddings.1"].values[0], want[0])
    assert np.array_equal(cube["embeddings.128"].values[0], want[1])
    assert np.isfinite(cube["scales"].values).any()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared STAC schemas are not beside the project")
def test_item_and_collection_follow_every_schema_they_declare(out, item):
    assert complaints(item) == []
    assert complaints(json.loads((out / "collection.json").read_text())) == []


def test_no_clock_and_no_host_stands_in_a_published_file(out):
    """`created` is the inventory's freeze time; the tests of two runs hold the bytes."""
    assert any(HOST in p.read_text() for p in (out / "_runs").rglob("*.json")), "receipts do name it"
    published = [p for p in (out / "2024").rglob("*") if p.is_file()]
    assert len(published) > len(RASTERS)
    for path in [*published, out / "collection.json", out / "items.parquet"]:
        assert HOST.encode() not in path.read_bytes(), path
    created = {json.loads(p.read_text())["properties"]["created"] for p in (out / "2024").rglob("*.json")}
    assert created == {"2026-01-01T00:00:00Z"}


@pytest.fixture
def worker(sparse, options, tmp_path):
    plan, _, _ = make_plan(sparse.inv, sparse.model, str(tmp_path / "out"), options)
    return open_worker(plan)


@pytest.fixture(scope="module")
def made(sparse, options, tmp_path_factory):
    """A plan whose blocks are all done and whose tile is not published: a worker died in between."""
    plan, _, _ = make_plan(sparse.inv, sparse.model, str(tmp_path_factory.mktemp("made") / "out"), options)
    worker = open_worker(plan)
    assert {embed_block(worker, t).status for t in plan_tile(plan, TILE)} == {DONE}
    return plan


@pytest.fixture
def finished(made, tmp_path):
    """A worker over a copy of what `made` left."""
    shutil.copytree(made.out, tmp_path / "out")
    return open_worker(dataclasses.replace(made, out=str(tmp_path / "out")))


def same_tile(worker, out: Path) -> bool:
    def of(folder):
        return {k: v for k, v in contents(Path(folder)).items() if k.startswith("2024/")}

    return of(worker.plan.out) == of(out)


def test_two_publishers_at_once_do_no_harm(finished, out):
    tasks = plan_tile(finished.plan, TILE)
    for task in tasks:
        assert embed_block(finished, task).status == DONE
    ready, results, errors = threading.Barrier(2), [], []

    def publish():
        ready.wait()
        try:
            results.append(publish_if_complete(finished, tasks[-1]))
        except Exception as e:  # whatever it is, the test shows it
            errors.append(e)

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert any(results)
    assert same_tile(finished, out)


def test_the_sweep_publishes_what_a_dead_worker_left(sparse, options, finished, out, monkeypatch):
    """All blocks are done and their worker died before publishing: the next run only publishes."""
    calls = []
    monkeypatch.setattr(steps, "embed_window", lambda *a: calls.append(a))
    embed(sparse.inv, sparse.model, finished.plan.out, options, "embed", lambda _: None, False)
    assert not calls, "no block is made again"
    assert same_tile(finished, out)


def test_a_block_whose_fragment_is_gone_or_short_is_made_again(finished, out):
    tasks = plan_tile(finished.plan, TILE)
    receipts = [embed_block(finished, t) for t in tasks]
    full = next(t for t, r in zip(tasks, receipts, strict=True) if r.counts["embedded"])
    folder = Path(finished.plan.out) / desk_of(finished.plan, full).folder
    fragment = next(folder.glob(f"{full.block.name}.embeddings.*.frag"))
    fragment.write_bytes(fragment.read_bytes()[:-1])
    before = receipts[tasks.index(full)]
    again = embed_block(finished, full)
    assert again.started != before.started and again.parts == before.parts
    assert publish_if_complete(finished, full)
    assert same_tile(finished, out)


def test_a_done_block_is_not_made_again(worker, monkeypatch):
    task = plan_tile(worker.plan, TILE)[0]
    first = embed_block(worker, task)
    monkeypatch.setattr(steps, "embed_window", None)
    assert embed_block(worker, task) == first


def test_a_block_of_another_kind_of_device_is_made_again(worker, monkeypatch):
    task = plan_tile(worker.plan, TILE)[0]
    embed_block(worker, task)
    monkeypatch.setattr(steps, "device_kind", lambda _: "cpu of another kind")
    assert embed_block(worker, task).device == "cpu of another kind"


def test_a_bundle_that_runs_twice_finds_the_tile_published(finished):
    tasks = plan_tile(finished.plan, TILE)
    for task in tasks:
        embed_block(finished, task)
    assert publish_if_complete(finished, tasks[0])
    store = open_store(finished.plan.out)
    embed_block(finished, tasks[0])  # by a run that had begun it before
    assert not publish_if_complete(finished, tasks[0])
    assert not list((Path(store.url) / "_work").rglob("*.frag")), "what it left is nobody else's to clear away"
    assert published_revision(store, TILE, "2024", finished.plan.model_name) == tasks[0].revision
    assert plan_tile(finished.plan, TILE) == ()
    assert plan_tile(dataclasses.replace(finished.plan, force=True), TILE) == tasks


@pytest.mark.slow
def test_another_decision_about_a_scene_is_another_revision(sparse, options, out, tmp_path):
    from pipeline import inventory

    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    scene = next(s.id for s in read_tile(sparse.inv, TILE) if s.kept and s.sensor == S1)
    inv2 = tmp_path / "inv2.parquet"
    inventory.amend(sparse.inv, [(scene, None)], "a test", inv2)
    old = json.loads(next((copy / "2024" / TILE).glob("*.json")).read_text())
    embed(str(inv2), sparse.model, str(copy), options, "embed", lambda _: None, False)
    new = json.loads(next((copy / "2024" / TILE).glob("*.json")).read_text())
    assert new["properties"]["tessera:revision"] != old["properties"]["tessera:revision"]
    assert (copy / "2024" / TILE / old["assets"]["embeddings"]["href"]).is_file(), "a reader of the old item goes on"


@pytest.mark.slow
def test_another_run_s_region_is_never_replaced_by_ours_and_the_next_run_adds_ours(sparse, options, item, tmp_path):
    """Planned before the other run published: publishing ours alone would take its pixels away."""
    west, south, east, north = sparse.earth.bbox
    middle = (west + east) / 2
    halves = [f"{west},{south},{middle},{north}", f"{middle},{south},{east},{north}"]
    first, second = (dataclasses.replace(options, region=region_from_bbox(half)) for half in halves)
    where = str(tmp_path / "out")
    plan, _, _ = make_plan(sparse.inv, sparse.model, where, first)
    worker = open_worker(plan)
    tasks = plan_tile(plan, TILE)
    embed(sparse.inv, sparse.model, where, second, "embed", lambda _: None, False)
    theirs = published_revision(open_store(where), TILE, "2024", plan.model_name)
    for task in tasks:
        embed_block(worker, task)
    assert not publish_if_complete(worker, tasks[-1])
    assert published_revision(open_store(where), TILE, "2024", plan.model_name) == theirs
    summary = embed(sparse.inv, sparse.model, where, first, "embed", lambda _: None, False)
    assert summary["totals"]["tiles_published"] == 1
    both = json.loads(next((tmp_path / "out/2024" / TILE).glob("*.json")).read_text())
    assert both["properties"]["tessera:counts"] == item["properties"]["tessera:counts"]


def test_a_damaged_fragment_is_not_published_and_its_block_is_made_again_on_the_way(finished, out):
    tasks = plan_tile(finished.plan, TILE)
    receipts = [embed_block(finished, t) for t in tasks]
    full = next(t for t, r in zip(tasks, receipts, strict=True) if r.counts["embedded"])
    folder = Path(finished.plan.out) / desk_of(finished.plan, full).folder
    fragment = next(folder.glob(f"{full.block.name}.scales.*.frag"))
    data = bytearray(fragment.read_bytes())
    data[len(data) // 2] ^= 1
    fragment.write_bytes(bytes(data))
    assert publish_if_complete(finished, full)
    assert same_tile(finished, out)
    assert not folder.exists()


def test_a_fragment_that_cannot_be_made_again_leaves_the_tile_as_it_was(finished, monkeypatch):
    tasks = plan_tile(finished.plan, TILE)
    receipts = [embed_block(finished, t) for t in tasks]
    full = next(t for t, r in zip(tasks, receipts, strict=True) if r.counts["embedded"])
    folder = Path(finished.plan.out) / desk_of(finished.plan, full).folder
    next(folder.glob(f"{full.block.name}.scales.*.frag")).write_bytes(b"other bytes")

    def unreadable(*_, **__):
        raise read.ReadError("S2A", "B04", "it is gone")

    monkeypatch.setattr("transforms.embed.read_stack", unreadable)
    assert not publish_if_complete(finished, full)
    assert not published_revision(open_store(finished.plan.out), TILE, "2024", finished.plan.model_name)
    statuses = desk_of(finished.plan, full).statuses(open_store(finished.plan.out))
    assert statuses[full.block.name] == FAILED


def test_a_folder_with_somebody_else_s_files_is_refused(sparse, options, tmp_path):
    (tmp_path / "collection.json").write_text("{}")
    with pytest.raises(BadInput, match=r"not of tessera-beam \(collection\.json\): choose another --out"):
        embed(sparse.inv, sparse.model, str(tmp_path), options, "embed", lambda _: None, False)
    assert (tmp_path / "collection.json").read_text() == "{}"


def test_a_file_of_another_type_is_a_failed_block(sparse, options, tmp_path, monkeypatch):
    monkeypatch.setitem(read.DTYPES, "B04", "float32")  # as if the file held something else than was expected
    summary = embed(sparse.inv, sparse.model, str(tmp_path / "out"), options, "embed", lambda _: None, False)
    assert summary["totals"]["tiles_published"] == 0
    assert {(f["band"], f["reason"]) for f in summary["failures"]} == {
        ("B04", "the file holds uint16, float32 digital numbers were expected")
    }
