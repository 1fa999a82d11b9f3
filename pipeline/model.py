"""Model verbs: import, export, gate and show, as functions that return what the command line prints."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from model.describe import describe, describe_profile
from model.errors import BadInput
from model.extras import need
from model.families import PREFIXES, V1_1_DIMS, V1_1_NATIVE, family_of, names, profile_for
from model.gate import gate
from model.modelfile import ModelFile, open_model
from model.parity import DECADES
from model.profile import Profile
from pipeline.gate_page import page


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a user may ask of a model file beside the encoder inside.

    Attributes:
      precision, target: of `variant.PRECISIONS` and `variant.TARGETS`.
      dims: how many of the first values are stored; None for the family's own number.
    """

    precision: str = "fp32"
    target: str = "any"
    dims: int | None = None


def import_model(
    checkpoint: str | Path, family: str, out: str | Path, shape: Shape = Shape(), heads: int | None = None
) -> dict[str, Any]:
    """Turns a published checkpoint into a model file.

    Args:
      family: of `families.names()`, variants included.
      heads: for a checkpoint that does not say how many attention heads it has.

    Raises:
      BadInput: unknown family, PyTorch missing, a checkpoint that cannot be read, that is not of the family, or that is
        one of ours (`model export` takes those); a shape that the family does not have.
      NotProven: the exported graph is not the encoder; nothing is written.
    """
    plain, _ = family_of(family)  # an unknown family is refused before PyTorch is asked for
    need("torch", "model import")
    from model.checkpoints import load_checkpoint
    from model.export import check_out, export

    check_out(out)
    loaded = load_checkpoint(checkpoint, plain, heads)
    if loaded.record:
        raise BadInput(
            f"{checkpoint} is a checkpoint of ours with a profile of its own ({loaded.record.profile.name}): "
            f"use `tessera-beam model export {checkpoint} --out {out}`"
        )
    native = loaded.sizes.native_dims
    profile = profile_for(family, native, loaded.stored_dims)
    profile = _cut(profile, shape.dims, loaded.prefixes or PREFIXES, str(checkpoint))
    origin = {
        "kind": "import",
        "family": family,
        "file_name": loaded.file_name,
        "file_sha256": loaded.file_sha256,
        "args": loaded.args,
        "heads_from": loaded.heads_from,
        "ignored_tensors": loaded.ignored,
    }
    return show(export(loaded, profile, family, origin, out, shape.precision, shape.target))


def export_model(checkpoint: str | Path, out: str | Path, shape: Shape = Shape()) -> dict[str, Any]:
    """Turns a checkpoint that was trained here into a model file; family, profile and name are in the checkpoint.

    Raises:
      BadInput: PyTorch missing, a checkpoint that cannot be read, or one that was not trained here; a shape that it
        does not have.
      NotProven: the exported graph is not the encoder; nothing is written.
    """
    need("torch", "model export")
    from model.checkpoints import load_checkpoint
    from model.export import check_out, export

    check_out(out)
    loaded = load_checkpoint(checkpoint)
    if loaded.record is None:
        raise BadInput(
            f"{checkpoint} was not trained here, so nothing in it says which profile it wants: "
            f"use `tessera-beam model import {checkpoint} --family {loaded.family or 'F'} --out {out}`"
        )
    profile = _cut(loaded.record.profile, shape.dims, loaded.prefixes or PREFIXES, str(checkpoint))
    origin = {
        "kind": "training",
        "family": loaded.record.profile.family,
        "file_name": loaded.file_name,
        "file_sha256": loaded.file_sha256,
        "args": loaded.args,
        "heads_from": loaded.heads_from,
        "training": loaded.record.training,
    }
    return show(export(loaded, profile, loaded.record.name, origin, out, shape.precision, shape.target))


def _cut(profile: Profile, dims: int | None, prefixes: Iterable[int], whose: str) -> Profile:
    """The profile that stores `dims` values, where the family was trained to be cut there."""
    if dims is None or dims == profile.dims:
        return profile
    if profile.family != "v2":
        raise BadInput(
            f"--dims {dims}: family {profile.family} stores {profile.dims} values and was not trained to be cut; "
            "only v2 students have prefixes"
        )
    known = sorted({p for p in prefixes if p <= profile.native_dims} | {profile.native_dims})
    if dims not in known:
        raise BadInput(f"--dims {dims}: {whose} was trained to be cut at {', '.join(map(str, known))}")
    return dataclasses.replace(profile, dims=dims)


