"""The same scenes in the words of each provider: the same d-pixels, wherever a profile lets two of them in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from model.errors import BadInput
from model.profile import S2_BANDS
from pipeline import inventory
from pipeline.against import against, words
from pipeline.demo.items import S2_ASSETS
from pipeline.demo.run import FROZEN
from pipeline.dpixels import dpixels
from transforms.catalogs.source import S2_PIXEL_M
from transforms.dpixels import LAYOUT, load
from transforms.inventory import read_tile
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


PROVIDERS = {
    "earth-search c1": ("earth-search", lambda item, _: item),
    "planetary-computer": ("planetary-computer", as_planetary_computer),
    "earth-search, raw": ("earth-search", as_earth_search(False)),
    "earth-search, harmonised": ("earth-search", as_earth_search(True)),
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


@pytest.mark.parametrize("name", [n for n in PROVIDERS if n != "earth-search c1"])
def test_every_description_of_the_same_scenes_gives_the_same_d_pixels(world, copies, tmp_path, name):
    first = pixels_of(world, copies["earth-search c1"], "v2", tmp_path / "a")
    other = pixels_of(world, copies[name], "v2", tmp_path / "b")
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


def test_the_offset_of_every_description_is_decided_and_explained(copies):
    reasons = {}
    for name, inv in copies.items():
        scenes = [s for s in read_tile(inv, TILE) if s.sensor == S2 and s.kept]
        assert scenes
        reasons[name] = {(s.offset_dn, s.offset_reason.partition(":")[0].partition(";")[0]) for s in scenes}
        assert {dn for dn, _ in reasons[name]} == ({0} if "harmonised" in name else {1000})
    assert len({frozenset(r) for r in reasons.values()}) == len(PROVIDERS)  # each by a rule of its own


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
