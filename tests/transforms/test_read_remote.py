"""Windows of files on a server: the pixels of the local ones, and errors that show no signature."""

import dataclasses
import http.server
import threading
import traceback
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine
from read_files import DIFFERENCES, FEW, TILE, TILED, a_file, everything, scene, write

from transforms.fetching import FetchError, Piece, Version
from transforms.hosts import allowed
from transforms.read import (
    ReadError,
    read_patch,
)
from transforms.remote import use_fetcher
from transforms.scenes import Asset


def fetch_plainly(url, start, stop, version):
    """Ranges over plain HTTP, without retries; its words show the whole URL."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{stop - 1}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            total_bytes = int(answer.headers["Content-Range"].rpartition("/")[2])
            return Piece(answer.read(), Version(total_bytes, answer.headers["ETag"] or ""))
    except urllib.error.HTTPError as e:
        raise FetchError("status", f"'{url}': {e}", e.code) from None


@pytest.fixture
def served(tmp_path):
    """A loopback server over tmp_path with signed URLs; gives an asset as it is found there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path, _, query = self.path.partition("?")
            file = tmp_path / Path(path).name
            status, body = (200, file.read_bytes()) if query == "sig=SECRET" and file.exists() else (404, b"")
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            extra = {}
            if status == 200 and first:
                end = min(int(last) if last else len(body) - 1, len(body) - 1)
                status, extra = 206, {"Content-Range": f"bytes {first}-{end}/{len(body)}"}
                body = body[int(first) : end + 1]
            self.send_response(status)
            for key, value in {**extra, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    use_fetcher(fetch_plainly)
    yield lambda asset: dataclasses.replace(
        asset, href=f"http://127.0.0.1:{server.server_port}/{tmp_path.name}/{asset.href}?sig=SECRET"
    )
    use_fetcher(None)
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_process_s_own_fetcher_reads_an_allowed_host_and_no_other(tmp_path, served):
    asset = a_file(tmp_path, compress="deflate")
    use_fetcher(None)
    there = served(asset)
    with pytest.raises(ReadError, match="TESSERA_HOSTS") as error:
        everything(tmp_path, there)
    assert error.value.kind == "refused"
    with allowed("127.0.0.1:*"):
        np.testing.assert_array_equal(everything(tmp_path, there).data, everything(tmp_path, asset).data)


def test_a_signed_url_is_read(tmp_path, served):
    asset = a_file(tmp_path, compress="deflate")
    wanted = everything(tmp_path, asset).data
    np.testing.assert_array_equal(everything(tmp_path, served(asset)).data, wanted)


@FEW
@given(st.integers(-20, 80), st.integers(-20, 80), st.integers(1, 90), st.integers(1, 90))
def test_a_remote_window_is_the_local_one(tmp_path, served, row, col, height, width):
    if not (tmp_path / "f.tif").exists():
        a_file(tmp_path, compress="deflate", nodata=77)
    asset = Asset("B05", "f.tif", TILE.epsg, (20.0, 0.0, TILE.left_m, 0.0, -20.0, TILE.top_m), 64, 64)
    here, there = (
        read_patch(scene(asset), one, str(tmp_path), row, col, height, width) for one in (asset, served(asset))
    )
    assert here.data.dtype == there.data.dtype
    np.testing.assert_array_equal(here.data, there.data)
    assert dataclasses.replace(here, data=None) == dataclasses.replace(there, data=None)


@pytest.mark.parametrize(("change", "words"), DIFFERENCES)
def test_a_remote_file_that_is_not_what_its_item_says_is_refused_with_both_sides(tmp_path, served, change, words):
    asset = dataclasses.replace(served(a_file(tmp_path, compress="deflate")), **change)
    with pytest.raises(ReadError, match=words) as error:
        everything(tmp_path, asset)
    assert (error.value.kind, error.value.status) == ("file", None)


def test_a_remote_file_of_another_type_or_without_a_crs_is_refused(tmp_path, served):
    asset = served(write(tmp_path, np.ones((16, 16), np.int16), TILE.left_m, TILE.top_m, 10, **TILED))
    with pytest.raises(ReadError, match="holds int16, uint16 digital numbers"):
        everything(tmp_path, asset)
    use_fetcher(fetch_plainly)
    with rasterio.open(tmp_path / "f.tif") as file:
        profile = file.profile | {"crs": None, "dtype": "uint16"} | TILED
    with rasterio.open(tmp_path / "f.tif", "w", **profile) as file:
        file.write(np.ones((1, 16, 16), np.uint16))
    with pytest.raises(ReadError, match="CRS is None, its item says EPSG:32633"):
        everything(tmp_path, asset)


def test_a_remote_file_in_strips_is_refused(tmp_path, served):
    asset = served(write(tmp_path, np.ones((64, 64), np.uint16), TILE.left_m, TILE.top_m, 10))
    with pytest.raises(ReadError, match="in strips, not in tiles"):
        everything(tmp_path, asset)


def test_a_window_that_misses_a_remote_file_still_finds_that_the_file_is_gone(tmp_path, served):
    asset = served(dataclasses.replace(a_file(tmp_path), href="gone.tif"))
    with pytest.raises(ReadError, match="404") as error:
        read_patch(scene(asset), asset, str(tmp_path), 100, -50, 7, 5)
    assert (error.value.kind, error.value.status) == ("status", 404)


@pytest.mark.parametrize("place", ["here", "there"])
@pytest.mark.parametrize("kind", ["VRT", "HTML", "PNG"])
def test_what_is_not_a_geotiff_is_refused_whatever_it_is_called(tmp_path, served, place, kind):
    # A VRT names other files, on this machine or in a network, and would read them.
    asset = a_file(tmp_path)
    file = tmp_path / asset.href
    if kind == "PNG":
        grid = Affine(*asset.transform)
        with rasterio.open(file, "w", "PNG", width=64, height=64, count=1, dtype="uint16", transform=grid) as png:
            png.write(np.ones((1, 64, 64), np.uint16))
    elif kind == "HTML":
        file.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    else:
        file.rename(tmp_path / "secret.tif")
        rasterio.shutil.copy(tmp_path / "secret.tif", file, driver="VRT")
        with rasterio.open(file) as vrt:
            assert vrt.shape == (64, 64)  # it would have been read
    with pytest.raises(ReadError) as error:
        everything(tmp_path, served(asset) if place == "there" else asset)
    assert error.value.kind == "file"


@pytest.mark.parametrize("fault", ["gone", "short", "other size"])
def test_an_error_about_a_signed_url_does_not_show_its_signature(tmp_path, served, fault):
    asset = served(a_file(tmp_path, compress="deflate"))
    file = tmp_path / "f.tif"
    if fault == "gone":
        file.unlink()
    elif fault == "short":
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        asset = dataclasses.replace(asset, width_px=1)
    with pytest.raises(ReadError) as error:
        everything(tmp_path, asset)
    for text in (str(error.value), repr(error.value), "".join(traceback.format_exception(error.value))):
        assert "SECRET" not in text
        assert "sig=" not in text
