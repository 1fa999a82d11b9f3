import shutil

import pytest
from shapely.geometry import shape

from model.errors import BadInput
from pipeline.room import bytes_a_pixel, check_room, pixels_of
from transforms.grid import TILE_PX, blocks_of, footprint, tile_of
from transforms.regions import clip_of, region_from_bbox
from transforms.stac_geometry import geometry_of

ONE = TILE_PX**2 * bytes_a_pixel(128)


def disk_with(monkeypatch, free):
    usage = shutil.disk_usage("/")._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize(("free", "words"), [(1.9, "make room"), (2.1, "keeps the tiles"), (3.1, "")])
def test_a_disk_must_hold_a_tile_twice_and_should_hold_them_all(tmp_path, monkeypatch, free, words):
    disk_with(monkeypatch, free * ONE)
    out = tmp_path / "not there" / "yet"
    if free < 2:
        with pytest.raises(BadInput, match=words):
            check_room(out, ["33TWL", "33TWM"], None, 128)
    else:
        said = check_room(out, ["33TWL", "33TWM"], None, 128)
        assert bool(said) == bool(words) and all(words in s for s in said)


def test_where_all_is_published_no_room_is_needed(tmp_path, monkeypatch):
    disk_with(monkeypatch, 0)
    assert check_room(tmp_path, [], None, 128) == []


@pytest.mark.parametrize("tile", ["33TWL", "33XWH"])
def test_pixels_of_a_region_are_those_of_its_mask_within_some_per_cent(tile):
    lon, lat = shape(geometry_of(footprint(tile_of(tile)))).centroid.coords[0]
    region = region_from_bbox(f"{lon - 0.3},{lat - 0.1},{lon + 0.2},{lat + 0.2}")
    clip = clip_of(region, tile)
    exact = sum(clip.mask(tile, b.row_px, b.col_px, b.height_px, b.width_px).sum() for b in blocks_of(tile, 2048))
    assert exact > 0
    assert pixels_of(tile, region) == pytest.approx(exact, rel=0.05)
    assert pixels_of(tile, None) == TILE_PX**2