def show_model(path: str | Path) -> dict[str, Any]:
    """What a model file, or a published profile by its name, is: `text` for people, the rest for programs.

    Raises:
      BadInput: as `open_model` does.
    """
    if str(path) in names() and not Path(path).exists():
        profile = profile_for(str(path), V1_1_NATIVE if str(path).startswith("v1.1") else V1_1_DIMS)
        fields = json.loads(profile.to_json())
        return {"profile": fields, "profile_digest": profile.digest, "text": describe_profile(profile)}
    return show(open_model(path))


def show(model: ModelFile) -> dict[str, Any]:
    """The same for a file that is open already."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    return {
        **fields,
        "path": str(model.path),
        "profile": json.loads(model.profile.to_json()),
        "profile_digest": model.profile.digest,
        "encoder": dataclasses.asdict(model.encoder),
        "variant": {**dataclasses.asdict(model.variant), "devices": list(model.variant.devices)},
        "dims": model.dims,
        "text": describe(model),
    }


def gate_all(
    paths: Sequence[str | Path],
    against: str | Path | None = None,
    full: bool = False,
    report: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], bool]:
    """`gate_model` over one file, or over several with a page each in the folder `report`.

    Returns:
      what was found (of several files: {"models": [..], "ok": bool}), and whether all of it is as it must be.

    Raises:
      BadInput: what `gate_model` refuses of a single file; one checkpoint for several files. Of several, a file that
        is refused is one of the results, with why under "refused".
    """
    if len(paths) == 1:
        return gate_model(paths[0], against, full, report)
    if against is not None:
        raise BadInput(f"--against {against}: one checkpoint proves one model file, and {len(paths)} were given")
    if report is not None and not Path(report).is_dir():
        raise BadInput(f"--report {report}: for {len(paths)} model files it must be a folder that exists")
    found: list[dict[str, Any]] = []
    pages = page_names(paths)
    for n, path in enumerate(paths):
        say(f"{n + 1} of {len(paths)}: {path}")
        page_of = None if report is None else Path(report) / pages[n]
        try:
            found.append(gate_model(path, None, full, page_of)[0])
        except BadInput as e:  # the others are judged all the same
            found.append({"path": str(path), "ok": False, "refused": str(e), "checks": []})
    ok = all(f["ok"] for f in found)
    return {"models": found, "ok": ok, "refused": sum("refused" in f for f in found)}, ok


def page_names(paths: Sequence[str | Path]) -> list[str]:
    """A page's file name for each model file: its own name, with its folders where two have the same."""
    stems = [Path(p).stem for p in paths]
    names = [
        stem if stems.count(stem) == 1 else "-".join(Path(p).with_suffix("").parts).strip("/-")
        for p, stem in zip(paths, stems, strict=True)
    ]
    return [f"{name}.html" if names.count(name) == 1 else f"{name}-{n + 1}.html" for n, name in enumerate(names)]


def gate_model(
    path: str | Path, against: str | Path | None = None, full: bool = False, report_html: str | Path | None = None
) -> tuple[dict[str, Any], bool]:
    """Runs every check on a model file; writes them as one HTML page where `report_html` names a file.

    Returns:
      what was found, and whether all of it is as it must be.

    Raises:
      BadInput: what `gate` refuses, or a page that cannot be written where it was asked for.
    """
    if report_html is not None and (not Path(report_html).parent.is_dir() or Path(report_html).is_dir()):
        raise BadInput(f"the report cannot be written to {report_html}: give a file in a folder that exists")
    report = gate(path, against, full)
    if report_html is not None:
        Path(report_html).write_text(page(report), encoding="utf-8")
    found: dict[str, Any] = {
        "path": str(path),
        "name": report.model.name,
        "sha256": report.model.sha256,
        "ok": report.ok,
        "checks": [dataclasses.asdict(check) for check in report.checks],
        "errors": None,
        "code_steps": None,
    }
    if report.distance:
        found["errors"] = {"edges_of_rms": list(DECADES), "counts": list(report.distance.histogram)}
        found["code_steps"] = list(report.distance.code_steps)
    return found, report.ok
