"""STAC: the records by which other tools find, check and understand what was published."""

import datetime as dt
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from model.errors import BadInput
from model.profile import Profile
from transforms.grid import PIXEL_M, SIDE_M, TILE_PX, Tile, footprint
from transforms.periods import Period
from transforms.stac_assets import (
    ASSET_KEYS,
    COG,
    PARQUET,
    AssetRecord,
    asset_of,
    kinds_of,
    proj_of,
)
from transforms.stac_geometry import bbox_of, geometry_of
from transforms.statistics import Statistics, band_statistics, summary_of

STAC_VERSION = "1.0.0"  # the emb schema v0.0.1 includes the core 1.0.0 schemas and fails with any other
ONNX = "application/octet-stream; profile=onnx"  # ONNX has no registered media type
JSON = "application/json"
GEOJSON = "application/geo+json"
PRODUCT_FORMAT = "tessera-beam/product"
PRODUCT_VERSION = 1

EXTENSIONS = "https://stac-extensions.github.io"
ITEM_EXTENSIONS = tuple(
    f"{EXTENSIONS}/{name}/schema.json"
    for name in (
        "classification/v1.1.0",
        "embeddings/v0.0.1",
        "file/v2.1.0",
        "grid/v1.1.0",
        "processing/v1.2.0",
        "projection/v2.0.0",
        "raster/v1.1.0",  # the one that goes with core 1.0.0; v2 needs the `bands` of core 1.1
    )
)


def utc(moment: str | dt.datetime) -> str:
    """A moment as STAC writes it, e.g. "2024-12-31T23:59:59Z".

    Raises:
      BadInput: not ISO 8601, or without a time zone.
    """
    try:
        given = moment if isinstance(moment, dt.datetime) else dt.datetime.fromisoformat(moment)
    except ValueError:
        raise BadInput(f"time {moment!r}: it must be ISO 8601, e.g. 2024-12-31T23:59:59Z") from None
    if given.tzinfo is None:
        raise BadInput(f"time {moment}: it needs a time zone, e.g. a Z at its end")
    return given.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def item_id(tile: str, period: str, model_name: str) -> str:
    """`<tile>_<period>_<model>`.

    Raises:
      BadInput: a model name that is no file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model_name):
        raise BadInput(
            f"model name {model_name!r}: use letters, digits, '.', '_' and '-' alone, for it stands in paths"
        )
    return f"{tile}_{period}_{model_name}"


def item_path(tile: str, period: str, model_name: str) -> str:
    """Where an item lies in its output folder."""
    return f"{period}/{tile}/{item_id(tile, period, model_name)}.json"


def model_path(model_sha256: str) -> str:
    """Where the model's own item lies, beside the model."""
    return f"_inputs/{model_sha256}.json"


def replaced_path(home: str, folder: str) -> str:
    """Where an item stays that another one has replaced: beside its assets in the `folder` of the tile's `home`."""
    return f"{home}/{folder}/item.json"


def collection_id(model_name: str) -> str:
    return f"embeddings-{model_name}"


def product_record(model_name: str, model_sha256: str, profile: Profile, overlap: str = "full") -> dict[str, Any]:
    """What an output folder holds. A folder whose record differs holds another product."""
    return {
        "format": PRODUCT_FORMAT,
        "version": PRODUCT_VERSION,
        "model": model_name,
        "model_sha256": model_sha256,
        "profile": profile.name,
        "profile_digest": profile.digest,
        "dimensions": profile.dims,
        "overlap": overlap,
    }


def product_of(collection: Mapping[str, Any]) -> dict[str, Any]:
    """The product record of a collection that this project wrote.

    Raises:
      BadInput: another STAC collection, or a record of a newer version.
    """
    record = collection.get("tessera:product")
    if not isinstance(record, dict) or record.get("format") != PRODUCT_FORMAT:
        raise BadInput(f"collection {collection.get('id')!r} is not an output of tessera-beam; choose another folder")
    if record.get("version") != PRODUCT_VERSION:
        raise BadInput(
            f"product version {record.get('version')}: this release reads version {PRODUCT_VERSION}; "
            "use a newer tessera-beam"
        )
    return record


