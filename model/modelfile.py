"""Modelfile: the ONNX file that is all a worker needs, opened and checked without torch or Beam."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, load_model_from_string, numpy_helper

from model.errors import BadInput
from model.families import HEADS, family_of, profile_for
from model.profile import Profile, profile_from_json
from model.variant import GRU, Variant, variant_from_json
from model.weights import CUSTOM_GRU, EncoderSizes

FORMAT = "tessera-beam/model"
VERSION = 2  # raised when inputs, outputs or metadata change their meaning; newer files are refused by number
IR_VERSION, OPSET = 10, 20  # ONNX Runtime loads these since 1.18; left alone, onnx 1.23 writes IR 14, which none loads

DIMS = "dims"  # stands for the profile's dims in the table below

# The contract: name, element type, shape. A name in a shape is a dynamic axis of that name.
INPUTS: dict[str, tuple[int, tuple[str | int, ...]]] = {
    "s2": (TensorProto.UINT16, ("pixel", "t2", 10)),
    "s2_doy": (TensorProto.INT16, ("pixel", "t2")),
    "s1": (TensorProto.INT16, ("pixel", "t1", 2)),
    "s1_orbit": (TensorProto.UINT8, ("pixel", "t1")),  # 0 ascending, 1 descending
    "s1_doy": (TensorProto.INT16, ("pixel", "t1")),
}
OUTPUTS: dict[str, tuple[int, tuple[str | int, ...]]] = {
    "codes": (TensorProto.INT8, ("pixel", DIMS)),
    "scale": (TensorProto.FLOAT, ("pixel",)),
    "embedding": (TensorProto.FLOAT, ("pixel", DIMS)),
}
RECORDS = (
    "profile",
    "encoder",
    "variant",
    "weights_sha256",
    "origin",
    "parity",
    "golden",
    "graph_digest",
    "records_digest",
    "name",
)
SINCE_2 = {"variant": "{}", "records_digest": ""}  # records that version 1 had not, with what they meant then
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names stand in paths, ids of items and addresses
HOW_TO_MAKE_ONE = "make one with `tessera-beam model import CKPT --family F --out M.onnx`"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """An opened model file; its digest, signature and records have been checked, its numbers have not (`gate` does).

    Attributes:
      path: where it lies. `version`: of the file's format.
      sha256, size_bytes: of the file.
      name: short name for paths and ids, e.g. "v2-1a2b3c4d".
      profile: the contract with the d-pixels.
      encoder: sizes of the network inside.
      variant: its precision, the operator of its recurrence, the devices it may run on.
      weights_sha256: over the checkpoint's float32 tensors alone (`weights.weights_sha256`).
      graph_digest: over everything but the records; `records_digest` in the file holds those.
      ir_version, opset: of the file.
      origin: import or training record.
      parity: how far the export is from PyTorch, as measured when it was made.
      golden: inputs' digest and PyTorch's outputs for them, to be met on any machine.
    """

    path: Path
    version: int
    sha256: str
    size_bytes: int
    name: str
    profile: Profile
    encoder: EncoderSizes
    variant: Variant
    weights_sha256: str
    graph_digest: str
    ir_version: int
    opset: int
    origin: dict[str, Any]
    parity: dict[str, Any]
    golden: dict[str, Any]

    @property
    def dims(self) -> int:
        """Values of an embedding that are stored."""
        return self.profile.dims


def name_of(
    stem: str, weights_sha256: str, sizes: EncoderSizes, profile: Profile, variant: Variant, origin: Mapping[str, Any]
) -> str:
    """What a model file is called: whatever makes other codes of the same weights makes another name.

    `<stem>-<8 digits of the weights>`; then, where it is not the family's own, `-<n>d` for stored values and `-<n>h`
    for heads that `--heads` gave; `-cpu` for the own GRU as an ONNX GRU where a Scan is usual; `-fp16`, `-int8`.
    A `+` of a profile's name becomes `-`.

    Raises:
      BadInput: a stem that cannot stand in paths.
    """
    stem = stem.replace("+", "-")
    if not NAME.fullmatch(stem):
        raise BadInput(f"model name {stem!r}: use letters, digits, '.', '_', '+' and '-' alone, for it stands in paths")
    family = family_of(profile.family)[0]
    parts = [stem, weights_sha256[:8]]
    if profile.dims != profile_for(family, sizes.native_dims).dims:
        parts.append(f"{profile.dims}d")
    if origin.get("heads_from") == "given" and sizes.heads != HEADS[family]:
        parts.append(f"{sizes.heads}h")
    if sizes.pooling == CUSTOM_GRU and variant.recurrence == GRU and variant.precision != "int8":  # int8 has no other
        parts.append("cpu")
    return "-".join(parts) + variant.suffix


def open_model(path: str | Path) -> ModelFile:
    """Opens a model file.

    Raises:
      BadInput: no such file, not ONNX, not one of ours, a newer format, edited since it was made, or a signature that
        is not the contract's.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no model file at {path}; {HOW_TO_MAKE_ONE}")
    content = path.read_bytes()
    model = parse_model(content, path)
    opened = read_model(model, content, path)
    faults = [*edit_faults(model, opened), *signature_faults(model, opened.profile)]
    if opened.version == 1:
        faults += _first_profile_faults(opened)
    if not NAME.fullmatch(opened.name):
        faults.append(f"its name {opened.name!r} cannot stand in paths")
    if faults:
        raise BadInput(f"{path}: {'; '.join(faults)}; {HOW_TO_MAKE_ONE}")
    return opened


