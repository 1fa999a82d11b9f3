"""The collection of an output folder: what its items have in common, whose data they are, how to cite them."""

from collections.abc import Iterable, Mapping
from typing import Any

from model.errors import BadInput
from model.profile import Profile
from transforms.grid import PIXEL_M
from transforms.stac import (
    EXTENSIONS,
    GEOJSON,
    JSON,
    ONNX,
    STAC_VERSION,
    collection_id,
    item_path,
    model_path,
    utc,
)
from transforms.stac_assets import PARQUET, kinds_of, shared_fields
from transforms.stac_geometry import union_of

CITATION = (  # of ucam-eo/tessera, whose encoders and rules every family here follows
    "Feng et al.: TESSERA: Temporal Embeddings of Surface Spectra for Earth Representation and Analysis. CVPR 2026, "
    "arXiv:2506.20380"
)
PAPER = "https://arxiv.org/abs/2506.20380"
SENTINEL_TERMS = "https://sentinel.esa.int/documents/247904/690755/Sentinel_Data_Legal_Notice"
LICENCE = "various"  # STAC 1.0: see the links
LICENCE_FORM = r"[A-Za-z0-9.+-]+"  # what STAC takes: SPDX identifiers, "various", "proprietary"
LINKED_ITEMS = 1000  # above, a collection's own list of items helps nobody: items.parquet has them
COLLECTION_EXTENSIONS = tuple(
    f"{EXTENSIONS}/{name}/schema.json" for name in ("classification/v1.1.0", "embeddings/v0.0.1", "raster/v1.1.0")
)


def catalog(product: Mapping[str, Any]) -> dict[str, Any]:
    """The STAC catalogue around the collection: clients of static catalogues (pystac-client) open nothing else."""
    name = collection_id(str(product["model"]))
    title = f"TESSERA embeddings, {product['model']}"
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": f"{name}-catalog",
        "title": title,
        "description": "One collection of embeddings, with every published tile as an item.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": JSON},
            {"rel": "child", "href": "./collection.json", "type": JSON, "title": title},
        ],
    }


def collection(
    *,
    product: Mapping[str, Any],
    profile: Profile,
    items: Iterable[Mapping[str, Any]],
    created: str,
    source_urls: Mapping[str, str] | None = None,
    licence: str = LICENCE,
    description: str = "",
) -> dict[str, Any]:
    """The STAC collection of an output folder: equal arguments give an equal collection, whatever the items' order.

    Args:
      product: of `product_record`.
      items: of `item`; read once, and only small facts are kept of each.
      created: freeze time of the inventory.
      source_urls: source (collection@provider) -> address of its STAC collection; a source without one is linked
        by the inventories that the items came from.
      licence: of the embeddings, an SPDX identifier; "various" where whoever made them has said nothing: then the links
        name the terms of the imagery alone.

    Raises:
      BadInput: no items, or an item of another product.
    """
    model_name = str(product["model"])
    facts: list[tuple[str, Mapping[str, Any], list[float]]] = []
    for it in items:
        properties = it["properties"]
        if (it["collection"], properties["tessera:model_sha256"]) != (
            collection_id(model_name),
            product["model_sha256"],
        ):
            raise BadInput(f"item {it['id']} is of another product than {model_name}")
        kept = ("start_datetime", "end_datetime", "proj:code", "tessera:tile", "tessera:period")
        small = {k: properties[k] for k in kept}
        small |= {"sources": tuple(properties["tessera:sources"]), "inventory": properties["tessera:inventory"]}
        facts.append((it["id"], small, list(it["bbox"])))
    if not facts:
        raise BadInput("a collection needs an item: nothing is published here yet")
    facts.sort(key=lambda f: f[0])
    every = {k: sorted({f[1][k] for f in facts}) for k in ("proj:code", "tessera:period", "inventory")}
    starts = sorted(str(f[1]["start_datetime"]) for f in facts)
    ends = sorted(str(f[1]["end_datetime"]) for f in facts)
    sources = sorted({s for f in facts for s in f[1]["sources"]})
    urls = source_urls or {}
    links: list[dict[str, Any]] = [
        {"rel": "root", "href": "./catalog.json", "type": JSON},
        {"rel": "parent", "href": "./catalog.json", "type": JSON},
        {"rel": "emb:model", "href": f"./_inputs/{product['model_sha256']}.onnx", "type": ONNX, "title": model_name},
        {
            "rel": "derived_from",
            "href": f"./{model_path(str(product['model_sha256']))}",
            "type": GEOJSON,
            "title": model_name,
        },
        {
            "rel": "license",
            "href": SENTINEL_TERMS,
            "type": "application/pdf",
            "title": "Terms of the Copernicus Sentinel data that the embeddings are made of",
        },
        {"rel": "cite-as", "href": PAPER, "title": CITATION},
    ]
    links += [{"rel": "emb:source-data", "href": urls[s], "type": JSON, "title": s} for s in sources if s in urls]
    links += [
        {
            "rel": "emb:source-data",
            "href": f"./_inputs/{digest}.parquet",
            "type": PARQUET,
            "title": f"scenes of {', '.join(sources)}",
        }
        for digest in every["inventory"]
    ]
    if len(facts) <= LINKED_ITEMS:
        links += [
            {
                "rel": "item",
                "href": "./" + item_path(str(f["tessera:tile"]), str(f["tessera:period"]), model_name),
                "type": GEOJSON,
                "title": ident,
            }
            for ident, f, _ in facts
        ]
    years = f"{starts[0][:4]}" if starts[0][:4] == ends[-1][:4] else f"{starts[0][:4]}-{ends[-1][:4]}"
    attribution = f"Contains modified Copernicus Sentinel data {years}"
    text = description or (
        f"TESSERA pixel embeddings at 10 m, {profile.dims} int8 codes and a float32 scale a pixel, one STAC item a "
        f"Sentinel-2 MGRS tile and period, made with {model_name}. {attribution}."
    )
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(COLLECTION_EXTENSIONS),
        "id": collection_id(model_name),
        "title": f"TESSERA embeddings, {model_name}",
        "description": text,
        "keywords": ["embeddings", "Sentinel-1", "Sentinel-2", "TESSERA"],
        "license": licence,
        "created": utc(created),
        "extent": {
            "spatial": {"bbox": [union_of(f[2] for f in facts)]},
            "temporal": {"interval": [[starts[0], ends[-1]]]},
        },
        "emb:type": "pixel",
        "emb:dimensions": profile.dims,
        "emb:temporal_resolution": "P1Y",
        "data_type": "int8",
        "gsd": PIXEL_M,
        "tessera:product": dict(product),
        "tessera:attribution": attribution,
        "tessera:citation": CITATION,
        "summaries": {
            "emb:type": ["pixel"],
            "emb:dimensions": [profile.dims],
            "data_type": ["int8"],
            "gsd": [PIXEL_M],
            "proj:code": every["proj:code"],
            "tessera:period": every["tessera:period"],
            "tessera:sources": sources,
        },
        "item_assets": {key: shared_fields(key, kind) for key, kind in kinds_of(profile.dims).items()},
        "assets": {
            "items": {
                "href": "./items.parquet",
                "type": PARQUET,
                "roles": ["collection-mirror", "metadata"],  # stac-geoparquet 1.1's role for it
                "title": "All items as stac-geoparquet",
            }
        },
        "links": links,
    }