def item(
    *,
    tile: Tile,
    period: Period,
    model_name: str,
    model_sha256: str,
    profile: Profile,
    revision: str,
    created: str,
    assets: Mapping[str, AssetRecord],
    counts: Mapping[str, int],
    device_kinds: Iterable[str],
    sources: Iterable[str],
    inventory_digest: str,
    software_version: str,
    clip: Mapping[str, Any] | None = None,
    overlap: str = "full",
    statistics: Statistics | None = None,
    folder: str = "",
    predecessor: str = "",
) -> dict[str, Any]:
    """The STAC item of one published tile: equal arguments give an equal item.

    Args:
      revision: hexadecimal; its first 8 digits begin the name of the assets' folder.
      created: freeze time of the inventory, not of this call.
      assets: by key, of `ASSET_KEYS`; "embeddings" must be there.
      counts: of pixels and observations over the tile.
      device_kinds: providers and cards that encoded it.
      sources: collection@provider of the scenes.
      clip: what part of the tile is embedded, None for all of it.
      statistics: of the whole tile, None where a block's receipt has none.
      folder: of the assets, the tile's version for people; the first 8 digits of the revision where it is "".
      predecessor: folder of the item that this one replaces, "" for none.

    Raises:
      BadInput: an unknown asset key, no embeddings, a bad model name or time.
    """
    kinds = kinds_of(profile.dims)
    if unknown := sorted(set(assets) - set(kinds)):
        raise BadInput(f"asset {', '.join(unknown)}: an item has {', '.join(ASSET_KEYS)}")
    if "embeddings" not in assets:
        raise BadInput(f"an item without an asset 'embeddings'; given: {', '.join(sorted(assets)) or 'none'}")
    geometry = geometry_of(footprint(tile))
    left_m, top_m, side_m = float(tile.left_m), float(tile.top_m), float(SIDE_M)
    named_sources = sorted(set(sources))
    properties: dict[str, Any] = {
        "title": f"{tile.name} {period.name.replace('_', ' to ')}, {model_name}",
        "version": folder or revision[:8],
        "datetime": None,
        "start_datetime": f"{period.start}T00:00:00Z",
        "end_datetime": f"{period.end}T23:59:59Z",
        "created": utc(created),
        "gsd": PIXEL_M,
        "grid:code": f"MGRS-{tile.name}",
        "proj:code": f"EPSG:{tile.epsg}",
        "proj:bbox": [left_m, top_m - side_m, left_m + side_m, top_m],
        **proj_of(tile, (TILE_PX, TILE_PX)),
        "processing:level": "L4",  # a model's output
        "processing:software": {"tessera-beam": software_version},
        "processing:version": software_version,
        "processing:lineage": (
            f"valid observations of {' and '.join(named_sources)} from {period.start} to {period.end}, sampled, "
            f"encoded and quantised pixel by pixel with {model_name}; the scenes asset lists every scene"
        ),
        "emb:quantization": {
            "method": "per_pixel_scale",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "link": {
                "rel": "about",
                "href": assets["scales" if "scales" in assets else "embeddings"].href,
                "type": COG,
                "title": "value = code * scale; scale is this asset's value at the same pixel",
            },
        },
        "emb:runtime_parameters": {
            "sampler": profile.sampler,
            "s2_bands": list(profile.s2_bands),
            "s1_bands": list(profile.s1_bands),
            "device_kinds": sorted(set(device_kinds)),
        },
        "tessera:tile": tile.name,
        "tessera:period": period.name,
        "tessera:model": model_name,
        "tessera:model_sha256": model_sha256,
        "tessera:profile": profile.name,
        "tessera:profile_digest": profile.digest,
        "tessera:dimensions": profile.dims,
        "tessera:overlap": overlap,
        "tessera:revision": revision,
        "tessera:inventory": inventory_digest,
        "tessera:sources": named_sources,
        "tessera:counts": {name: int(n) for name, n in sorted(counts.items())},
    }
    figures = {}
    if statistics is not None:
        properties["tessera:statistics"] = summary_of(statistics)
        figures = band_statistics(statistics)
    if clip is not None:
        properties["tessera:clip"] = dict(clip)
    if period.warnings:
        properties["tessera:warnings"] = list(period.warnings)
    up = {"href": "../../collection.json", "type": JSON}
    links = [
        {"rel": "root", "href": "../../catalog.json", "type": JSON},
        {"rel": "parent", **up},
        {"rel": "collection", **up},
        {"rel": "emb:model", "href": f"../../_inputs/{model_sha256}.onnx", "type": ONNX, "title": model_name},
        {"rel": "derived_from", "href": f"../../{model_path(model_sha256)}", "type": GEOJSON, "title": model_name},
        {"rel": "derived_from", "href": f"../../_inputs/{inventory_digest}.parquet", "type": PARQUET},
    ]
    if predecessor:
        links.append(
            {
                "rel": "predecessor-version",  # RFC 5829
                "href": replaced_path(".", predecessor),
                "type": GEOJSON,
                "title": "the version before this one, there until `tessera-beam clean` has removed it",
            }
        )
    if "scenes" in assets:
        links.append(
            {"rel": "emb:source-data", "href": assets["scenes"].href, "type": PARQUET, "title": "scenes of this tile"}
        )
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(ITEM_EXTENSIONS),
        "id": item_id(tile.name, period.name, model_name),
        "collection": collection_id(model_name),
        "geometry": geometry,
        "bbox": bbox_of(geometry),
        "properties": properties,
        "links": links,
        "assets": {
            key: asset_of(key, kinds[key], assets[key], tile, figures.get(key, ()))
            for key in ASSET_KEYS
            if key in assets
        },
    }


