"""Assets: what the files of a published tile are, in the words of STAC."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transforms.grid import SIDE_M, TILE_PX, Tile

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
PNG = "image/png"
PARQUET = "application/vnd.apache.parquet"

# Flags of reasons.tif: bit -> (name, what a set bit says).
REASON_BITS = (
    ("no_optical", "no valid optical observation: the pixel has no embedding"),
    ("no_radar", "no valid radar observation: embedded as the profile does it without"),
    ("too_few", "too few valid observations for a trustworthy embedding"),
    ("outside", "outside the region that was asked for: not embedded"),
    ("read_failed", "a file could not be read here, and its scene was left out"),
    ("drift_suspected", "the observations look as if a radiometric offset were wrong"),
)

COUNTED = ("s2", "s1_ascending", "s1_descending")  # bands of observations.tif, as properties name them


@dataclasses.dataclass(frozen=True)
class AssetRecord:
    """A published file, as the one who wrote it knows it.

    Attributes:
      href: relative to the item's own file, e.g. "./1f2e3d4c/embeddings.tif".
      size_bytes: its length.
      crc32c: as the store gives it, base64 or hexadecimal.
      sha256: hexadecimal, "" where the bytes never passed through us.
      shape_px: (height, width) of a raster that is not at 10 m; None is TILE_PX square.
    """

    href: str
    size_bytes: int
    crc32c: str
    sha256: str = ""
    shape_px: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class AssetKind:
    """What every asset of one key is. `bands`: (name, data type, nodata) of each; empty for what is no raster."""

    title: str
    description: str
    media_type: str
    roles: tuple[str, ...]
    bands: tuple[tuple[str, str, Any], ...] = ()


def kinds_of(dims: int) -> dict[str, AssetKind]:
    counted = ("S2", "S1 ascending", "S1 descending")
    return {
        "embeddings": AssetKind(
            "Embedding codes",
            "int8 codes, one band a dimension; value = code * scale of the pixel; -128 in every band is no data",
            COG,
            ("data",),
            tuple((f"E{i:03d}", "int8", -128) for i in range(dims)),
        ),
        "scales": AssetKind(
            "Scales", "float32 scale of each pixel; NaN is no data", COG, ("data",), (("scale", "float32", "nan"),)
        ),
        "observations": AssetKind(
            "Observation counts",
            "valid observations of each pixel: Sentinel-2, Sentinel-1 ascending, Sentinel-1 descending; radar is "
            "looked at, and counted, only where Sentinel-2 has a valid one",
            COG,
            ("metadata",),
            tuple((name, "uint16", None) for name in counted),
        ),
        "reasons": AssetKind(
            "Reasons",
            "bit flags: why a pixel has no embedding, or what to know of it",
            COG,
            ("metadata",),
            (("reasons", "uint8", 8),),  # what is not stored is outside (transforms.fragments)
        ),
        "preview": AssetKind(
            "Preview",
            "the embedding in three colours, for people",
            COG,
            ("overview", "visual"),
            tuple((name, "uint8", 0) for name in ("red", "green", "blue")),
        ),
        "thumbnail": AssetKind("Thumbnail", "a small picture of the preview", PNG, ("thumbnail",)),
        "scenes": AssetKind(
            "Scenes", "every scene of the tile, with the decisions about it", PARQUET, ("metadata", "source")
        ),
        "blocks": AssetKind("Blocks", "the receipts of the tile's blocks", PARQUET, ("metadata",)),
    }


ASSET_KEYS = tuple(kinds_of(1))


def shared_fields(key: str, kind: AssetKind) -> dict[str, Any]:
    """What an asset and the collection's description of it have in common."""
    fields: dict[str, Any] = {
        "title": kind.title,
        "description": kind.description,
        "type": kind.media_type,
        "roles": list(kind.roles),
    }
    if kind.bands:
        fields["raster:bands"] = [
            {"name": name, "data_type": data_type, **({} if nodata is None else {"nodata": nodata})}
            for name, data_type, nodata in kind.bands
        ]
    if key == "reasons":
        fields["classification:bitfields"] = [
            {
                "name": name,
                "offset": bit,
                "length": 1,
                "description": meaning,
                "classes": [
                    {"value": 0, "name": "clear", "description": "does not apply"},
                    {"value": 1, "name": "set", "description": meaning},
                ],
            }
            for bit, (name, meaning) in enumerate(REASON_BITS)
        ]
    return fields


def proj_of(tile: Tile, shape_px: tuple[int, int]) -> dict[str, Any]:
    height_px, width_px = shape_px
    return {
        "proj:shape": [height_px, width_px],
        "proj:transform": [SIDE_M / width_px, 0.0, float(tile.left_m), 0.0, -SIDE_M / height_px, float(tile.top_m)],
    }


def asset_of(
    key: str, kind: AssetKind, record: AssetRecord, tile: Tile, figures: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """An asset of an item. `figures`: of each band, statistics and histogram; () for none."""
    asset = {"href": record.href, **shared_fields(key, kind), "file:size": record.size_bytes}
    if record.sha256:
        asset["file:checksum"] = f"1220{record.sha256}"  # multihash: 12 is sha2-256, 20 its length in bytes
    if record.crc32c:
        asset["tessera:crc32c"] = record.crc32c
    if kind.bands and record.shape_px not in (None, (TILE_PX, TILE_PX)):
        asset |= proj_of(tile, record.shape_px or (TILE_PX, TILE_PX))
    if figures:
        asset["raster:bands"] = [{**band, **more} for band, more in zip(asset["raster:bands"], figures, strict=True)]
    return asset
