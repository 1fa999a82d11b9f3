"""Layouts: how each family's published checkpoints name their tensors, and what their settings must say."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.errors import BadInput
from model.families import HEADS, V1_1_NATIVE, profile_for
from model.weights import (
    ATTENTION,
    CUSTOM_GRU,
    MODALITIES,
    TORCH_GRU,
    EncoderSizes,
    Tensors,
    layer_name,
    pooling_of,
    tensor_shapes,
)  # fmt: skip

Settings = Mapping[str, Any]

# What torch.compile, FSDP and DDP put into the names of tensors, each between two dots or in front.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "module"})
# Parts that training alone needs; no embedding passes through them (facts/tessera.md 1.8).
TRAINING_ONLY = frozenset({"projector", "segmented_matryoshka_projector"})

CONFIG, ARGS = "config", "args"  # what the dictionary of settings is called in v1.x and in v2 files
LINEAR, MLP = ("0",), ("0", "1", "4")  # parts of `dim_reducer` that have weights

_POOLING_WORDS = {
    ATTENTION: "attention alone, without a GRU",
    TORCH_GRU: "an nn.GRU",
    CUSTOM_GRU: "TESSERA's own GRU (not an nn.GRU)",
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What the names of the tensors show of an encoder.

    Attributes:
      pooling: one of `weights.POOLINGS`.
      reducer: parts of `dim_reducer` with weights.
      qk_norm: whether there are norms for queries and keys.
    """

    pooling: str
    reducer: tuple[str, ...]
    qk_norm: bool

    @property
    def words(self) -> tuple[str, str, str]:
        """Each of them as a person reads it."""
        return (
            f"tokens weighed by {_POOLING_WORDS[self.pooling]}",
            f"a reducer of {', '.join(f'dim_reducer.{part}' for part in self.reducer) or 'nothing'}",
            "QK-norm" if self.qk_norm else "no QK-norm",
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a family's checkpoints look.

    Attributes:
      form: what the names must show; where `form.qk_norm`, the family has encoders with QK-norm and without.
      output_norm: whether the output passes a LayerNorm, which no tensor shows.
      settings: what the file calls its settings, `CONFIG` or `ARGS`.
      heads: settings that tell the attention heads.
      sizes: settings that tell what the tensors show as well, each with the field of `EncoderSizes` that it must equal;
        "latent" is a quarter of the width.
      fixed: settings that have one value in this family, for the encoder or the profile here is made for no other.
    """

    form: Form
    output_norm: bool
    settings: str
    heads: tuple[str, ...]
    sizes: Mapping[str, str]
    fixed: Mapping[str, Any]


_BINS = list(profile_for("v1.1-mpc", V1_1_NATIVE).sampler_bins)

# ucam-eo/tessera tessera_infer_QAT/src/models/ssl_model_v1_1.py, src/datasets/ssl_dataset_v1_1.py. Both orbits go
# through one backbone, and the two modalities are laid side by side; v1.0 knows some of these keys alone.
_V1: dict[str, Any] = {
    "output_norm": False,
    "settings": CONFIG,
    "heads": ("s2_num_heads", "s1_num_heads"),
    "sizes": {
        "latent_dim": "latent",
        "representation_dim": "native_dims",
        **{f"{s}_num_layers": "layers" for s in ("s2", "s1")},
        **{f"{s}_dim_feedforward": "feed_forward" for s in ("s2", "s1")},
    },
}
_V1_FIXED = {
    "fusion_method": "concat",
    "split_s1_modalities": False,
    "disable_s1_ascending": False,
    "use_s2": True,
    "use_s1": True,
}
_V1_0_FIXED = {**_V1_FIXED, "data_source": "mpc"}

LAYOUTS = {
    "v1.0-early": Layout(Form(TORCH_GRU, LINEAR, False), **_V1, fixed=_V1_0_FIXED),
    "v1.0-qat": Layout(Form(CUSTOM_GRU, LINEAR, False), **_V1, fixed=_V1_0_FIXED),
    **{
        f"v1.1-{source}": Layout(
            Form(CUSTOM_GRU, MLP, False),
            **_V1,
            fixed={**_V1_FIXED, "data_source": source, "num_obs_checkpoints": _BINS},
        )
        for source in ("mpc", "aws")
    },
    "v2": Layout(
        Form(ATTENTION, MLP, True),
        output_norm=True,
        settings=ARGS,
        heads=("nhead",),
        sizes={
            "repr_dim": "native_dims",
            "latent_dim": "latent",
            "num_layers": "layers",
            "dim_feedforward": "feed_forward",
            "enable_qk_norm": "qk_norm",
        },
        fixed={"max_seq_len": _BINS[-1]},  # 256 in all four published students
    ),
}


def plain_name(key: str) -> str:
    """The name of `weights.tensor_shapes` for one of a file: wrappers and `layers.` off; packed q, k, v stay packed."""
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    name = name.replace("_backbone.transformer_encoder.layers.", "_backbone.transformer_encoder.")
    return name.replace(".self_attn.out_proj.", ".out_proj.")


def is_training_only(name: str) -> bool:
    """Whether a plain name is of a part that no embedding passes through."""
    return name.partition(".")[0] in TRAINING_ONLY


def unpacked(name: str, tensor: np.ndarray[Any, np.dtype[np.float32]]) -> Tensors:
    """The tensor under its plain name, or queries, keys and values apart where `name` has them in one.

    Raises:
      BadInput: a packed tensor that has no three equal parts.
    """
    for kind in ("weight", "bias"):
        layer, found, rest = name.rpartition(f".self_attn.in_proj_{kind}")
        if found and not rest:
            if tensor.ndim == 0 or tensor.shape[0] % 3:
                raise BadInput(f"{name} is {tensor.shape}: it must hold queries, keys and values, three equal parts")
            return {f"{layer}.{p}_proj.{kind}": part for p, part in zip("qkv", np.split(tensor, 3), strict=True)}
    return {name: tensor}


def form_of(tensors: Tensors) -> Form:
    """What the plain names show. Raises BadInput where they show two poolings."""
    return Form(
        pooling_of(tensors),
        tuple(sorted({name.split(".")[1] for name in tensors if name.startswith("dim_reducer.")})),
        any(name.endswith((".q_norm.weight", ".k_norm.weight")) for name in tensors),
    )


def fitting(tensors: Tensors, kind: str | None, settings: Settings) -> list[str]:
    """Families whose tensors have exactly these names, and whose settings do not contradict these.

    Args:
      kind: what the file calls its settings; None where it has none.
    """
    form = form_of(tensors)
    return [
        family
        for family, layout in LAYOUTS.items()
        if _has_form(form, layout)
        and kind in (None, layout.settings)
        and not any(_contradicts(settings[key], value) for key, value in layout.fixed.items() if key in settings)
        and tensors.keys() == _names(form, _layers(tensors, "s2")).keys()
    ]


def check_form(tensors: Tensors, family: str, kind: str | None, settings: Settings) -> None:
    """Raises BadInput unless names of tensors and settings are those of the family, and both backbones are alike."""
    form, layout = form_of(tensors), LAYOUTS[family]
    if not _has_form(form, layout):
        own = dataclasses.replace(layout.form, qk_norm=layout.form.qk_norm and form.qk_norm)
        differ = [(mine, theirs) for mine, theirs in zip(form.words, own.words, strict=True) if mine != theirs]
        file, wanted = (" and ".join(side) for side in zip(*differ, strict=True))
        raise BadInput(f"the file has {file}, family {family} has {wanted}; {_likely(tensors, kind, settings)}")
    if kind not in (None, layout.settings):
        raise BadInput(
            f"the file has its settings in {kind}, family {family} has them in {layout.settings}; "
            f"{_likely(tensors, kind, settings)}"
        )
    seen = {m: _backbone(tensors, m) for m in MODALITIES}
    if seen["s2"] != seen["s1"] and all(map(all, seen.values())):  # what is missing is named elsewhere
        words = ", ".join(f"the {m.upper()} backbone has {_words(seen[m])}" for m in seen)
        raise BadInput(f"{words}: both backbones of a TESSERA encoder have the same sizes")
    names = _names(form, max(_layers(tensors, m) for m in MODALITIES))
    if missing := [name for name in names if name not in tensors]:
        raise BadInput(f"the file is without {_some(missing)}: every such encoder of family {family} has them")
    if unexpected := [name for name in tensors if name not in names]:
        raise BadInput(f"the file has unexpected {_some(unexpected)}: no encoder of family {family} has them")


def unnamed(tensors: Tensors, kind: str | None, settings: Settings) -> BadInput:
    """The refusal of a file that does not say its family, with the families that it may be of."""
    families = fitting(tensors, kind, settings)
    cure = (
        f"use `tessera-beam model import` with --family {' or --family '.join(families)}"
        if families
        else f"it has {', '.join(form_of(tensors).words)}"
    )
    return BadInput(f"nothing in the file names its family; {_likely(tensors, kind, settings)}: {cure}")


def heads_of(family: str, settings: Settings, tensors: Tensors, given: int | None) -> tuple[int, str]:
    """How many attention heads, and who says so: "file", "family" (assumed from the table) or "given".

    Raises:
      BadInput: what was given contradicts the file, the file itself, or the width is no multiple.
    """
    layout = LAYOUTS[family]
    said = {f"{layout.settings}.{key}": settings[key] for key in layout.heads if key in settings}
    for key, value in said.items():
        if type(value) is not int or value < 1:
            raise BadInput(f"{key} is {value!r}: a positive number of attention heads is needed")
    if len(set(said.values())) > 1:
        both = " and ".join(f"{key} = {value}" for key, value in said.items())
        raise BadInput(f"{both}: both backbones of a TESSERA encoder have the same number of heads")
    width = _length(tensors, "s2_backbone.embedding.2.bias")
    norm = _length(tensors, f"{layer_name('s2', 0)}.q_norm.weight")
    if not said and width and norm and width % norm == 0:  # a QK-norm has a weight for each channel of one head
        said = {f"q_norm of {norm} in a width of {width}, so heads": width // norm}
    if given is not None and given < 1:
        raise BadInput(f"--heads {given}: a positive number of attention heads is needed")
    for key, value in said.items():
        if given not in (None, value):
            raise BadInput(f"--heads {given}, but the file says {key} = {value}: leave --heads out")
    heads, whose = next(((value, "file") for value in said.values()), (HEADS[family], "family"))
    if not said and given is not None:
        heads, whose = given, "given"
    if width % heads:
        why = {
            "file": "the file says so",
            "family": f"assumed for family {family}, the file does not say: give --heads",
            "given": "given by --heads",
        }[whose]
        raise BadInput(
            f"tensors of width {width} with {heads} heads ({why}): the width must be a multiple of the heads"
        )
    return heads, whose


def check_settings(family: str, settings: Settings, sizes: EncoderSizes) -> None:
    """Raises BadInput where a setting contradicts the tensors or the family."""
    layout = LAYOUTS[family]
    for key, field in layout.sizes.items():
        seen = sizes.width / 4 if field == "latent" else getattr(sizes, field)
        if key in settings and _contradicts(settings[key], seen):
            raise BadInput(
                f"{layout.settings} says {key} = {_short(settings[key])}, the tensors {_short(seen)}: "
                "one of them is of another model"
            )
    for key, wanted in layout.fixed.items():
        if key in settings and _contradicts(settings[key], wanted):
            raise BadInput(
                f"{layout.settings} says {key} = {_short(settings[key])}, family {family} has {_short(wanted)}: "
                "this is a checkpoint of another kind"
            )


def stored_dims_of(family: str, settings: Settings, native_dims: int) -> int | None:
    """How many of its values a v1.1 encoder was made to store, where the file says so.

    Raises:
      BadInput: not a number in 1..native_dims.
    """
    if not family.startswith("v1.1") or "save_embedding_dim" not in settings:
        return None
    dims = settings["save_embedding_dim"]
    if type(dims) is not int or not 1 <= dims <= native_dims:
        raise BadInput(f"config says save_embedding_dim = {dims!r}, the tensors give {native_dims} values")
    return dims


def prefixes_of(family: str, settings: Settings, native_dims: int) -> tuple[int, ...]:
    """The lengths at which a v2 student was trained to be cut, ascending; () where the file does not say.

    Raises:
      BadInput: not a list of numbers in 1..native_dims, as text or as numbers.
    """
    said = settings.get("matryoshka_dims") if family == "v2" else None
    if said is None or said == "":
        return ()
    try:
        dims = sorted({*map(int, said.split(","))} if isinstance(said, str) else {*map(operator.index, said)})
    except (TypeError, ValueError):
        dims = []
    if not dims or dims[0] < 1 or dims[-1] > native_dims:
        raise BadInput(f"args say matryoshka_dims = {said!r}: they must be numbers in 1..{native_dims}, as in 16,32,64")
    return tuple(dims)


def _has_form(form: Form, layout: Layout) -> bool:
    return form in (layout.form, dataclasses.replace(layout.form, qk_norm=False))


def _names(form: Form, layers: int) -> dict[str, tuple[int, ...]]:
    """The names of an encoder of this form, in their order; sizes do not show in them."""
    hidden = int(form.reducer == MLP)
    return tensor_shapes(EncoderSizes(2, max(1, layers), 1, 1, hidden, 1, form.qk_norm, form.pooling))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _likely(tensors: Tensors, kind: str | None, settings: Settings) -> str:
    families = fitting(tensors, kind, settings)
    return f"it looks like {' or '.join(families)}" if families else "it fits no family of this release"


def _layers(tensors: Tensors, modality: str) -> int:
    layers = 0
    while any(name.startswith(f"{layer_name(modality, layers)}.") for name in tensors):
        layers += 1
    return layers


def _backbone(tensors: Tensors, modality: str) -> tuple[int, int, int]:
    """Width, layers and feed-forward width of one backbone, 0 where its tensors do not show them."""
    width = _length(tensors, f"{modality}_backbone.embedding.2.bias")
    return width, _layers(tensors, modality), _length(tensors, f"{layer_name(modality, 0)}.linear1.bias")


def _words(backbone: tuple[int, int, int]) -> str:
    return "width {}, {} layers and feed-forward {}".format(*backbone)


def _length(tensors: Tensors, name: str) -> int:
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0


def _contradicts(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):  # of numbers, as a set: the reference sorts them
        return not isinstance(value, list) or set(value) != set(wanted)
    return bool(value != wanted)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{', '.join(map(str, value[:3]))}, .. {value[-1]}] ({len(value)} of them)"
    return f"{value:g}" if isinstance(value, float) else repr(value)
