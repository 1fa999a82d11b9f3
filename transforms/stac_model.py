"""The model's item: what the encoder is, takes and gives, in the words of the MLM extension."""

import math
from typing import Any

from onnx import TensorProto

from model.modelfile import DIMS, INPUTS, OUTPUTS, ModelFile
from model.weights import ATTENTION, CUSTOM_GRU, TORCH_GRU, tensor_shapes
from transforms.stac import EXTENSIONS, JSON, ONNX, STAC_VERSION

MODEL_EXTENSIONS = tuple(f"{EXTENSIONS}/{name}/schema.json" for name in ("file/v2.1.0", "mlm/v1.5.2", "raster/v1.1.0"))
TESSERA = "https://github.com/ucam-eo/tessera"

_POOLINGS = {
    ATTENTION: "attention pooling",
    CUSTOM_GRU: "pooling by attention over a GRU's states (reset before the product)",
    TORCH_GRU: "pooling by attention over a GRU's states",
}
_BANDS = {"s2": "s2_bands", "s1": "s1_bands"}  # inputs whose last axis has the names of a profile's field
_AXES = {"pixel": "batch", "t1": "time", "t2": "time"}
_WORDS = {
    "s2": "Sentinel-2 digital numbers after the profile's offset rule, one row an observation",
    "s2_doy": "day of year of each Sentinel-2 row; 0 marks a row without an observation",
    "s1": "Sentinel-1 backscatter as the profile scales it, one row a pass",
    "s1_orbit": "orbit direction of each Sentinel-1 row: 0 ascending, 1 descending",
    "s1_doy": "day of year of each Sentinel-1 row; 0 marks a row without an observation",
    "codes": "the embedding as int8; value = code * scale",
    "scale": "scale of each pixel's codes",
    "embedding": "the embedding before it is quantised",
}


def model_item(model: ModelFile) -> dict[str, Any]:
    """The STAC item of a model file, to lie beside it: equal files give equal items.

    It is valid everywhere and always, for nothing in the file says where and when the weights are at their best.
    Standardisation, day encoding and quantiser are in the graph, so inputs are raw numbers without any scaling.
    """
    profile, sizes = model.profile, model.encoder
    kind = str(model.origin.get("kind", "unknown"))
    dtypes = {"s2": "uint16", "s1": "int16"}
    properties: dict[str, Any] = {
        "title": f"TESSERA encoder {model.name}",
        "description": (
            f"Makes an embedding of {profile.dims} values of a pixel's year of Sentinel-2 and Sentinel-1; profile "
            f"{profile.name}. Standardisation, day encoding and quantiser are in the file: it takes raw numbers."
        ),
        "datetime": None,
        "start_datetime": "1900-01-01T00:00:00Z",
        "end_datetime": "9999-12-31T23:59:59Z",
        "mlm:name": f"TESSERA {model.name}".rstrip("._-"),
        "mlm:architecture": (
            f"Transformer encoders of optical and radar tokens, {_POOLINGS[sizes.pooling]}, "
            f"joined by {'an MLP' if sizes.hidden else 'a linear layer'}"
        ),
        "mlm:tasks": ["similarity-search"],  # the nearest to "embedding" that the extension has
        "mlm:framework": "ONNX",
        "mlm:total_parameters": sum(math.prod(shape) for shape in tensor_shapes(sizes).values()),
        "mlm:pretrained": kind == "import",
        "mlm:accelerator": "cuda" if "cuda" in model.variant.devices else None,
        "mlm:accelerator_constrained": "cpu" not in model.variant.devices,
        "mlm:hyperparameters": {
            "layers": sizes.layers,
            "width": sizes.width,
            "heads": sizes.heads,
            "feed_forward": sizes.feed_forward,
            "dimensions": profile.dims,
            "precision": model.variant.precision,
            "sampler": profile.sampler,
            "onnx_ir_version": model.ir_version,
            "onnx_opset": model.opset,
        },
        "mlm:input": [_input(model, name) for name in INPUTS],
        "mlm:output": [_output(model, name) for name in OUTPUTS],
        "tessera:model": model.name,
        "tessera:model_sha256": model.sha256,
        "tessera:weights_sha256": model.weights_sha256,
        "tessera:profile": profile.name,
        "tessera:profile_digest": profile.digest,
        "tessera:origin": kind,
    }
    if kind != "import":  # the weights began here, not at somebody's
        properties["mlm:pretrained_source"] = None
    bands = [{"name": b, "data_type": dtypes[i]} for i, field in _BANDS.items() for b in getattr(profile, field)]
    world = [[-180.0, -90.0], [180.0, -90.0], [180.0, 90.0], [-180.0, 90.0], [-180.0, -90.0]]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(MODEL_EXTENSIONS),
        "id": f"model-{model.name}",
        "geometry": {"type": "Polygon", "coordinates": [world]},
        "bbox": [-180.0, -90.0, 180.0, 90.0],
        "properties": properties,
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": JSON},
            {"rel": "about", "href": TESSERA, "title": "TESSERA, whose published weights are CC0"},
        ],
        "assets": {
            "model": {
                "href": f"./{model.sha256}.onnx",
                "title": "Encoder, profile and records in one file",
                "type": ONNX,
                "roles": ["mlm:model", "mlm:weights", "data"],
                "mlm:artifact_type": "onnx",
                "file:size": model.size_bytes,
                "file:checksum": f"1220{model.sha256}",  # multihash: 12 is sha2-256, 20 its length in bytes
                "raster:bands": bands,
            }
        },
    }


def _structure(model: ModelFile, name: str) -> dict[str, Any]:
    """Shape with -1 for axes that are free, names of the axes, and type of an input or output."""
    element, shape = {**INPUTS, **OUTPUTS}[name]
    axes = [_AXES.get(str(n), "bands" if name in _BANDS else "embedding") for n in shape]
    sides = [model.profile.dims if n == DIMS else n if isinstance(n, int) else -1 for n in shape]
    words = TensorProto.DataType.Name(element).lower()
    return {"shape": sides, "dim_order": axes, "data_type": {"float": "float32"}.get(words, words)}


def _input(model: ModelFile, name: str) -> dict[str, Any]:
    bands = list(getattr(model.profile, _BANDS[name])) if name in _BANDS else []
    return {
        "name": name,
        "description": _WORDS[name],
        "bands": bands,
        "input": _structure(model, name),
        "value_scaling": None,
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(model: ModelFile, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": _WORDS[name],
        "tasks": ["similarity-search"],
        "bands": [],
        "result": _structure(model, name),
        "post_processing_function": None,
    }
