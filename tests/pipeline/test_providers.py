"""The same scenes in the words of each provider: the same d-pixels, wherever a profile lets two of them in."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from faulty_server import serve
from jp2_files import sparse
from rasterio.windows import Window
from s3_server import KEY, SECRET, Bucket

from model.errors import BadInput
from model.families import profile_for
from model.profile import CDSE_L2A, S2_BANDS
from pipeline import inventory
from pipeline.against import against, words
from pipeline.demo.items import S2_ASSETS
from pipeline.demo.run import FROZEN
from pipeline.dpixels import dpixels
from transforms import hosts, remote, sigv4
from transforms.catalogs.source import S2_PIXEL_M
from transforms.dpixels import LAYOUT, build, load, read_stack
from transforms.grid import tile_of
from transforms.http import Fetcher
from transforms.inventory import read_header, read_tile
from transforms.periods import period_of
from transforms.scenes import S2

pytestmark = pytest.mark.slow  # many files are written and read

TILE = "33TUL"
S2_FOLDER, S1_FOLDER = "sentinel-2-c1-l2a", "sentinel-1-rtc"


def items_of(folder):
    return sorted(folder.glob(f"{S2_FOLDER}/*/*.json"))


def as_planetary_computer(item, _folder):
    """Band names for keys, no scale, no offset, its own names of tile and collection (trap T8)."""
    said = item["properties"]
    tile = said.pop("grid:code").removeprefix("MGRS-")
    for name in [n for n in said if n.startswith("mgrs:")]:
        del said[name]
    assets = {band: item["assets"].pop(key) for band, (key, *_) in S2_ASSETS.items()}
    for asset in assets.values():
        asset.pop("raster:bands")
    return item | {
        "collection": "sentinel-2-l2a",
        "properties": said | {"s2:mgrs_tile": tile},
        "assets": assets,
    }


def as_earth_search(applied):
    """The older collection: a flag says whether the offset was subtracted; `raster:bands` says -0.1 either way (T9)."""

    def change(item, folder):
        item["collection"] = "sentinel-2-l2a"
        item["properties"]["earthsearch:boa_offset_applied"] = applied
        for band, (key, *_) in S2_ASSETS.items():
            asset = item["assets"][key]
            if band != "SCL" and applied:
                asset["href"] = harmonised(folder / asset["href"])
            if band != "SCL":
                asset["raster:bands"][0]["offset"] = -0.1
        return item

    return change


def harmonised(path):
    """A copy without the 1000 DN, as the provider writes it: what is below stays (nodata is 0)."""
    target = path.with_name(f"{path.stem}-harmonised.tif")
    with rasterio.open(path) as file:
        pixels = file.read()
        island = np.where(pixels >= 1000, pixels - 1000, pixels)
        profile = {**file.profile, "compress": "deflate", "predictor": 2, "sparse_ok": True}
    with rasterio.open(target, "w", **profile) as file:
        file.write(island)
    return f"./{target.name}"


def as_data_space(item, folder):
    """STAC 1.1 with names of its own, and lossless JPEG 2000 of 15 bits without a tag for nodata, as ESA writes it.

    Of every second scene the files list their tiles, as those of baseline 05.12 and newer do.
    """
    said = item["properties"]
    code = f"EPSG:{said.pop('proj:epsg')}"
    said |= {
        "processing:version": said.pop("s2:processing_baseline"),
        "processing:datetime": said.pop("s2:generation_time"),
        "eopf:datatake_id": said.pop("s2:datatake_id"),
        "proj:code": code,
    }
    for name in [n for n in said if n.startswith(("mgrs:", "s2:"))]:
        del said[name]
    assets = {}
    for band, (key, *_, pixel_m) in S2_ASSETS.items():
        old = item["assets"][key]
        path = folder / old["href"]
        made = path.with_name(f"{band}_{pixel_m}m.jp2")
        made.write_bytes(as_jpeg_2000(path, with_list=int(item["id"].encode().hex(), 16) % 2 == 0))
        path.unlink()
        assets[f"{band}_{pixel_m}m"] = {
            "href": f"./{made.name}", "type": "image/jp2", "bands": [{"name": band}], "proj:code": code,
            "proj:shape": old["proj:shape"], "proj:transform": old["proj:transform"], "nodata": 0,
            "raster:scale": 0.0001, "raster:offset": -0.1,
        }  # fmt: skip
    return item | {"stac_version": "1.1.0", "collection": "sentinel-2-l2a", "assets": assets}


def as_jpeg_2000(path, with_list):
    """The pixels of a sparse COG in tiles of 1024 px."""
    with rasterio.open(path) as file:
        tiles = {}
        for (i, j), block in file.block_windows(1):
            if file.get_tag_item(f"BLOCK_OFFSET_{j}_{i}", "TIFF", bidx=1):  # stored
                row, col = block.row_off // 1024, block.col_off // 1024
                shape = min(1024, file.height - row * 1024), min(1024, file.width - col * 1024)
                tiles[row, col] = file.read(1, window=Window(col * 1024, row * 1024, *shape[::-1]))
        nbits = None if path.stem == "SCL" else 15
        epsg, dtype = file.crs.to_epsg(), file.dtypes[0]
        return sparse(tiles, file.height, file.width, 1024, dtype, file.transform, epsg, with_list, nbits)


PROVIDERS = {
    "earth-search c1": ("earth-search", lambda item, _: item),
    "planetary-computer": ("planetary-computer", as_planetary_computer),
    "earth-search, raw": ("earth-search", as_earth_search(False)),
    "earth-search, harmonised": ("earth-search", as_earth_search(True)),
    "cdse": ("cdse", as_data_space),
}
MONTHS = ("202404", "202405")  # rewriting a whole year's files would take minutes


@pytest.fixture(scope="module")
def copies(world, tmp_path_factory):
    """An inventory of the same two months of one tile by each provider's description."""
    made = {}
    root = tmp_path_factory.mktemp("providers")
    for name, (provider, change) in PROVIDERS.items():
        folder = root / name.replace(" ", "-").replace(",", "")
        paths = [p for p in items_of(world.earth.folder) if f"_T{TILE}_" in p.name and p.name[11:17] in MONTHS]
        assert len(paths) > 4
        for path in paths:
            there = folder / path.parent.name
            shutil.copytree(path.parent, there)
            item = change(json.loads(path.read_text()), there)
            (there / path.name).write_text(json.dumps({**item, "links": []}))
        out = root / f"{folder.name}.parquet"
        catalogues = [(str(folder), provider), (str(world.earth.folder / S1_FOLDER), "planetary-computer")]
        inventory.build(catalogues, period_of("2024"), [TILE], out, now=FROZEN)
        made[name] = str(out)
    return made


