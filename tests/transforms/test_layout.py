import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from small_scenes import assert_same

from model.errors import BadInput
from transforms.dpixels import LAYOUT, DPixels, load, save
from transforms.scenes import ASCENDING, DESCENDING


def some_pixels(T=3, H=2, W=4, up=2, down=1, seed=0):
    rng = np.random.default_rng(seed)

    def days(n):
        return np.sort(rng.choice(np.arange(1, 367), n, replace=False))

    return DPixels(
        rng.integers(0, 65536, (T, H, W, 10)).astype(np.uint16),
        rng.integers(0, 2, (T, H, W)).astype(np.uint8),
        days(T).astype(np.uint16),
        rng.integers(0, 32768, (up, H, W, 2)).astype(np.int16),
        days(up).astype(np.int16),
        rng.integers(0, 32768, (down, H, W, 2)).astype(np.int16),
        days(down).astype(np.int16),
    )


def refuse(message):
    raise AssertionError(message)


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(0, 4)] * 5), st.integers(0, 99))
def test_what_is_saved_is_loaded(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("layout")
    T, H, W, up, down = sizes
    pixels = some_pixels(T, H + 1, W + 1, up, down, seed)
    save(pixels, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.npy" for name in LAYOUT)
    assert_same(load(folder, refuse), pixels)


@pytest.mark.parametrize("orbit", [ASCENDING, DESCENDING])
def test_a_missing_orbit_is_no_pass_and_is_said(tmp_path, orbit):
    pixels = some_pixels()
    save(pixels, tmp_path)
    for name in (f"sar_{orbit}", f"sar_{orbit}_doy"):
        (tmp_path / f"{name}.npy").unlink()
    said = []
    got = load(tmp_path, said.append)
    empty = {f"sar_{orbit}": np.zeros((0, 2, 4, 2), np.int16), f"sar_{orbit}_doy": np.zeros(0, np.int16)}
    assert_same(got, dataclasses.replace(pixels, **empty))
    assert len(said) == 1
    assert f"no sar_{orbit}.npy" in said[0]


@pytest.mark.parametrize("name", LAYOUT)
def test_one_missing_file_is_refused_by_name(tmp_path, name):
    # Traps T16 (missing masks) and T17 (missing days).
    save(some_pixels(), tmp_path)
    (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(BadInput, match=rf"{name}\.npy( is missing|$)"):
        load(tmp_path, refuse)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        load(tmp_path / "none", refuse)


P = some_pixels()
BROKEN = {
    "bands of another type": ("bands", P.bands.astype(np.int32), "dtype int32, uint16 was expected"),
    "bands of the other byte order": ("bands", P.bands.astype(">u2"), "dtype >u2, uint16 was expected"),
    "nine bands": ("bands", P.bands[..., :9], r"\(T, H, W, 10\) was expected"),
    "bands without time": ("bands", P.bands[0], r"\(T, H, W, 10\) was expected"),
    "bands of nothing": ("bands", np.uint16(3), r"\(T, H, W, 10\) was expected"),
    "a mask too few": ("masks", P.masks[1:], r"shape \(2, 2, 4\), \(3, 2, 4\) was expected"),
    "masks of another type": ("masks", P.masks.astype(np.float32), "dtype float32, uint8 was expected"),
    "masks of 0 and 255": ("masks", P.masks * np.uint8(255), "0 and 1"),
    "day 0": ("doys", P.doys * 0, r"1\.\.366"),
    "day 367": ("doys", P.doys * 0 + 367, r"1\.\.366"),
    "days as dates": ("doys", P.doys.astype("datetime64[D]"), "whole numbers"),
    "days with fractions": ("doys", P.doys + 0.5, "whole numbers"),
    "days of two dimensions": ("doys", P.doys[None], r"shape \(1, 3\)"),
    "radar days that wrap": ("sar_ascending_doy", np.array([70_000, 1], np.int32), r"1\.\.366"),
    "radar of one channel": ("sar_ascending", P.sar_ascending[..., :1], r"shape \(2, 2, 4, 1\)"),
    "radar of another window": ("sar_descending", P.sar_descending[:, 1:], r"shape \(1, 1, 4, 2\)"),
    "radar of nothing": ("sar_descending", np.int16(3), r"shape \(\)"),
    "radar as floats": ("sar_descending", P.sar_descending.astype(np.float32), "dtype float32, int16"),
    "a radar day too many": ("sar_descending_doy", np.array([1, 2], np.int16), r"shape \(2,\), \(1,\) was expected"),
    "objects": ("doys", np.array([1, 2, 3], object), "not a whole .npy file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_with_something_else_in_it_is_refused_with_what_was_expected(tmp_path, case):
    name, array, words = BROKEN[case]
    save(P, tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(BadInput, match=words) as error:
        load(tmp_path, refuse)
    assert f"{name}.npy" in str(error.value)


def test_the_first_and_the_last_day_of_a_leap_year_are_days(tmp_path):
    # Trap T26.
    pixels = dataclasses.replace(
        P, doys=np.array([1, 60, 366], np.uint16), sar_ascending_doy=np.array([366, 1], np.int16)
    )
    save(pixels, tmp_path)
    assert_same(load(tmp_path, refuse), pixels)


def test_masks_of_truth_values_are_masks(tmp_path):
    save(P, tmp_path)
    np.save(tmp_path / "masks.npy", P.masks.astype(bool))
    assert_same(load(tmp_path, refuse), P)


def npz(folder):
    np.savez(folder / "x.npz", P.masks)
    return (folder / "x.npz").read_bytes()


def huge(folder):
    path = folder / "huge"
    with path.open("wb") as f:
        npy.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 1 << 10)})
    return path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        lambda _: b"",
        lambda _: b"PK\x03\x04 not a zip",
        npz,
        huge,
        lambda _: b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1',",
        lambda _: b"\x93NUMPY\x09\x00",
        lambda _: b"\x93NUMPY\x01\x00\x05\x00((((\n",
    ],
    ids=["nothing", "half a zip", "an npz", "a huge header", "half a header", "a new version", "brackets"],
)
def test_a_file_that_is_no_array_is_refused_by_name(tmp_path, content):
    save(P, tmp_path)
    (tmp_path / "masks.npy").write_bytes(content(tmp_path))
    with pytest.raises(BadInput, match=r"masks\.npy: not a whole \.npy file"):
        load(tmp_path, refuse)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    save(P, tmp_path)
    (tmp_path / "masks.npy").unlink()
    (tmp_path / "masks.npy").mkdir()
    with pytest.raises(BadInput, match=r"masks\.npy: not a whole \.npy file"):
        load(tmp_path, refuse)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LAYOUT), st.data())
def test_bytes_cut_off_or_changed_are_refused_or_still_an_array(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged")
    save(P, folder)
    file = folder / f"{name}.npy"
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(BadInput):
            load(folder, refuse)
    else:
        at = data.draw(st.integers(0, 127))
        whole[at] = data.draw(st.integers(0, 255))
        file.write_bytes(whole)
        try:
            got = load(folder, refuse)
        except BadInput as e:
            assert str(folder) in str(e)
        else:
            assert [getattr(got, n).shape for n in LAYOUT] == [getattr(P, n).shape for n in LAYOUT]
