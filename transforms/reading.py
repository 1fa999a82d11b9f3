"""Reading: how GDAL is told to open a published COG over a network, in few requests."""

import contextlib
import urllib.parse
from collections.abc import Iterator

import rasterio
from rasterio.io import DatasetReader

from transforms.cog import Layout, header_size
from transforms.pyramid import factors_of, pyramid_header

CHUNK_BYTES = 16 << 10  # /vsicurl/ asks for whole multiples of this (GDAL documentation, CPL_VSIL_CURL_CHUNK_SIZE)
# Header of a tile of 10,980 px in internal tiles of 128 px: 99 KB (facts checked 3.C), 126 KB with overviews. One
# number for every file of ours: 60 KB too much cost less than a request too many.
INDEX_BYTES = 160 << 10


def index_bytes(layout: Layout, overviews: bool = False) -> int:
    """Bytes to read when a file of this layout is opened, so that its whole index is among them."""
    size = len(pyramid_header(layout, factors_of(layout))[0]) if overviews else header_size(layout)
    return -(-size // CHUNK_BYTES) * CHUNK_BYTES


def options_for(index_bytes: int = INDEX_BYTES) -> dict[str, str]:
    """GDAL's options for reading a published COG by http(s)://, gs:// or s3://; for `rasterio.Env`.

    Nothing of them is a key or a place: who may read what is settled by the environment, as with any GDAL program.

    Args:
      index_bytes: header of the largest file that is to be read.
    """
    return {
        # Opening lists the folder and asks for .ovr, .msk and .aux.xml: what lies beside a file says nothing about it.
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        # The first request brings the whole index; without it GDAL reads 16 KiB, then what it lacks of the tables.
        "GDAL_INGESTED_BYTES_AT_OPEN": str(index_bytes),
        # Tiles that lie one after another, as those of a block's row do, come with one request.
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        # Rows of a block are apart: asked for side by side, over one connection where the server speaks HTTP/2.
        "GDAL_HTTP_MULTIRANGE": "YES",
        "GDAL_HTTP_MULTIPLEX": "YES",
        # A busy server is asked again with growing pauses, 0.5 s at first: GDAL's default is to give up at once.
        "GDAL_HTTP_MAX_RETRY": "5",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        # Seconds of less than 1 KB/s after which a request is given up: GDAL's default is to wait for ever.
        "GDAL_HTTP_LOW_SPEED_TIME": "30",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
        "GDAL_HTTP_CONNECTTIMEOUT": "10",
    }


@contextlib.contextmanager
def open_published(url: str, index_bytes: int = INDEX_BYTES) -> Iterator[DatasetReader]:
    """A published COG, to be read by windows: a path, or a URL of http(s)://, gs:// or s3://.

    An aligned window of 256 px takes 4 requests: size, index, and two rows of internal tiles.

    Raises:
      ValueError: a scheme that no published file has.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("", "file", "http", "https", "gs", "s3"):
        raise ValueError(f"{scheme}://: published files are read from folders, http(s)://, gs:// and s3://")
    with rasterio.Env(**options_for(index_bytes)), rasterio.open(url, driver="GTiff") as file:
        yield file
