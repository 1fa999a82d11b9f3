"""Objects as files: copies of a version, and rasters read through any store."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.windows

from transforms import objects
from transforms.disk_store import LocalStore
from transforms.objects import COPIES, ObjectFile, local_file, open_raster


class FarStore:
    """A store whose objects are no files of this machine, over one whose objects are; counts what is asked."""

    def __init__(self, root):
        self.near, self.asked, self.url = LocalStore(str(root)), [], "far://place"

    def stat(self, name):
        return self.near.stat(name)

    def get(self, name, start=0, length=None):
        self.asked.append((name, start, length))
        return self.near.get(name, start, length)


@pytest.fixture
def far(tmp_path):
    return FarStore(tmp_path / "far")


def test_an_object_of_a_disk_is_its_own_file(tmp_path):
    store = LocalStore(str(tmp_path))
    store.replace("a/b", b"1")
    assert local_file(store, "a/b") == tmp_path / "a" / "b"


def test_a_far_object_is_copied_once_a_version(far, monkeypatch):
    monkeypatch.setattr(objects, "COPY_BYTES", 1000)
    data = bytes(range(256)) * 40
    far.near.replace("_inputs/m.onnx", data)
    copy = local_file(far, "_inputs/m.onnx")
    assert (copy.read_bytes(), copy.suffix) == (data, ".onnx")
    asked = len(far.asked)
    assert asked == 11
    assert local_file(far, "_inputs/m.onnx") == copy
    assert len(far.asked) == asked
    far.near.replace("_inputs/m.onnx", b"new")
    assert local_file(far, "_inputs/m.onnx").read_bytes() == b"new"
    assert copy.read_bytes() == data, "who has opened the older copy goes on with it"


def test_an_object_that_is_written_over_while_it_is_copied_is_no_file(far, monkeypatch):
    monkeypatch.setattr(objects, "COPY_BYTES", 10)
    far.near.replace("x", bytes(30))
    get = far.get

    def changing(*args):
        far.near.replace("x", b"1" * 30)
        return get(*args)

    monkeypatch.setattr(far, "get", changing)
    with pytest.raises(FileNotFoundError, match="written over"):
        local_file(far, "x")
    assert not list(Path(tempfile.gettempdir()).glob(f"{COPIES}-*/*.part"))


def test_what_is_not_there_is_an_error_at_once(far):
    for open_it in (
        lambda: local_file(far, "none"),
        lambda: ObjectFile(far, "none"),
        lambda: open_raster(far, "n").__enter__(),
    ):
        with pytest.raises((FileNotFoundError, rasterio.errors.RasterioIOError)):
            open_it()


def test_copies_go_with_their_process_and_those_of_a_killed_one_with_the_next(tmp_path, monkeypatch):
    script = """
import os, sys, pathlib
sys.path.insert(0, {tests!r}); sys.path.insert(0, {root!r})
from test_objects import FarStore
from transforms.objects import local_file
far = FarStore({place!r}); far.near.replace("x", b"1")
print(local_file(far, "x"), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""
    here = Path(__file__)
    text = script.format(tests=str(here.parent), root=str(here.parents[2]), place=str(tmp_path / "far"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def copied(how):
        done = subprocess.run([sys.executable, "-c", text, how], capture_output=True, text=True, timeout=120)
        return Path(done.stdout.strip())

    killed = copied("killed")
    assert killed.exists()
    assert not copied("ended").parent.exists()
    assert not killed.parent.exists()


@pytest.fixture
def raster(far):
    pixels = np.random.default_rng(1).integers(0, 255, (2, 700, 900), np.uint8)
    far.near.path("r").mkdir(parents=True)
    with rasterio.open(
        far.near.path("r/a.tif"), "w", driver="GTiff", height=700, width=900, count=2, dtype="uint8", tiled=True,
        blockxsize=128, blockysize=128, interleave="pixel", compress="zstd", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as f:  # fmt: skip
        f.write(pixels)
    return pixels


def test_a_far_raster_has_the_pixels_of_the_near_one_and_is_read_by_ranges(far, raster):
    window = rasterio.windows.Window(256, 128, 128, 128)
    with open_raster(far, "r/a.tif") as f:
        assert np.array_equal(f.read(window=window), raster[:, 128:256, 256:384])
        size = far.near.stat("r/a.tif").size_bytes
        assert sum(length for _, _, length in far.asked) < size / 2
        assert np.array_equal(f.read(), raster)
    with open_raster(far.near, "r/a.tif") as f:
        assert np.array_equal(f.read(), raster)


def test_an_object_file_seeks_and_ends_like_a_file(far):
    far.near.replace("x", b"0123456789")
    with ObjectFile(far, "x") as f:
        assert (f.read(3), f.tell()) == (b"012", 3)
        assert (f.seek(-2, 2), f.read(), f.read()) == (8, b"89", b"")
        assert (f.seek(4), f.seek(1, 1), f.read(2)) == (4, 5, b"56")
        assert (f.seek(20), f.read()) == (20, b"")
