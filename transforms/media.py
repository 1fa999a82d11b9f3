"""Media types: what a store is told of an object's kind, by the end of its name."""

from pathlib import PurePosixPath

from transforms.stac_assets import COG, PARQUET, PNG

MEDIA_TYPES = {".tif": COG, ".png": PNG, ".parquet": PARQUET, ".json": "application/json", ".html": "text/html"}


def media_type(name: str) -> str:
    """The media type of an object, "application/octet-stream" for what is none of ours."""
    return MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
