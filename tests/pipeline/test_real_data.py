import dataclasses
import datetime as dt
import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.families import profile_for
from model.profile import S2_BANDS
from pipeline.real import cubes, openeo, run, worldcereal
from pipeline.real.checks import Check, compare, table
from pipeline.real.cubes import MISSING, Cube, power_of, read_cube
from transforms import dpixels
from transforms.dpixels import scale_s1
from transforms.inventory import read_tile

SHARED = Path(__file__).parents[2] / "../shared/real-data"
real = pytest.mark.skipif(bool(run.skipped(SHARED)), reason=str(run.skipped(SHARED)))

BELGIUM = (10, 0, 643_260, 0, -10, 5_676_480)  # the corner of the openEO cubes, in tile 31UFS


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def result(out):
    return run.run(SHARED, out)


def made_up(tmp_path, seed=0, shape=(10, 12), days=(2, 5, 7)):
    """Cubes as openEO writes them, of numbers that mean nothing, with some values missing in every band."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "made_up.nc"
    path.write_bytes(b"")
    T, (H, W) = len(days), shape

    def band(low, high, side):
        values = rng.integers(low, high, (T, -(-H // side), -(-W // side))).astype(np.uint16)
        values[rng.random(values.shape) < 0.1] = MISSING
        return values.repeat(side, 1).repeat(side, 2)[:, :H, :W]

    optical = {"B01": band(1, 9000, 1), "B04": band(1, 9000, 1), "B08": band(1, 9000, 1), "B11": band(1, 9000, 2)}
    optical["SCL"] = band(2, 12, 2)
    s2 = Cube(path, 32631, BELGIUM, tuple(dt.date(2023, 4, d) for d in days), optical)
    radar = {"VV": band(1, 65535, 1), "VH": band(1, 65535, 1)}
    s1 = Cube(path, 32631, BELGIUM, tuple(dt.date(2023, 4, d) for d in (3, 5, 8)), radar)
    return s2, s1


@real
def test_whatever_is_compared_is_equal(result):
    checks = [check for part in result["parts"].values() for check in part["checks"]]
    assert result["ok"], table(checks)
    assert sum(c.values for c in checks if c.what.startswith("openEO S2")) > 12 * 66 * 64 * 10
    assert sum(c.values for c in checks if c.what.startswith("openEO S1")) > 10 * 66 * 64 * 2


@real
def test_the_embedding_lies_where_the_cube_does_and_holds_the_codes_of_the_array(result, out):
    codes = np.load(out / "worldcereal/worldcereal.npy")
    with rasterio.open(out / "worldcereal/embeddings.tif") as file:
        assert file.crs.to_epsg() == 32631
        assert tuple(file.bounds) == (664_000, 5_611_120, 665_000, 5_612_120)
        assert (file.dtypes[0], file.nodata) == ("int8", -128)
        np.testing.assert_array_equal(file.read(), np.moveaxis(codes, -1, 0))
        tags = file.tags()
    assert "B8A: B08" in tags["TESSERA_STAND_INS"]
    assert json.loads((out / "worldcereal/record.json").read_text())["stand_ins"] == {"B8A": "B08"}
    assert len(np.unique(codes.reshape(-1, codes.shape[-1]), axis=0)) > 9_000  # a landscape, not one value


@real
def test_two_winter_months_of_the_year_are_masked_and_b08_stands_in_for_b8a(result, out):
    pixels = dpixels.load(out / "worldcereal/worldcereal", pytest.fail)
    assert pixels.masks.mean((1, 2)).tolist() == [1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert pixels.doys[[0, 1, 2, 11]].tolist() == [320, 350, 15, 288]  # 2020 is a leap year
    np.testing.assert_array_equal(pixels.bands[..., S2_BANDS.index("B8A")], pixels.bands[..., S2_BANDS.index("B08")])
    assert pixels.sar_descending.shape == (0, 100, 100, 2)


@real
@pytest.mark.parametrize("folder", ["worldcereal/worldcereal", "openeo/dpixels"])
def test_real_radar_has_the_values_that_the_model_was_trained_on(result, out, folder):
    # 10 log10 in place of 20 log10, or amplitude in place of power, would be off by thousands (trap T20).
    pixels = dpixels.load(out / folder, lambda _: None)
    profile = profile_for("v2", 128)
    seen = {orbit: getattr(pixels, f"sar_{orbit}") for orbit in ("ascending", "descending")}
    assert any(len(values) for values in seen.values())
    for orbit, values in seen.items():
        if len(values):
            mean, std = (np.array(getattr(profile, f"s1_{orbit}_{word}")) for word in ("mean", "std"))
            assert (np.abs(np.median(values, (0, 1, 2)) - mean) < std).all()


@real
def test_only_dates_with_a_clear_pixel_come_back(result, out):
    pixels = dpixels.load(out / "openeo/dpixels", pytest.fail)
    assert pixels.doys.tolist() == [95, 105, 120]  # 5, 15 and 30 April; the others lie under cloud
    assert pixels.masks.sum((1, 2)).tolist() == [4224, 4216, 4224]
    assert (len(pixels.sar_ascending), len(pixels.sar_descending)) == (5, 5)


@real
def test_no_scene_of_the_cubes_is_dropped_or_offset(result, out):
    scenes = read_tile(out / "openeo/inventory.parquet", "31UFS")
    assert [(s.kept, s.offset_dn) for s in scenes] == [(True, 0)] * 22
    items = list(pystac.Catalog.from_file(str(out / "openeo/catalogue/catalog.json")).get_items(recursive=True))
    assert sorted(i.id for i in items) == sorted(s.id for s in scenes)


@real
def test_a_single_wrong_dn_is_found(result, out):
    s2, s1 = openeo.read(SHARED)
    pixels = dpixels.load(out / "openeo/dpixels", pytest.fail)
    assert all(c.ok for c in openeo.optical_checks(s2, pixels, "") + openeo.radar_checks(s1, pixels))
    pixels.bands[1, 40, 30, S2_BANDS.index("B08")] += 1
    pixels.masks[2, 0, 0] ^= 1
    pixels.sar_descending[0, 5, 5, 1] -= 1
    wrong = [c for c in openeo.optical_checks(s2, pixels, "") + openeo.radar_checks(s1, pixels) if not c.ok]
    assert [(c.different, c.largest) for c in wrong] == [(1, 1), (1, 1), (1, 1)]


@real
def test_a_band_that_the_file_lacks_is_refused_by_name():
    with pytest.raises(BadInput, match=r"cdse_sentinel2_l2a\.nc: no band S2-L2A-B05"):
        read_cube(SHARED / cubes.OPENEO_OPTICAL, ["B05"], "S2-L2A-")


@pytest.mark.parametrize("seed", range(3))
def test_missing_values_come_back_as_masks_and_zeros(tmp_path, seed):
    s2, s1 = made_up(tmp_path, seed)
    made = openeo.round_trip(s2, s1, tmp_path / "out", lambda _: None)
    assert all(c.ok for c in made["checks"]), table(made["checks"])
    pixels = dpixels.load(tmp_path / "out/openeo/dpixels", pytest.fail)
    np.testing.assert_array_equal(pixels.masks == 0, np.isin(s2.bands["SCL"], (2, 3, 8, 9, MISSING)))
    np.testing.assert_array_equal(pixels.bands[..., S2_BANDS.index("B04")] == 0, s2.bands["B04"] == MISSING)
    np.testing.assert_array_equal(pixels.sar_descending[0, ..., 0] == 0, scale_s1(power_of(s1.bands["VV"][1])) == 0)


def test_a_cube_off_the_20_m_grid_is_refused(tmp_path):
    s2, _ = made_up(tmp_path)
    a, b, c, d, e, f = BELGIUM
    assert openeo.tile_around(s2).name == "31UFS"
    with pytest.raises(BadInput, match="off the 20 m grid of tile 31UFS"):
        openeo.tile_around(dataclasses.replace(s2, transform=(a, b, c + 10, d, e, f)))
    with pytest.raises(BadInput, match="no MGRS tile of EPSG:32631"):  # zone 31 ends before
        openeo.tile_around(dataclasses.replace(s2, transform=(a, b, c + 200_000, d, e, f)))


def test_a_resampled_20_m_band_is_refused(tmp_path):
    s2, _ = made_up(tmp_path)
    s2.bands["B11"][0, 0, 0] ^= 1
    with pytest.raises(BadInput, match="B11 differs within 20 m"):
        openeo.stored(s2, "B11")


def test_radar_of_a_day_without_a_pass_is_refused(tmp_path):
    _, s1 = made_up(tmp_path)
    with pytest.raises(BadInput, match="2023-04-04"):
        openeo.radar_checks(dataclasses.replace(s1, days=(dt.date(2023, 4, 4),) * 3), None)


@given(st.lists(st.integers(1, 65534), min_size=1, max_size=50))
def test_radar_goes_through_linear_power_to_twice_its_decibels(dn):
    values = np.array(dn, np.uint16)
    exact = np.clip((2 * (20 * np.log10(values.astype(np.float64)) - 83) + 50) * 200, 0, 32767)
    # Cut off, and a float32 power may lie on the other side of a whole number.
    assert (np.abs(scale_s1(power_of(values)) - np.floor(exact)) <= 1).all()
    assert power_of(values).dtype == np.float32


def test_65535_is_no_radar_and_65534_is_a_strong_scatterer():
    assert scale_s1(power_of(np.array([MISSING, 65534, 1], np.uint16))).tolist() == [0, 15331, 0]


@given(st.integers(0, 5), st.sampled_from([0, 1, 2.5]))
def test_a_comparison_counts_what_differs_by_more_than_allowed(n, allowed):
    wanted = np.arange(20.0)
    wanted[7] = np.nan
    got = wanted.copy()
    got[:n] += 3
    assert compare("x", got, wanted, 1, allowed) == Check("x", 1, 20, n, 3.0 if n else 0.0, allowed)
    assert compare("x", got, wanted, 1, allowed).ok == (n == 0)


def test_nothing_compared_another_shape_and_one_sided_nan_are_not_equal():
    some = np.zeros((2, 3))
    for got, wanted in ((some[:0], some[:0]), (some[:1], some), (some + np.nan, some)):
        assert not compare("x", got, wanted).ok
    assert "NOTHING COMPARED" in table([compare("x", some[:0], some[:0])])
    assert "DIFFERS" in table([compare("x", some + 1, some)])


def test_without_the_folder_the_run_is_skipped_with_a_reason(tmp_path, capsys):
    assert run.main([str(tmp_path / "gone"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"skipped: no folder {tmp_path / 'gone'}\n"
    assert run.main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert "skipped: no file" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_cube_is_bad_input(tmp_path, capsys):
    for name in (cubes.WORLDCEREAL, cubes.OPENEO_OPTICAL, cubes.OPENEO_RADAR):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no netCDF")
    assert run.main([str(tmp_path), str(tmp_path / "out")]) == 2
    with pytest.raises(BadInput, match="no band S2-L2A-B04 can be read"):
        worldcereal.read(tmp_path)
