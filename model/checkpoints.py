"""Checkpoints: trained weights as files, the published layout and ours, read without running code."""

import dataclasses
import hashlib
import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.errors import BadInput
from model.profile import Profile, profile_from_json
from model.weights import EncoderSizes, Tensors, layer_name, sizes_of, tensor_shapes

FORMAT = "tessera-beam/checkpoint"
VERSION = 1  # raised when the record changes its meaning; newer files are refused by number
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")  # what torch.compile and FSDP put into tensor names

# What torch.load lets out over files that are none: its own refusals, and faults of its unpickler on arbitrary bytes.
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, struct.error),
    *(ValueError, LookupError, AttributeError, TypeError, AssertionError),
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
      sizes: read from the tensors, heads from `args`.
      args: the file's own arguments, JSON values only.
      file_name, file_sha256: where it came from; "" for weights that were never in a file.
      record: of our own checkpoints; None for published ones.
    """

    tensors: Tensors
    sizes: EncoderSizes
    args: dict[str, Any]
    file_name: str = ""
    file_sha256: str = ""
    record: Record | None = None


def load_v2(path: str | Path) -> Checkpoint:
    """Reads a v2 student checkpoint, {args, model}, with or without QK-norm, published or ours.

    Raises:
      BadInput: no such file, not a checkpoint of this layout, one that would run code, missing, unexpected or
        mis-shaped tensors, arguments that contradict the tensors, or a newer record.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no checkpoint at {path}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise BadInput(f"{path} is not a checkpoint that can be read without running its code: {reason}") from None
    if not isinstance(payload, dict) or not {"args", "model"} <= payload.keys():
        found = ", ".join(map(str, payload)) if isinstance(payload, dict) else type(payload).__name__
        raise BadInput(f"{path} holds {found}; a v2 student checkpoint holds args and model")
    args, model = payload["args"], payload["model"]
    if not isinstance(args, dict) or not isinstance(model, dict):
        raise BadInput(
            f"{path}: args and model must be dictionaries, not {type(args).__name__}, {type(model).__name__}"
        )
    try:
        tensors = _canonical(model)
        heads = args.get("nhead")
        if type(heads) is not int or heads < 1:
            raise BadInput(f"args.nhead is {heads!r}: heads cannot be seen in the tensors, a positive number is needed")
        sizes = sizes_of(tensors, heads)
        _check_args(args, sizes)
        record = _record(payload.get("tessera_beam"), sizes)
    except BadInput as e:
        raise BadInput(f"{path}: {e}") from None
    return Checkpoint(
        tensors, sizes, _json_values(args), path.name, hashlib.sha256(path.read_bytes()).hexdigest(), record
    )


def save_v2(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint in the published layout, with our record beside it where it has one."""
    payload: dict[str, Any] = {
        "args": {**checkpoint.args, **args_of(checkpoint.sizes)},
        "model": {name: torch.from_numpy(np.array(t)) for name, t in _published(checkpoint).items()},
    }
    if checkpoint.record:
        payload["tessera_beam"] = {
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


def _check_args(args: Mapping[str, Any], sizes: EncoderSizes) -> None:
    if sizes.width % 4:
        raise BadInput(f"tensors are {sizes.width} wide: a v2 student's width is four times its latent size")
    for name, seen in args_of(sizes).items():
        if name in args and args[name] != seen:
            raise BadInput(f"args say {name} = {args[name]!r}, the tensors {seen!r}: one of them is of another model")


def _canonical(model: Mapping[Any, Any]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Tensors under the names of `weights.tensor_shapes`: wrappers off, packed q, k, v apart."""
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for key, value in model.items():
        name = str(key)
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise BadInput(f"{name} is {getattr(value, 'dtype', type(value).__name__)}, not a tensor of real numbers")
        tensor = value.detach().to(torch.float32).numpy()
        name = name.replace(".transformer_encoder.layers.", ".transformer_encoder.")
        name = name.replace(".self_attn.out_proj.", ".out_proj.")
        parts = {name: tensor}
        for kind in ("weight", "bias"):
            if name.endswith(f".self_attn.in_proj_{kind}"):
                if tensor.ndim == 0 or tensor.shape[0] % 3:
                    raise BadInput(f"{key} is {tensor.shape}: it must hold queries, keys and values, three equal parts")
                layer = name.removesuffix(f".self_attn.in_proj_{kind}")
                parts = {f"{layer}.{p}_proj.{kind}": t for p, t in zip("qkv", np.split(tensor, 3), strict=True)}
        for part, numbers in parts.items():
            if part in tensors:
                raise BadInput(f"{part} stands twice in the checkpoint, the second time as {key}")
            tensors[part] = np.ascontiguousarray(numbers)
    return tensors


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


def _record(fields: object, sizes: EncoderSizes) -> Record | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInput(f"its tessera_beam record is not a {FORMAT}")
    if fields.get("version") != VERSION:
        raise BadInput(
            f"checkpoint version {fields.get('version')}: this release reads {VERSION}; use a newer tessera-beam"
        )
    if missing := [key for key in ("name", "profile", "training") if not isinstance(fields.get(key), str)]:
        raise BadInput(f"its tessera_beam record has no {', '.join(missing)}")
    profile = profile_from_json(fields["profile"])
    if profile.native_dims != sizes.native_dims:
        raise BadInput(f"its profile says {profile.native_dims} dimensions, the tensors {sizes.native_dims}")
    return Record(fields["name"], profile, json.loads(fields["training"]))


def _json_values(args: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in args.items()}
