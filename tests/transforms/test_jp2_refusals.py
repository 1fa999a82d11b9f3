import dataclasses
import struct
import warnings

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jp2_files import EOC, GRID, URL, Shelf, get, join, jp2, put, some_pixels, split
from rasterio.io import MemoryFile

from model.profile import CDSE_L2A
from transforms import jp2 as jp2_module
from transforms import remote
from transforms.jp2_decode import parse_header, read
from transforms.read import ReadError, read_patch
from transforms.remote import HeaderCache, plan_reads, read_window
from transforms.scenes import S2, Asset, Scene
from transforms.tiff import MAX_HEADER_BYTES, Damaged, MoreNeeded, NotACog, Window

FEW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(data, main=lambda m: m, parts=lambda p: p, boxes=lambda b: b, tail=EOC):
    a, b, c = split(data)
    return join(boxes(a), main(b), parts(c), tail)


def part_put(n, at, fmt, *values):
    return lambda parts: [(t, put(p, at, fmt, *values) if i == n else p) for i, (t, p) in enumerate(parts)]


def add_segment(marker, body):
    return lambda main: main + struct.pack(">HH", marker, 2 + len(body)) + body


def nested(depth):
    box = b""
    for _ in range(depth):
        box = struct.pack(">I4s", 8 + len(box), b"asoc") + box
    return box


