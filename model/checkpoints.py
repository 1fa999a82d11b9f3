"""Checkpoints: trained weights as files, published layouts and ours, read without running code."""

import dataclasses
import hashlib
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import layouts
from model.errors import BadInput
from model.extras import INSTALL
from model.families import family_of
from model.layouts import ARGS, CONFIG, LAYOUTS
from model.profile import Profile, profile_from_json
from model.weights import ATTENTION, EncoderSizes, Tensors, layer_name, sizes_of, tensor_shapes

FORMAT = "tessera-beam/checkpoint"
VERSION = 1  # raised when the record changes its meaning; newer files are refused by number
RECORD = "tessera_beam"  # what the record is called beside the published entries

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how files of torch.save begin, since 2020 and before
CHUNK_BYTES = 1 << 20
# Types that float32 holds as they are; float64 is rounded, as loading it into a float32 module rounds it. Eight-bit
# floats are left out: their scales stand elsewhere.
REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What torch.load lets out over files that are none: its own refusals, and faults of its unpickler on arbitrary bytes.
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, OSError, MemoryError),
    *(ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """What our own checkpoints carry beside the published layout.

    Attributes:
      name: what the model is called, e.g. "v2"; model files are named `<name>-<weights>`.
      profile: the contract that the weights were trained under.
      training: how they came to be: configuration, steps, data, as JSON values.
    """

    name: str
    profile: Profile
    training: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights under one set of names, whatever the file called them.

    Attributes:
      tensors: float32 by the names of `weights.tensor_shapes`.
      sizes: read from the tensors; heads as `heads_from` says.
      args: the file's own settings (args of v2, config of v1.x), JSON values only.
      file_name, file_sha256: where it came from; "" for weights that were never in a file.
      record: of our own checkpoints; None for published ones.
      family: of `families.FAMILIES`; "" for weights that were never in a file.
      heads_from: who says how many heads: "file", "family" (assumed from the family's table) or "given".
      stored_dims: how many values a v1.1 encoder was made to store, where the file says so.
      prefixes: lengths at which a v2 student was trained to be cut, where the file says so.
      ignored: tensors of the file that only training needs.
    """

    tensors: Tensors
    sizes: EncoderSizes
    args: dict[str, Any]
    file_name: str = ""
    file_sha256: str = ""
    record: Record | None = None
    family: str = ""
    heads_from: str = "file"
    stored_dims: int | None = None
    prefixes: tuple[int, ...] = ()
    ignored: int = 0


@dataclasses.dataclass(frozen=True)
class _Payload:
    """What a file holds: `state` by its own names, `settings` under the name `kind` (None: it has none), our record."""

    state: Mapping[Any, Any]
    kind: str | None
    settings: dict[str, Any]
    record: object


def load_checkpoint(path: str | Path, family: str | None = None, heads: int | None = None) -> Checkpoint:
    """Reads a checkpoint of any family, published or ours, and holds tensors, settings and family against each other.

    Files of torch.save and safetensors, told apart by content. Nothing from the file is run. Only the encoder is taken
    into memory, so a checkpoint with optimiser and projector costs no more (but for torch files from before 2020).

    Args:
      family: one of `families.names()`; left out, our record or the v2 layout must tell.
      heads: for a file that does not say how many attention heads there are.

    Raises:
      BadInput: no such file, damaged, of no known layout, one that would run code, tensors that are missing,
        unexpected, mis-shaped or not finite, or a file, a family and heads that contradict each other.
    """
    path = Path(path)
    wanted = None if family is None else family_of(family)[0]
    if not path.is_file():
        raise BadInput(
            f"{path} is a folder: give the checkpoint in it" if path.is_dir() else f"no checkpoint at {path}"
        )
    try:
        payload = _read(path)
        tensors, ignored = _canonical(payload.state, path.stat().st_size)
        record = _record(payload.record)
        family = _family(wanted, record, payload, tensors)
        layouts.check_form(tensors, family, payload.kind, payload.settings)
        heads, heads_from = layouts.heads_of(family, payload.settings, tensors, heads)
        sizes = sizes_of(tensors, heads, LAYOUTS[family].output_norm)
        layouts.check_settings(family, payload.settings, sizes)
        if record and record.profile.native_dims != sizes.native_dims:
            raise BadInput(f"its profile says {record.profile.native_dims} dimensions, the tensors {sizes.native_dims}")
        return Checkpoint(
            tensors,
            sizes,
            payload.settings,
            path.name,
            _sha256(path),
            record,
            family=family,
            heads_from=heads_from,
            stored_dims=layouts.stored_dims_of(family, payload.settings, sizes.native_dims),
            prefixes=layouts.prefixes_of(family, payload.settings, sizes.native_dims),
            ignored=ignored,
        )
    except BadInput as e:
        raise BadInput(f"{path}: {e}") from None
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from None


def _family(wanted: str | None, record: Record | None, payload: _Payload, tensors: Tensors) -> str:
    if record:
        own = family_of(record.profile.family)[0]
        if wanted not in (None, own):
            raise BadInput(f"its record says family {own}, --family says {wanted}: leave --family out")
        return own
    if wanted:
        return wanted
    if payload.kind == ARGS:  # only v2 students have it
        return "v2"
    raise layouts.unnamed(tensors, payload.kind, payload.settings)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> _Payload:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise BadInput("the file is empty")
    length = int.from_bytes(start[:8], "little")  # safetensors: length of a JSON header, then the header
    if path.suffix == ".safetensors" or (start[8:] == b"{" and length < path.stat().st_size):
        return _read_safetensors(path)
    if not start.startswith((ZIP, PICKLE)):
        is_model = path.suffix == ".onnx"
        raise BadInput(
            "this is neither a file of torch.save nor safetensors"
            + ("; it looks like a model file, and the checkpoint that it was made from is wanted" if is_model else "")
        )
    is_zip = start.startswith(ZIP)
    try:
        if is_zip:
            _check_archive(path)
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UNREADABLE as e:
        if isinstance(e, BadInput):
            raise
        raise BadInput(_unreadable(e)) from None
    if not isinstance(payload, dict):
        raise BadInput(f"it holds {type(payload).__name__}; a checkpoint holds a dictionary")
    return _payload(payload)


def _check_archive(path: Path) -> None:
    """Holds what torch.load maps into memory against the archive's checksums, which torch.load does not look at."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise BadInput(f"{info.filename} in it is compressed: this is no file of torch.save")
            if info.filename.endswith("/constants.pkl"):
                raise BadInput("this is a TorchScript program: a checkpoint of weights is needed")
            if info.CRC:  # torch.serialization.set_crc32_options(False) leaves 0
                with archive.open(info) as member:
                    while member.read(CHUNK_BYTES):
                        pass


def _unreadable(error: Exception) -> str:
    text = str(error).strip()
    if named := re.search(r"GLOBAL (\S+)", text):
        return (
            f"it cannot be read without running its code: it names {named[1]}, and nothing in a checkpoint is run. "
            "Save it again with plain numbers and text beside the tensors, or the tensors alone as safetensors"
        )
    # torch's own message begins with advice to switch the protection off.
    lines = [line for line in text.rpartition("WeightsUnpickler error:")[2].splitlines() if "weights_only" not in line]
    return f"it is damaged or no checkpoint: {next(filter(None, map(str.strip, lines)), type(error).__name__)}"


def _payload(payload: dict[Any, Any]) -> _Payload:
    record = payload.get(RECORD)
    if "encoder_state_dict" in payload:
        raise BadInput(
            "this is a v2 teacher (encoder_state_dict), which is not a family of this release: give a v2 student, or a "
            "checkpoint of v1.0 or v1.1"
        )
    states = [key for key in ("model_state", "model_state_dict") if key in payload]
    if len(states) > 1:
        raise BadInput(f"it holds {' and '.join(states)}: one of them must be the encoder")
    if states:
        state, kind, settings = payload[states[0]], CONFIG, payload.get(CONFIG)
        names = f"{states[0]} and {CONFIG}"
        settings = {} if settings is None else settings
    elif {ARGS, "model"} <= payload.keys():
        state, kind, settings = payload["model"], ARGS, payload[ARGS]
        names = f"{ARGS} and model"
    elif payload and all(isinstance(value, torch.Tensor) for value in payload.values()):
        return _Payload(payload, None, {}, None)
    else:
        found = ", ".join(map(str, payload)) or "nothing"
        raise BadInput(
            f"it holds {found}; a v2 student checkpoint holds args and model, one of v1.x model_state or "
            "model_state_dict, and config, or the tensors alone"
        )
    if not isinstance(state, dict) or not isinstance(settings, dict):
        raise BadInput(
            f"{names} must be dictionaries, not {' and '.join(sorted({type(v).__name__ for v in (state, settings)}))}"
        )
    return _Payload(state, kind, _json_values(settings), record)


def _read_safetensors(path: Path) -> _Payload:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise BadInput(f"reading it needs safetensors, which is not installed: {INSTALL['torch']}") from None
    try:
        opening: Any = safe_open
        with opening(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            needed = {key: not layouts.is_training_only(layouts.plain_name(key)) for key in file.keys()}  # noqa: SIM118
            state = {key: file.get_tensor(key) if need else None for key, need in needed.items()}
    except (SafetensorError, *UNREADABLE) as e:
        raise BadInput(f"it is damaged or no safetensors file: {e}") from None
    found = {}
    for key in (CONFIG, ARGS, RECORD):
        if key in metadata:
            try:
                found[key] = json.loads(metadata[key])
            except (ValueError, RecursionError) as e:
                raise BadInput(f"{key} in its metadata is not JSON: {e}") from None
            if not isinstance(found[key], dict):
                raise BadInput(f"{key} in its metadata is {type(found[key]).__name__}, not an object of JSON")
    record = found.pop(RECORD, None)
    if len(found) > 1:
        raise BadInput("its metadata have both config (v1.x) and args (v2)")
    kind, settings = next(iter(found.items()), (None, {}))
    return _Payload(state, kind, _json_values(settings), record)


def save_v2(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a v2 student in the published layout, with our record beside it where it has one.

    Raises:
      BadInput: the encoder is not a v2 student's.
    """
    sizes = checkpoint.sizes
    if sizes.pooling != ATTENTION or not sizes.output_norm or not sizes.hidden:
        raise BadInput(f"{path} was not written: {sizes} is no v2 student")
    payload: dict[str, Any] = {
        "args": {**checkpoint.args, **args_of(checkpoint.sizes)},
        "model": {name: torch.from_numpy(np.array(t)) for name, t in _published(checkpoint).items()},
    }
    if checkpoint.record:
        payload[RECORD] = {
            "format": FORMAT,
            "version": VERSION,
            "name": checkpoint.record.name,
            "profile": checkpoint.record.profile.to_json(),
            "training": json.dumps(checkpoint.record.training, sort_keys=True),
        }
    torch.save(payload, path)


def args_of(sizes: EncoderSizes) -> dict[str, Any]:
    """The published arguments that describe `sizes`; all but `nhead` can be seen in the tensors as well."""
    return {
        "repr_dim": sizes.native_dims,
        "latent_dim": sizes.width // 4,  # the published students' width is four times their latent size
        "num_layers": sizes.layers,
        "nhead": sizes.heads,
        "dim_feedforward": sizes.feed_forward,
        "enable_qk_norm": sizes.qk_norm,
    }


def _canonical(state: Mapping[Any, Any], file_bytes: int) -> tuple[Tensors, int]:
    """Tensors under the names of `weights.tensor_shapes`, in memory of their own, and how many were left out."""
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    ignored = 0
    for key, value in state.items():
        name = layouts.plain_name(str(key))
        if layouts.is_training_only(name):
            ignored += 1
            continue
        for part, numbers in layouts.unpacked(name, _numbers(name, value, file_bytes)).items():
            if part in tensors:
                raise BadInput(f"{part} stands twice in the checkpoint, the second time as {key}")
            tensors[part] = np.asarray(numbers, order="C")  # ascontiguousarray would make a number a row of one
    return tensors, ignored


def _numbers(name: str, value: object, file_bytes: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not isinstance(value, torch.Tensor) or value.dtype not in REAL:
        raise BadInput(f"{name} is {getattr(value, 'dtype', type(value).__name__)}, not a tensor of real numbers")
    if value.layout != torch.strided or value.device.type != "cpu":
        raise BadInput(f"{name} is a tensor of layout {value.layout} on {value.device}: plain numbers are needed")
    if value.numel() * value.element_size() > file_bytes:  # strides of 0 make a large one of one number
        raise BadInput(f"{name} is {tuple(value.shape)}, more than a file of {file_bytes:,} bytes can hold")
    return value.detach().to(torch.float32, copy=True).numpy()


def _published(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The reverse of `_canonical`: the published names of encoders without QK-norm have q, k, v packed."""
    if checkpoint.sizes.qk_norm:
        return {name: checkpoint.tensors[name] for name in tensor_shapes(checkpoint.sizes)}
    renamed = {}
    for name in tensor_shapes(checkpoint.sizes):
        modality, _, rest = name.partition("_backbone.transformer_encoder.")
        if not rest:
            renamed[name] = checkpoint.tensors[name]
            continue
        layer, part = rest.split(".", 1)
        there = f"{modality}_backbone.transformer_encoder.layers.{layer}"
        if part.startswith("q_proj."):
            kind = part.removeprefix("q_proj.")
            here = layer_name(modality, int(layer))
            packed = [checkpoint.tensors[f"{here}.{p}_proj.{kind}"] for p in "qkv"]
            renamed[f"{there}.self_attn.in_proj_{kind}"] = np.concatenate(packed)
        elif part.startswith("out_proj."):
            renamed[f"{there}.self_attn.{part}"] = checkpoint.tensors[name]
        elif not part.startswith(("k_proj.", "v_proj.")):
            renamed[f"{there}.{part}"] = checkpoint.tensors[name]
    return renamed


def _record(fields: object) -> Record | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInput(f"its {RECORD} record is not a {FORMAT}")
    if fields.get("version") != VERSION:
        raise BadInput(
            f"checkpoint version {fields.get('version')}: this release reads {VERSION}; use a newer tessera-beam"
        )
    if missing := [key for key in ("name", "profile", "training") if not isinstance(fields.get(key), str)]:
        raise BadInput(f"its {RECORD} record has no {', '.join(missing)}")
    try:
        training = json.loads(fields["training"])
    except ValueError as e:
        raise BadInput(f"training in its {RECORD} record is not JSON: {e}") from None
    return Record(fields["name"], profile_from_json(fields["profile"]), training)


def _json_values(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Numbers, text, and lists of these stay; whatever JSON has no word for becomes text."""
    return {
        str(k): [_json_value(v) for v in value] if isinstance(value, list | tuple) else _json_value(value)
        for k, value in settings.items()
    }


def _json_value(value: object) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
