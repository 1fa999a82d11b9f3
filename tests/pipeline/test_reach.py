import dataclasses

import pytest

from model.errors import BadInput
from pipeline.reach import check_reach
from transforms import sigv4
from transforms.hosts import allowed
from transforms.inventory import read_header, read_tile, write_inventory


def moved(world, tmp_path, href):
    """The small planet's inventory with one asset elsewhere."""
    header = read_header(world.inv)
    tiles = {}
    for tile in header.tiles:
        scenes = read_tile(world.inv, tile)
        kept = next(i for i, s in enumerate(scenes) if s.kept)
        first = scenes[kept]
        assets = (dataclasses.replace(first.assets[0], href=href), *first.assets[1:])
        scenes[kept] = dataclasses.replace(first, assets=assets)
        tiles[tile] = scenes
    return write_inventory(tmp_path / "inv.parquet", header.period, header.frozen, tiles, header.sources)


def test_files_on_disk_and_of_providers_are_within_reach(world, tmp_path):
    header = read_header(world.inv)
    check_reach(header, header.tiles)
    check_reach(moved(world, tmp_path, "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a/B04.tif"), header.tiles)


@pytest.mark.parametrize(
    "href",
    [
        "https://example.org/B04.tif",
        "http://127.0.0.1:9/B04.tif",
        "http://169.254.169.254/latest/meta-data.tif",
        "http://sentinel-cogs.s3.us-west-2.amazonaws.com/B04.tif",
    ],
)
def test_a_server_that_nobody_named_is_refused_with_tile_scene_and_band(world, tmp_path, href):
    inv = moved(world, tmp_path, href)
    with pytest.raises(BadInput, match=rf"^tile {inv.tiles[0]}, S\w+ \w+: "):
        check_reach(inv, inv.tiles)


def test_a_mirror_that_the_user_names_is_within_reach(world, tmp_path):
    inv = moved(world, tmp_path, "http://127.0.0.1:9/B04.tif")
    with allowed("127.0.0.1:9"):
        check_reach(inv, inv.tiles)


S3_HREF = "s3://eodata/Sentinel-2/MSI/L2A/x.SAFE/T33TUL_B04_10m.jp2"


def test_files_for_holders_of_keys_are_refused_without_them_before_anything_is_read(world, tmp_path, monkeypatch):
    inv = moved(world, tmp_path, S3_HREF)
    for name in (sigv4.ID_VARIABLE, sigv4.SECRET_VARIABLE, sigv4.AWS_ENDPOINT, sigv4.ENDPOINT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match=rf"^tile {inv.tiles[0]}, S\w+ \w+: .*set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET"):
        check_reach(inv, inv.tiles)
    monkeypatch.setenv(sigv4.ID_VARIABLE, "KEY1")
    with pytest.raises(BadInput, match="go together") as e:
        check_reach(inv, inv.tiles)
    assert "KEY1" not in str(e.value)
    monkeypatch.setenv(sigv4.SECRET_VARIABLE, "secret")
    check_reach(inv, inv.tiles)


def test_another_bucket_is_refused(world, tmp_path):
    inv = moved(world, tmp_path, "s3://sentinel-s2-l2a/tiles/B04.jp2")
    with pytest.raises(BadInput, match="s3 bucket 'sentinel-s2-l2a'"):
        check_reach(inv, inv.tiles)
