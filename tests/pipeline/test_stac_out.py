"""What the STAC of an output says of its pixels, of its versions and of its model, and who can read it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pystac
import pystac_client
import pytest
import rasterio
from conftest import contents
from rasterio.windows import Window
from stac_schemas import SCHEMAS, complaints

from pipeline import inventory
from pipeline.clean import clean
from pipeline.embed import embed
from pipeline.finish import finish_run
from pipeline.planning import EmbedOptions, make_plan
from transforms.disk_store import LocalStore
from transforms.embed import embed_block, open_worker
from transforms.grid import TILE_PX
from transforms.inventory import read_tile
from transforms.regions import region_from_bbox
from transforms.scenes import S1
from transforms.stac_assets import COUNTED, REASON_BITS
from transforms.stac_index import read_items_parquet
from transforms.statistics import scale_of_bin
from transforms.tiles import plan_tile, publish_if_complete

TILE = "33TUL"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the published STAC schemas are not in ../shared")


@pytest.fixture(scope="module")
def options(sparse):
    return EmbedOptions(region=region_from_bbox(sparse.bbox), block_px=256, tiles=(TILE,))


def run(inv, world, out, options):
    embed(str(inv), world.model, str(out), options, "embed", lambda _: None, False)
    return item_of(out)


def item_path(out):
    return next((out / "2024" / TILE).glob("*.json"))


def item_of(out):
    return json.loads(item_path(out).read_text())


@dataclasses.dataclass
class History:
    """An output after five runs: `items` as each left its tile, `files` as the first left its assets."""

    out: Path
    items: list[dict]
    files: dict[str, str]
    without: Path


@pytest.fixture(scope="module")
def history(sparse, options, tmp_path_factory):
    """Published, forced twice, made without a scene, made with it again."""
    root = tmp_path_factory.mktemp("history")
    out, without = root / "out", root / "without.parquet"
    scene = next(s.id for s in read_tile(sparse.inv, TILE) if s.kept and s.sensor == S1)
    inventory.amend(sparse.inv, [(scene, None)], "a test", without)
    items = [run(sparse.inv, sparse, out, options)]
    files = {k: v for k, v in contents(out).items() if k.startswith("2024/") and k.count("/") == 3}
    forced = dataclasses.replace(options, force=True)
    items += [run(sparse.inv, sparse, out, forced) for _ in range(2)]
    items += [run(inv, sparse, out, options) for inv in (without, sparse.inv)]
    return History(out, items, files, without)


@pytest.fixture(scope="module")
def in_large_blocks(sparse, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("large") / "out"
    return run(sparse.inv, sparse, out, dataclasses.replace(options, block_px=1024))


def asset(history, item, key):
    return item_path(history.out).parent / item["assets"][key]["href"]


def pixels(sparse, history, key):
    """The island and 100 px around it: everything else is outside the region that was asked for."""
    row, col, height, width = sparse.earth.island(TILE)
    window = Window(col - 100, row - 100, width + 200, height + 200)
    with rasterio.open(asset(history, history.items[0], key)) as f:
        return np.moveaxis(f.read(window=window), 0, -1)


@pytest.mark.slow
def test_statistics_are_those_of_the_published_pixels(sparse, history):
    said = history.items[0]["properties"]["tessera:statistics"]
    scale, counts = pixels(sparse, history, "scales")[..., 0], pixels(sparse, history, "observations")
    reasons = pixels(sparse, history, "reasons")[..., 0]
    there = np.isfinite(scale)
    assert said["embedded"] == there.sum() > 1000
    for bit, (name, _) in enumerate(REASON_BITS):
        beyond = TILE_PX**2 - reasons.size if name == "outside" else 0
        assert said["reasons"][name] == ((reasons >> bit) & 1).sum() + beyond
    assert said["reasons"]["clear"] == (reasons == 0).sum()
    for k, name in enumerate(COUNTED):
        seen = counts[there, k]
        assert (said["observations"][name]["minimum"], said["observations"][name]["maximum"]) == (
            seen.min(),
            seen.max(),
        )
        assert said["observations"][name]["p50"] == np.quantile(seen, 0.5, method="inverted_cdf")
        band = history.items[0]["assets"]["observations"]["raster:bands"][k]
        assert band["statistics"]["mean"] == pytest.approx(counts[..., k].sum() / TILE_PX**2, rel=1e-12)
        assert sum(band["histogram"]["buckets"]) == TILE_PX**2
    assert (said["scales"]["minimum"], said["scales"]["maximum"]) == (scale[there].min(), scale[there].max())
    assert said["scales"]["p50"] == pytest.approx(np.quantile(scale[there], 0.5, method="inverted_cdf"), rel=1 / 64)
    assert said["norm"] == {"checked": there.sum(), "astray": 0}


def test_the_counts_and_the_statistics_of_an_item_agree(history):
    properties = history.items[0]["properties"]
    counts, said = properties["tessera:counts"], properties["tessera:statistics"]
    assert counts["embedded"] == said["embedded"]
    for name in ("no_optical", "no_radar", "outside"):
        assert counts[name] == said["reasons"][name]


def test_the_size_of_blocks_does_not_change_the_statistics(history, in_large_blocks):
    first = history.items[0]
    assert in_large_blocks["properties"]["tessera:statistics"] == first["properties"]["tessera:statistics"]
    for key in ("observations", "scales"):
        assert in_large_blocks["assets"][key]["raster:bands"] == first["assets"][key]["raster:bands"]


def test_the_blocks_of_a_tile_add_up_to_its_statistics(history):
    blocks = pq.read_table(asset(history, history.items[0], "blocks")).to_pylist()
    said = history.items[0]["properties"]["tessera:statistics"]
    assert len(blocks) > 1
    beyond = TILE_PX**2 - sum(b["height_px"] * b["width_px"] for b in blocks)
    for name, n in said["reasons"].items():
        assert sum(b[f"reason_{name}"] for b in blocks) + (beyond if name == "outside" else 0) == n
    for name in COUNTED:
        assert sum(sum(b[f"observations_{name}"]) for b in blocks) == said["embedded"]
        assert max(len(b[f"observations_{name}"]) for b in blocks) - 1 == said["observations"][name]["maximum"]
    full = [b for b in blocks if b["scales"]]
    assert sum(sum(b["scales"]) for b in full) == sum(b["norms_checked"] for b in blocks) == said["embedded"]
    assert min(b["scale_minimum"] for b in full) == said["scales"]["minimum"]
    for b in full:
        low, _ = scale_of_bin(b["scales_from"])
        _, high = scale_of_bin(b["scales_from"] + len(b["scales"]) - 1)
        assert low <= b["scale_minimum"] <= b["scale_maximum"] < high
    assert sum(b["norms_astray"] for b in blocks) == 0


def test_every_item_names_the_one_before_it_and_each_has_files_of_its_own(history):
    folders = [i["properties"]["version"] for i in history.items]
    a, b = folders[0], folders[3]
    assert folders == [a, f"{a}.1", f"{a}.2", b, f"{a}.3"]
    links = [{x["rel"]: x["href"] for x in i["links"]}.get("predecessor-version") for i in history.items]
    assert links == [None, *(f"./{folder}/item.json" for folder in folders[:-1])]
    assert item_of(history.out) == history.items[-1]
    now = contents(history.out)
    assert {k: now[k] for k in history.files} == history.files, "who reads by the oldest item reads the oldest bytes"


def test_a_replaced_item_stays_whole_beside_its_files(history):
    for number, item in enumerate(history.items[:-1]):
        path = item_path(history.out).parent / item["properties"]["version"] / "item.json"
        kept = pystac.Item.from_file(path)
        assert kept.properties["deprecated"] is True
        for key, found in kept.assets.items():
            file = Path(found.get_absolute_href())
            assert file == asset(history, item, key).resolve()
            assert file.stat().st_size == found.extra_fields["file:size"]
        latest = kept.get_single_link("latest-version")
        assert Path(latest.get_absolute_href()) == item_path(history.out)
        before = kept.get_single_link("predecessor-version")
        assert (before is None) == (number == 0)
        for rel in ("collection", "emb:model", "derived_from", *(["predecessor-version"] if number else [])):
            for link in kept.get_links(rel):
                assert Path(link.get_absolute_href()).is_file(), link


@needs_schemas
def test_items_of_every_version_the_collection_and_the_model_follow_every_schema_that_they_declare(history):
    records = [*history.out.rglob("item.json"), item_path(history.out), history.out / "collection.json"]
    records += [p for p in (history.out / "_inputs").glob("*.json") if len(p.stem) == 64]
    records.append(history.out / "catalog.json")
    assert len(records) == 8
    for path in records:
        assert complaints(json.loads(path.read_text())) == [], path


def test_the_collection_lists_the_newest_items_alone(history):
    found = pystac.Collection.from_file(history.out / "collection.json")
    assert [i.to_dict()["properties"]["version"] for i in found.get_items()] == [
        history.items[-1]["properties"]["version"]
    ]
    index = list(read_items_parquet(history.out / "items.parquet"))
    assert [i["properties"] for i in index] == [
        history.items[-1]["properties"]
        | {"emb:quantization": index[0]["properties"]["emb:quantization"]}  # its link starts from the folder
    ]


def test_clean_takes_a_replaced_item_with_its_files_and_leaves_the_newest_alone(history, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(history.out, out)
    clean(str(out), 0.0)
    folder = item_path(out).parent
    last = history.items[-1]
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [last["properties"]["version"]]
    assert item_of(out) == last, "its link to the version before says that clean takes that away"
    link = next(x for x in last["links"] if x["rel"] == "predecessor-version")
    assert "clean" in link["title"]
    assert pystac.Item.from_file(item_path(out)).id == last["id"]


@pytest.mark.slow
def test_a_publisher_that_dies_before_the_switch_leaves_the_item_and_the_next_one_gives_the_same_bytes(
    sparse, options, history, tmp_path, monkeypatch
):
    outs = tmp_path / "killed", tmp_path / "undisturbed"
    for out in outs:
        shutil.copytree(history.out, out)
    forced = dataclasses.replace(options, force=True)
    for out in outs:
        plan, _, _ = make_plan(sparse.inv, sparse.model, str(out), forced)
        worker = open_worker(plan)
        tasks = plan_tile(plan, TILE)
        for task in tasks:
            embed_block(worker, task)
        if out == outs[0]:
            with monkeypatch.context() as patch:
                patch.setattr(LocalStore, "replace_if", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    publish_if_complete(worker, tasks[0])
            assert item_of(out) == history.items[-1]
        assert publish_if_complete(worker, tasks[0])
    assert contents(outs[0]) == contents(outs[1])


def test_the_licence_that_the_operator_writes_into_the_collection_stays(sparse, options, history, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(history.out, out)
    path = out / "collection.json"
    first = json.loads(path.read_text())
    assert first["license"] == "various"
    plan, _, _ = make_plan(sparse.inv, sparse.model, str(out), options)
    for licence, kept in (("CC-BY-4.0", "CC-BY-4.0"), ("various", "various"), ("as you like", "various")):
        path.write_text(json.dumps(first | {"license": licence}))
        finish_run(plan)
        assert json.loads(path.read_text()) == first | {"license": kept}
    path.write_text("")
    finish_run(plan)
    assert json.loads(path.read_text()) == first


def test_static_clients_read_the_output(sparse, history):
    client = pystac_client.Client.open(str(history.out / "catalog.json"))
    (collection,) = client.get_collections()
    assert [i.id for i in collection.get_items()] == [history.items[-1]["id"]]
    assert [i.id for i in client.get_items(recursive=True)] == [history.items[-1]["id"]]
    models = [link for link in collection.get_links("derived_from") if link.media_type == "application/geo+json"]
    model = pystac.Item.from_file(models[0].get_absolute_href())
    assert model.properties["mlm:framework"] == "ONNX"
    assert Path(model.assets["model"].get_absolute_href()).is_file()


def test_the_reader_of_stac_geoparquet_gives_the_items(history):
    arrow = pytest.importorskip("stac_geoparquet.arrow", reason="stac-geoparquet is not installed here")
    found = list(arrow.stac_table_to_items(pq.read_table(history.out / "items.parquet")))
    assert [i["id"] for i in found] == [history.items[-1]["id"]]


def test_rustac_reads_the_index(history):
    rustac = pytest.importorskip("rustac", reason="rustac is not installed here")
    found = rustac.read_sync(str(history.out / "items.parquet"))
    assert [i["id"] for i in found["features"]] == [history.items[-1]["id"]]
