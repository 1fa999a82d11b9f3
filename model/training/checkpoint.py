"""Checkpoint: a training as one file, from which a model is exported and the training goes on to the same bits."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import checkpoints
from model.checkpoints import RECORD, Record, args_of, load_checkpoint
from model.errors import BadInput
from model.layouts import ARGS, LAYOUTS
from model.weights import EncoderSizes, Tensors

TRAINING = "tessera_beam_training"  # what the entry is called that only this module reads
FORMAT = "tessera-beam/training"
VERSION = 1  # raised when the entry changes its meaning; newer files are refused by number


@dataclasses.dataclass(frozen=True)
class State:
    """What a training needs beside the encoder's weights to go on.

    Attributes:
      step: the next one, from 0. epoch, seen: where in the data it stands; follow from the step, for people.
      config: its values that two runs must share (`Config.fixed`). shards: digest of the shard set.
      teacher: sha256 of the teacher's file; "" for none.
      modules: tensors of what stands on the encoder. optimiser: of AdamW. scaler: of fp16's gradients.
    """

    step: int
    epoch: int
    seen: int
    config: dict[str, Any]
    shards: str
    teacher: str
    modules: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]


def payload_of(
    encoder: Mapping[str, Tensor], sizes: EncoderSizes, record: Record, prefixes: tuple[int, ...], state: State | None
) -> dict[str, Any]:
    """The content of a file: the family's published layout, our record beside it, and the state where it is given.

    Args:
      encoder: tensors by the names of `weights.tensor_shapes`.
      prefixes: lengths at which the embedding may be cut.
    """
    tensors = {name: t.detach().cpu() for name, t in encoder.items()}
    if LAYOUTS[record.profile.family].settings == ARGS:
        prefixes = tuple(sorted({*prefixes, sizes.native_dims}))
        args = {**args_of(sizes), "matryoshka_dims": ",".join(map(str, prefixes))}
        content: dict[str, Any] = {ARGS: args, "model": tensors}
    else:
        content = {"config": _v1_config(sizes, record), "model_state": tensors}
    content[RECORD] = {
        "format": checkpoints.FORMAT,
        "version": checkpoints.VERSION,
        "name": record.name,
        "profile": record.profile.to_json(),
        "training": json.dumps(record.training, sort_keys=True),
    }
    if state:
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        content[TRAINING] = {"format": FORMAT, "version": VERSION, **fields}
    return content


def _v1_config(sizes: EncoderSizes, record: Record) -> dict[str, Any]:
    """Settings by the names that v1.x files have for them."""
    both = {"num_heads": sizes.heads, "num_layers": sizes.layers, "dim_feedforward": sizes.feed_forward}
    stored = {"save_embedding_dim": record.profile.dims} if record.profile.family.startswith("v1.1") else {}
    return {
        "representation_dim": sizes.native_dims,
        **({"latent_dim": sizes.width // 4} if sizes.width % 4 == 0 else {}),
        **{f"{sensor}_{name}": value for sensor in ("s2", "s1") for name, value in both.items()},
        **stored,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a file at once: what was there stays until the new one is whole and on the disk."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the new name may be lost with the machine's power
    finally:
        os.close(folder)


def read(path: Path) -> tuple[Tensors, State]:
    """The encoder's tensors and the state of a training that this module wrote.

    Raises:
      BadInput: no file, damaged, of another kind, or without a state.
    """
    encoder = load_checkpoint(path)  # checksums, layout, and that nothing in it is code
    content = torch.load(path, map_location="cpu", weights_only=True)
    fields = content.get(TRAINING)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInput(f"{path}: weights alone, a training cannot go on from them; --fresh begins anew")
    if fields.get("version") != VERSION:
        raise BadInput(
            f"{path}: training of version {fields.get('version')}, this release reads {VERSION}; "
            "use a newer tessera-beam, or --fresh"
        )
    known = [f.name for f in dataclasses.fields(State)]
    if set(fields) != {"format", "version", *known}:
        raise BadInput(f"{path}: its state of the training lacks or has something else; --fresh begins anew")
    return encoder.tensors, State(**{name: fields[name] for name in known})


def check_same(path: Path, state: State, config: Mapping[str, Any], shards: str, teacher: str) -> None:
    """Raises BadInput, naming every value that differs, where a file is of another training than is to go on."""
    theirs, ours = _flat(state.config), _flat(config)
    differ = [
        f"{name} is {ours.get(name)!r}, there {theirs.get(name)!r}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if state.shards != shards:
        differ.append("the shard set has other records")
    if state.teacher != teacher:
        differ.append("the teacher is another file")
    if differ:
        raise BadInput(
            f"{path} is of another training: {'; '.join(differ)}. Take another --out, or --fresh to begin anew there"
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{table}.{name}": value for table, fields in config.items() for name, value in fields.items()}


def as_tensors(state: Mapping[str, Tensor]) -> Tensors:
    """Weights as float32 arrays, as `checkpoints` has them."""
    return {name: np.array(t.detach().cpu().numpy(), np.float32) for name, t in state.items()}


def release(path: Path, out: Path, facts: Mapping[str, Any]) -> None:
    """Writes the encoder of a training with more facts in its record, and without what only a training needs.

    Raises:
      BadInput: not a checkpoint of ours, or damaged.
    """
    loaded = load_checkpoint(path)
    if loaded.record is None:
        raise BadInput(f"{path} was not trained here, so it has no record that facts could stand in")
    record = dataclasses.replace(loaded.record, training={**loaded.record.training, **facts})
    weights = {name: torch.from_numpy(np.array(t)) for name, t in loaded.tensors.items()}
    write(out, payload_of(weights, loaded.sizes, record, loaded.prefixes, None))
