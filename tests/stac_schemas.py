"""The published STAC schemas beside the project, and what they say against a record."""

import importlib.resources
import json

import jsonschema
import referencing
from conftest import SHARED

SCHEMAS = SHARED / "schemas"


def schema_documents():
    """The published schemas by address, with the GeoJSON ones that pystac carries."""
    documents = {}
    for path in sorted(SCHEMAS.rglob("*.json")):
        document = json.loads(path.read_text())
        if path.name == "processing-v1.1.0.json":  # its $id is that of v1.0.0; MLM refers to it by its own address
            document["$id"] = "https://stac-extensions.github.io/processing/v1.1.0/schema.json#"
        if "$schema" in document:
            documents[document["$id"].rstrip("#")] = document
    for name in ("Feature", "Geometry"):
        text = importlib.resources.files("pystac.validation.jsonschemas").joinpath(f"geojson/{name}.json").read_text()
        documents[f"https://geojson.org/schema/{name}.json"] = json.loads(text)
    return documents


def complaints(record):
    """What the core schema and those of all declared extensions say against a record."""
    documents = schema_documents()
    registry = referencing.Registry().with_resources(
        (uri, referencing.Resource.from_contents(document)) for uri, document in documents.items()
    )
    core = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}[record["type"]]
    uris = [
        f"https://schemas.stacspec.org/v1.0.0/{core}-spec/json-schema/{core}.json",
        *record.get("stac_extensions", []),
    ]
    found = []
    for uri in uris:
        validator = jsonschema.Draft7Validator(documents[uri.rstrip("#")], registry=registry)
        found += [f"{uri}: {e.message}" for e in validator.iter_errors(record)]
    return found