def to_json(record: Mapping[str, Any]) -> bytes:
    """Equal records give equal bytes.

    Raises:
      ValueError: a NaN or an infinity, which JSON has not.
    """
    return (json.dumps(record, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def rebased(record: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The same item with its relative hrefs, which start from `folder`, starting from the output folder instead."""
    return _moved(record, lambda href: posixpath.normpath(posixpath.join(folder, href)))


def replaced(record: Mapping[str, Any]) -> dict[str, Any]:
    """An item as it stays beside its assets when another one takes its place: its hrefs start from there.

    It says that it is out of date, and where the item is that is not. It may be one of an older release.
    """
    folder = folder_of(record)
    kept = _moved(record, lambda href: posixpath.relpath(href, folder))
    tile, period, model = (str(kept["properties"][f"tessera:{name}"]) for name in ("tile", "period", "model"))
    latest = {"rel": "latest-version", "href": f"../{item_id(tile, period, model)}.json", "type": GEOJSON}
    kept["properties"] = {"version": folder, **kept["properties"], "deprecated": True}
    kept["links"] = [*kept["links"], latest]
    return kept


def folder_of(record: Mapping[str, Any]) -> str:
    """The folder of an item's assets, beside the item."""
    return str(record["assets"]["embeddings"]["href"]).removeprefix("./").partition("/")[0]


def _moved(record: Mapping[str, Any], to: Callable[[str], str]) -> dict[str, Any]:
    """A copy of an item whose relative hrefs are moved."""

    def moved(href: str) -> str:
        if "://" in href or href.startswith(("/", "#")):
            return href
        path = to(href)
        return path if path.startswith("../") else f"./{path}"

    properties = dict(record["properties"])
    quantization = dict(properties["emb:quantization"])
    quantization["link"] = {**quantization["link"], "href": moved(quantization["link"]["href"])}
    return {
        **record,
        "properties": {**properties, "emb:quantization": quantization},
        "links": [{**link, "href": moved(link["href"])} for link in record["links"]],
        "assets": {key: {**asset, "href": moved(asset["href"])} for key, asset in record["assets"].items()},
    }