def pixels_of(world, inv, profile, folder):
    window = ",".join(map(str, world.earth.island(TILE)))
    dpixels(inv, profile, TILE, window, str(folder), lambda _: None)
    return load(folder, pytest.fail)


def widened(world, inv):
    """As `pixels_of`, by v2's rules for a model that may be given the Data Space's pixels: there is none yet."""
    row, col, height, width = world.earth.island(TILE)
    rules = profile_for("v2", native_dims=128)
    profile = dataclasses.replace(rules, s2_sources=(*rules.s2_sources, CDSE_L2A))
    rows, cols = range(row, row + height), range(col, col + width)
    with ThreadPoolExecutor(8) as pool:
        stack = read_stack(read_tile(inv, TILE), read_header(inv).roots, profile, tile_of(TILE), rows, cols, pool)
    return build(stack, profile, rows)


@pytest.mark.parametrize("name", [n for n in PROVIDERS if n != "earth-search c1"])
def test_every_description_of_the_same_scenes_gives_the_same_d_pixels(world, copies, tmp_path, name):
    first = pixels_of(world, copies["earth-search c1"], "v2", tmp_path / "a")
    other = widened(world, copies[name]) if name == "cdse" else pixels_of(world, copies[name], "v2", tmp_path / "b")
    assert len(first.doys) > 4
    assert first.masks.any()
    for array in LAYOUT:
        got, meant = getattr(other, array), getattr(first, array)
        if array == "bands" and "harmonised" in name:
            differs = (got != meant) & (first.masks == 1)[..., None]
            ten = [k for k, band in enumerate(S2_BANDS) if S2_PIXEL_M[band] == 10]
            assert not differs[..., ten].any()
            # Below 1000 DN nothing is subtracted, there before the 20 m bands are mixed, here after: near dark water.
            assert differs.sum() < 0.002 * differs.size
        else:
            np.testing.assert_array_equal(got, meant)