BROKEN = {
    "cut in its boxes": (lambda d: d[:300], "the file has 300"),
    "cut in its pixels": (lambda d: d[:-2000], r"ends at [\d,]+, the file has [\d,]+ bytes"),
    "cut in its first bytes": (lambda d: d[:12], "the file has 12"),
    "no codestream": (lambda d: d[: d.index(b"jp2c") - 4], "leads to byte"),
    "a box without a size": (lambda d: put(d, 12, ">I", 4), "box at byte 12"),
    "a box beyond the end": (lambda d: put(d, 12, ">I", 1 << 31), "box at byte 12 ends at"),
    "no codestream in its box": (lambda d: changed(d, lambda m: b"\0\0" + m[2:]), "does not begin with SOC"),
    "PPM": (lambda d: changed(d, add_segment(0xFF60, b"\0")), "PPM"),
    "PPT": (
        lambda d: changed(d, parts=lambda p: [(t, put(x[:12] + b"\xff\x61\0\3\0" + x[12:], 6, ">I", len(x) + 5))
                                              for t, x in p]), "PPT",
    ),
    "two bands": (lambda d: changed(d, lambda m: put(m, 40, ">H", 2)), "bands|do not read|not read"),
    "a sign": (lambda d: changed(d, lambda m: put(m, 42, ">B", 0x8E)), "without a sign"),
    "subsampled": (lambda d: changed(d, lambda m: put(m, 43, ">B", 2)), "steps 2, 1"),
    "an offset": (lambda d: changed(d, lambda m: put(m, 16, ">I", 5)), "begin at 0, 0"),
    "no pixels": (lambda d: changed(d, lambda m: put(m, 8, ">I", 0)), "a raster of"),
    "huge": (lambda d: changed(d, lambda m: put(m, 8, ">II", 2**31, 2**31)), "a raster of"),
    "one huge tile": (lambda d: changed(d, lambda m: put(put(m, 8, ">II", 2**16, 2**16), 24, ">II", 2**16, 2**16)),
                      "bytes each"),
    "tiles without a size": (lambda d: changed(d, lambda m: put(m, 24, ">I", 0)), "tiles of"),
    "too many tiles": (lambda d: changed(d, lambda m: put(m, 24, ">II", 1, 1)), "tiles of 1 x 1"),
    "boxes that are too deep": (lambda d: changed(d, boxes=lambda b: b + nested(9)), "deep"),
    "a box in a box that is too long": (
        lambda d: changed(d, boxes=lambda b: b + struct.pack(">I4sI4s", 16, b"asoc", 64, b"asoc")), "a box of 64 bytes",
    ),
    "too much XML": (
        lambda d: changed(d, boxes=lambda b: b + struct.pack(">I4s", 8 + (300 << 10), b"asoc")
                          + struct.pack(">I4s", 300 << 10, b"xml ") + bytes((300 << 10) - 8)), "in front of",
    ),
    "a part without a size": (lambda d: changed(d, parts=part_put(3, 6, ">I", 0)), "does not say its size"),
    "a part that leads out": (lambda d: changed(d, parts=part_put(3, 6, ">I", 2**31)), "leads out"),
    "a part that stands still": (lambda d: changed(d, parts=part_put(3, 6, ">I", 12)), "holds nothing"),
    "a part in another's place": (lambda d: changed(d, parts=part_put(3, 4, ">H", 2)), "no such part"),
    "a part of no tile": (lambda d: changed(d, parts=part_put(3, 4, ">H", 900)), "no such part"),
    "a part that is none": (lambda d: changed(d, parts=part_put(3, 0, ">H", 0)), "no tile-part begins"),
    "a second part that never comes": (lambda d: changed(d, parts=part_put(3, 11, ">B", 2)), "not in the file"),
    "a tile too few": (lambda d: changed(d, parts=lambda p: p[:-1]), "not in the file"),
    "a list that leads out": (
        lambda d: changed(d, add_segment(0xFF55, b"\0\x50" + struct.pack(">BI", 0, 2**31))), "leads out.*TLM",
    ),
    "a list with too few": (
        lambda d: changed(d, add_segment(0xFF55, b"\0\x50" + struct.pack(">BI", 0, 100))), "24 of 25 tiles",
    ),
    "a list that is cut": (lambda d: changed(d, add_segment(0xFF55, b"\0\x50\0\0")), "cut short"),
    "a list of another kind": (lambda d: changed(d, add_segment(0xFF55, b"\0\x70" + bytes(4))), "unknown kind"),
    "a list that lies": (
        lambda d: changed(d, add_segment(0xFF55, b"\0\x50" + b"".join(struct.pack(">BI", t, 1000) for t in range(25)))),
        "is not part 0 of tile|leads out",
    ),
    "empty": (lambda d: b"", "it is empty"),
    "HTML": (lambda d: b"<!DOCTYPE html><html>Sign in</html>" * 40, "HTML or XML"),
    "a bare codestream": (lambda d: b"".join(split(d)[1:2]) + bytes(100), "JPEG 2000 file, not a GeoTIFF"),
    "VRT": (lambda d: b"<VRTDataset rasterXSize='1' rasterYSize='1'/>" * 30, "VRT"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_or_not_of_this_kind_is_refused_by_name(name):
    good = jp2(some_pixels(), 64)
    make, words = BROKEN[name]
    bad = make(good)
    assert bad != good
    with pytest.raises((NotACog, Damaged), match=words):
        get(bad, Window(0, 0, 300, 270))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio logs GDAL's words as UTF-8
@settings(FEW, max_examples=150)
@given(st.data())
def test_no_damage_of_the_headers_is_anything_but_an_error_or_without_effect_on_the_size(draw):
    """Bytes in front of the pixels; within them a codestream has no checksums."""
    good = SMALL
    out = bytearray(good)
    for _ in range(draw.draw(st.integers(1, 4))):
        out[draw.draw(st.integers(0, split_at(good) + 11))] = draw.draw(st.integers(0, 255))
    out = bytes(out[: draw.draw(st.integers(1, len(out)))] if draw.draw(st.booleans()) else out)
    shelf = Shelf(out)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            got, header = get(out, None, shelf)
            got, header = get(out, Window(0, 0, min(header.height_px, 40), min(header.width_px, 40)), shelf)
    except (NotACog, Damaged):
        assert len(shelf.asked) < 60
        return
    assert got.shape == (min(header.height_px, 40), min(header.width_px, 40))


SMALL = jp2(some_pixels((100, 90)), 64, TLM="YES")


def split_at(data):
    boxes, main, _ = split(data)
    return len(boxes) + 8 + len(main)


@given(st.binary(max_size=400), st.integers(0, 5000))
def test_any_bytes_behind_the_signature_end_in_a_typed_answer(tail, more):
    start = jp2_module.SIGNATURE + tail
    try:
        jp2_module.parse(start, len(start) + more)
    except MoreNeeded as e:
        assert len(start) < e.stop <= min(len(start) + more, MAX_HEADER_BYTES)
    except (NotACog, Damaged):
        pass


# Which formats


def test_a_source_of_geotiffs_gets_no_jpeg_2000_even_where_its_header_is_known():
    data, cache = jp2(some_pixels()), HeaderCache()
    get(data, None, Shelf(data), cache)
    for headers in (cache, HeaderCache()):
        with pytest.raises(NotACog, match="JPEG 2000 file, not a GeoTIFF"):
            read_window(URL, Window(0, 0, 5, 5), Shelf(data), headers=headers)


def test_a_window_that_leaves_the_raster_is_refused():
    header = parse_header(SMALL, len(SMALL))
    for window in (Window(-1, 0, 5, 5), Window(0, 0, 101, 5), Window(0, 90, 1, 1), Window(0, 0, 0, 5)):
        with pytest.raises(ValueError, match="not within 100 x 90"):
            read(header, window, None)
        with pytest.raises(ValueError, match="not within 100 x 90"):
            plan_reads(header, window)


def a_scene(asset, source=CDSE_L2A):
    return Scene(
        "33TWL", S2, source, "S2A_X", "2024-05-01T10:00:00.000000Z", 0, "descending", 122, "sentinel-2a", "05.10", 10.0,
        "", "", 0, "", True, "", (asset,),
    )  # fmt: skip


def an_asset(pixels, href, band="B04"):
    return Asset(band, href, 32633, (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0), *pixels.shape)


@pytest.fixture
def through_memory():
    yield remote.use_fetcher
    remote.use_fetcher(None)


def cog(pixels):
    with MemoryFile() as memory:
        with memory.open(driver="COG", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype,
                         crs="EPSG:32633", transform=GRID) as file:  # fmt: skip
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


@pytest.mark.parametrize("kind", ["jp2", "tif"])
@pytest.mark.parametrize("name", ["f.jp2", "f.tif", "f"])
def test_a_file_of_the_data_space_is_what_its_first_bytes_say_here_and_there(tmp_path, through_memory, kind, name):
    pixels = some_pixels()
    pixels[:20] = 0
    data = jp2(pixels) if kind == "jp2" else cog(pixels)
    (tmp_path / name).write_bytes(data)
    through_memory(Shelf(data))
    for href in (name, f"https://h/{name}"):
        asset = an_asset(pixels, href)
        patch = read_patch(a_scene(asset), asset, str(tmp_path), 10, -5, 30, 40)
        np.testing.assert_array_equal(patch.data[:, 5:], pixels[10:40, :35])
        assert patch.nodata == 0  # of the source's table: neither file has a tag for it
        np.testing.assert_array_equal(patch.valid()[:, 5:], pixels[10:40, :35] != 0)


def test_a_file_on_disk_that_is_replaced_is_read_anew(tmp_path):
    for seed in (1, 2):
        pixels = some_pixels(seed=seed)
        (tmp_path / "new").write_bytes(jp2(pixels))
        (tmp_path / "new").rename(tmp_path / "f.jp2")
        asset = an_asset(pixels, "f.jp2")
        np.testing.assert_array_equal(read_patch(a_scene(asset), asset, str(tmp_path), 0, 0, 300, 270).data, pixels)


def test_any_other_source_reads_geotiffs_alone(tmp_path, through_memory):
    pixels = some_pixels()
    for name, data in (("f.jp2", jp2(pixels)), ("f.tif", cog(pixels))):
        (tmp_path / name).write_bytes(data)
        for href in (name, f"https://h/{name}"):
            through_memory(Shelf(data))
            asset = an_asset(pixels, href)
            scene = a_scene(asset, "sentinel-2-l2a@planetary-computer")
            if name == "f.tif":
                assert read_patch(scene, asset, str(tmp_path), 0, 0, 5, 5).nodata == 0
            else:
                with pytest.raises(ReadError, match=r"not a GeoTIFF|not recognized"):
                    read_patch(scene, asset, str(tmp_path), 0, 0, 5, 5)


@pytest.mark.parametrize("kind", ["VRT", "PNG", "GPKG"])
def test_no_third_format_is_opened_for_the_data_space(tmp_path, kind):
    pixels = some_pixels((40, 40), np.uint8, 200)
    target = tmp_path / "f.jp2"
    if kind == "VRT":
        (tmp_path / "in.jp2").write_bytes(jp2(pixels))
        target.write_text(
            "<VRTDataset rasterXSize='40' rasterYSize='40'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
            f"<SourceFilename>{tmp_path}/in.jp2</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(target, "w", driver=kind, height=40, width=40, count=1, dtype="uint8") as file:
                file.write(pixels, 1)
    asset = an_asset(pixels, "f.jp2", "SCL")
    with pytest.raises(ReadError) as e:
        read_patch(a_scene(asset), asset, str(tmp_path), 0, 0, 5, 5)
    assert e.value.kind == "file"


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_file_that_is_not_what_its_item_says_is_a_read_error_with_scene_and_band(tmp_path, through_memory, where):
    pixels = some_pixels()
    good = jp2(pixels)
    href = "f.jp2" if where == "here" else "https://h/f.jp2?sig=SECRET"
    fitting = an_asset(pixels, href)
    cases = {
        "geotransform": (good, dataclasses.replace(fitting, transform=(10.0, 0.0, 0.0, 0.0, -10.0, 0.0))),
        "CRS": (good, dataclasses.replace(fitting, epsg=32632)),
        "px, its item says": (good, dataclasses.replace(fitting, height_px=301)),
        "uint8": (jp2(pixels.astype(np.uint8)), fitting),
        "the file has": (good[:-3000], fitting),
    }
    for words, (data, asset) in cases.items():
        (tmp_path / "f.jp2").write_bytes(data)
        through_memory(Shelf(data))
        with pytest.raises(ReadError, match=words) as e:
            read_patch(a_scene(asset), asset, str(tmp_path), 0, 0, 300, 270)
        assert (e.value.scene, e.value.band) == ("S2A_X", "B04")
        assert "SECRET" not in str(e.value)