def parse_model(content: bytes, path: Path) -> ModelProto:
    """Reads ONNX with its weights inside. Raises BadInput for anything else; `path` is for the message."""
    try:
        model = load_model_from_string(content)
    except DecodeError:
        raise BadInput(f"{path} is not an ONNX file, or one that ends early; {HOW_TO_MAKE_ONE}") from None
    if not model.graph.node:
        raise BadInput(f"{path} is not an ONNX file, or an empty one; {HOW_TO_MAKE_ONE}")
    outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise BadInput(f"{path} keeps {outside[0]} in another file: weights must be inside the model file")
    return model


def read_model(model: ModelProto, content: bytes, path: Path) -> ModelFile:
    """The records of a model that was read from `content`, not yet held against its graph.

    Raises:
      BadInput: not one of ours, a newer format, records that are missing or cannot be read.
    """
    props = {p.key: p.value for p in model.metadata_props}
    version = _version(props, path)
    if version == 1:
        props = {**SINCE_2, **props}
    if missing := [key for key in RECORDS if key not in props]:
        raise BadInput(f"{path} has no {', '.join(missing)} in its metadata: it was cut; {HOW_TO_MAKE_ONE}")
    try:
        profile = profile_from_json(props["profile"])
        encoder = EncoderSizes(**json.loads(props["encoder"]))
        variant = variant_from_json(props["variant"])
        origin, parity, golden = (json.loads(props[key]) for key in ("origin", "parity", "golden"))
    except BadInput as e:
        raise BadInput(f"{path}: {e}") from None
    except (ValueError, TypeError) as e:
        raise BadInput(f"{path}: a record in its metadata cannot be read ({e}); {HOW_TO_MAKE_ONE}") from None
    return ModelFile(
        path=path,
        version=version,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        name=props["name"],
        profile=profile,
        encoder=encoder,
        variant=variant,
        weights_sha256=props["weights_sha256"],
        graph_digest=props["graph_digest"],
        ir_version=model.ir_version,
        opset=next((o.version for o in model.opset_import if o.domain == ""), 0),
        origin=origin,
        parity=parity,
        golden=golden,
    )