def test_the_data_space_gives_the_same_d_pixels_from_its_bucket_in_signed_ranges(world, copies, tmp_path, monkeypatch):
    """Items with s3:// hrefs, as its API gives them; the files lie behind a server that checks each signature."""
    folder = Path(copies["cdse"]).with_suffix("")
    objects = {f"/eodata/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*.jp2")}
    for path in folder.rglob("*.json"):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            asset["href"] = f"s3://eodata/{path.parent.name}/{Path(asset['href']).name}"
        (tmp_path / "items").mkdir(exist_ok=True)
        (tmp_path / "items" / path.name).write_text(json.dumps(item))
    inv = tmp_path / "i.parquet"
    catalogues = [(str(tmp_path / "items"), "cdse"), (str(world.earth.folder / S1_FOLDER), "planetary-computer")]
    inventory.build(catalogues, period_of("2024"), [TILE], inv, now=FROZEN)
    bucket = Bucket(objects)
    with serve(bucket.server), hosts.allowed(bucket.server.place):
        for name, value in (
            *((sigv4.ENDPOINT_VARIABLE, bucket.server.url), (sigv4.ID_VARIABLE, KEY)),
            (sigv4.SECRET_VARIABLE, SECRET),
        ):
            monkeypatch.setenv(name, value)
        remote.use_fetcher(Fetcher())
        try:
            there = widened(world, str(inv))
        finally:
            remote.use_fetcher(None)
    here = pixels_of(world, copies["earth-search c1"], "v2", tmp_path / "here")
    assert bucket.asked and not bucket.refused
    for array in LAYOUT:
        np.testing.assert_array_equal(getattr(there, array), getattr(here, array))


def test_no_published_profile_takes_the_data_space(world, copies, tmp_path):
    with pytest.raises(BadInput, match="scenes of sentinel-2-l2a@cdse; profile v2 was made for"):
        pixels_of(world, copies["cdse"], "v2", tmp_path)


def test_the_offset_of_every_description_is_decided_and_explained(copies):
    reasons = {}
    for name, inv in copies.items():
        scenes = [s for s in read_tile(inv, TILE) if s.sensor == S2 and s.kept]
        assert scenes
        reasons[name] = {(s.offset_dn, s.offset_reason.partition(":")[0].partition(";")[0]) for s in scenes}
        assert {dn for dn, _ in reasons[name]} == ({0} if "harmonised" in name else {1000})
    assert reasons["cdse"] == reasons["planetary-computer"]  # nobody has touched the pixels: by baseline
    assert len({frozenset(r) for r in reasons.values()}) == len(PROVIDERS) - 1  # else each by a rule of its own


def test_two_inventories_of_the_same_pixels_differ_in_nothing_but_what_the_profile_lets_in(world, copies):
    row, col, height, width = world.earth.island(TILE)
    window = f"{row},{col},{height},{width}"
    found = against(copies["earth-search c1"], copies["planetary-computer"], world.model, TILE, window)
    assert found["optical"]["valid_in_both"] > 1_000
    assert found["optical"]["valid_in_first_only"] == found["optical"]["valid_in_second_only"] == 0
    assert {v["equal_share"] for v in found["optical"]["bands"].values()} == {1.0}
    assert found["embeddings"]["equal_codes_share"] == 1.0
    assert found["notes"] == []
    assert "100.00% of the codes equal" in words(found)


def test_a_missed_offset_shows_in_every_band_and_is_named(world, copies, tmp_path):
    """The harmonised copy under a flag that lies."""
    folder = tmp_path / "lying"
    shutil.copytree(Path(copies["earth-search, raw"]).with_suffix(""), folder)
    for path in folder.glob("*/*.json"):
        item = json.loads(path.read_text())
        item["properties"]["earthsearch:boa_offset_applied"] = True
        path.write_text(json.dumps(item))
    out = tmp_path / "lying.parquet"
    catalogues = [(str(folder), "earth-search"), (str(world.earth.folder / S1_FOLDER), "planetary-computer")]
    inventory.build(catalogues, period_of("2024"), [TILE], out, now=FROZEN)
    window = ",".join(map(str, world.earth.island(TILE)))
    found = against(copies["earth-search c1"], str(out), world.model, TILE, window)
    assert {round(v["mean"]) for v in found["optical"]["bands"].values()} <= set(range(900, 1001))
    assert found["embeddings"]["equal_codes_share"] < 0.9
    assert any("offset of 1000 DN was missed" in note for note in found["notes"])
    assert "note: " in words(found)


def test_inventories_of_other_periods_and_places_are_refused(world, copies):
    with pytest.raises(BadInput, match="build them for one period"):
        against(world.inv, world.inv_2025, world.model)
    with pytest.raises(BadInput, match="tile 32TQR is not in both: they share 33TUL"):
        against(world.inv, copies["planetary-computer"], world.model, "32TQR")