def _version(props: dict[str, str], path: Path) -> int:
    try:
        mark = json.loads(props.get("tessera_beam", ""))
        name, version = mark["format"], mark["version"]
    except (ValueError, TypeError, KeyError):
        name, version = None, None
    if name != FORMAT:
        raise BadInput(f"{path} is ONNX, but not a tessera-beam model; {HOW_TO_MAKE_ONE}")
    if version not in range(1, VERSION + 1):
        raise BadInput(
            f"{path}: model file version {version}, this release reads 1 to {VERSION}; use a newer tessera-beam"
        )
    return int(version)


def graph_digest(model: ModelProto, version: int = VERSION) -> str:
    """sha256 over everything but the records: versions, every initialiser, node and declared shape, subgraphs too.

    Args:
      version: of the model file; version 1 left declared shapes and names of the graph out.
    """
    digest = hashlib.sha256()
    for opset in model.opset_import:
        digest.update(f"opset {opset.domain} {opset.version}\n".encode())
    for tensor in model.graph.initializer:
        digest.update(f"initialiser {tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        digest.update(numpy_helper.to_array(tensor).tobytes())
    graph = model.graph
    if version == 1:
        for part in (graph.input, graph.output, graph.node, graph.sparse_initializer, model.functions):
            for message in part:
                digest.update(message.SerializeToString(deterministic=True))
        return digest.hexdigest()
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.metadata_props[:]
    del rest.graph.initializer[:]
    digest.update(rest.SerializeToString(deterministic=True))
    return digest.hexdigest()


def records_digest(records: Mapping[str, str]) -> str:
    """sha256 over every record of the metadata but itself, by name."""
    told = {key: value for key, value in records.items() if key != "records_digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def edit_faults(model: ModelProto, opened: ModelFile) -> list[str]:
    """Says in words where nodes, initialisers or records are not those of the export; empty where they are."""
    faults = []
    digest = graph_digest(model, opened.version)
    if digest != opened.graph_digest:
        faults.append(
            f"its nodes and weights have digest {digest[:12]}, its record says {opened.graph_digest[:12]}: "
            "it was edited after its export"
        )
    if opened.version > 1:
        records = {p.key: p.value for p in model.metadata_props}
        digest, said = records_digest(records), records["records_digest"]
        if digest != said:
            faults.append(
                f"its records (profile, parity and so on) have digest {digest[:12]}, and one of them says {said[:12]}: "
                "they were edited after its export"
            )
    return faults


def _first_profile_faults(opened: ModelFile) -> list[str]:
    """Version 1 has no digest of its records, and only one set of rules and statistics: v2's, as published."""
    mine, meant = opened.profile, profile_for("v2", opened.profile.native_dims)
    own = ("name", "notes", "dims")  # `dims` shows in the signature
    differing = [
        field.name
        for field in dataclasses.fields(meant)
        if field.name not in own and getattr(mine, field.name) != getattr(meant, field.name)
    ]
    return [f"its profile differs from v2's in {', '.join(differing)}, which no file of version 1 did"] * bool(
        differing
    )


def signature_faults(model: ModelProto, profile: Profile) -> list[str]:
    """What in names, element types and axes differs from the contract, in words; empty where all is as it should be."""
    faults = []
    for kind, table, found in (("input", INPUTS, model.graph.input), ("output", OUTPUTS, model.graph.output)):
        expected = {
            name: _words(dtype, tuple(profile.dims if d == DIMS else d for d in shape))
            for name, (dtype, shape) in table.items()
        }
        seen = {v.name: _words(v.type.tensor_type.elem_type, _shape(v)) for v in found}
        for name in [*expected, *(n for n in seen if n not in expected)]:
            if seen.get(name) != expected.get(name):
                faults.append(f"{kind} {name} is {seen.get(name, 'absent')}, must be {expected.get(name, 'absent')}")
    return faults


def _shape(value: Any) -> tuple[str | int, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _words(dtype: int, shape: tuple[str | int, ...]) -> str:
    return f"{TensorProto.DataType.Name(dtype).lower()} ({', '.join(map(str, shape))})"
