"""Gate against: the checks that hold a model file against the checkpoint that it was made from, with PyTorch."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import BadInput
from model.extras import need
from model.gate_bench import Bench, apart_of, limit_words, native_of, native_words, words_of
from model.gate_report import CHECKPOINT, Check, faults_check
from model.limits import LIMITS
from model.modelfile import ModelFile
from model.parity import Inputs, RunError, distance
from model.profile import Profile
from model.stored import Array, expected_stored, input_steps, unlike
from model.weights import check_tensors, weights_sha256

WHY = "it was made from another checkpoint, or the export is not the encoder that was trained"


def load(path: str | Path, model: ModelFile) -> Any:
    """The checkpoint, read as one of the file's family; heads that it does not tell are the file's own.

    Raises:
      BadInput: PyTorch is missing, or it cannot be read as a checkpoint of this family.
    """
    need("torch", "model gate --against")
    from model.checkpoints import load_checkpoint

    family = model.profile.family
    try:
        checkpoint = load_checkpoint(path, family)
    except BadInput as first:
        try:  # the family's number of heads may be what does not fit
            return load_checkpoint(path, family, model.encoder.heads)
        except BadInput:
            raise first from None
    if checkpoint.heads_from == "family" and checkpoint.sizes.heads != model.encoder.heads:
        return load_checkpoint(path, family, model.encoder.heads)
    return checkpoint


def static_checks(checkpoint: Any, model: ModelFile, arrays: Mapping[str, Array]) -> Iterator[Check]:
    """Sizes, profile and every weight."""
    faults = [
        f"{f.name} {getattr(model.encoder, f.name)}, the checkpoint has {getattr(checkpoint.sizes, f.name)}"
        for f in dataclasses.fields(model.encoder)
        if getattr(model.encoder, f.name) != getattr(checkpoint.sizes, f.name)
    ]
    heads = {"file": "", "given": "; heads are not in the checkpoint, the model file's were taken"}
    said = heads.get(checkpoint.heads_from, "; heads are not in the checkpoint, the family's were taken")
    yield faults_check("checkpoint's sizes", CHECKPOINT, faults, f"equal{said}", "equal", WHY)
    meant = profile_of(checkpoint, model)
    odd = [f.name for f in dataclasses.fields(meant) if getattr(meant, f.name) != getattr(model.profile, f.name)]
    faults = [f"{name} is not the checkpoint's" for name in odd]
    right = "its record's" if checkpoint.record else f"none in it; {model.profile.name} was named at import"
    limit = "the profile that it was trained under"
    yield faults_check("checkpoint's profile", CHECKPOINT, faults, right, limit, WHY)
    yield _weights(checkpoint, model, arrays)


def profile_of(checkpoint: Any, model: ModelFile) -> Profile:
    """The checkpoint's own profile where it has one, cut as the file is; else the file's."""
    if checkpoint.record is None:
        return model.profile
    own: Profile = checkpoint.record.profile
    return dataclasses.replace(own, dims=min(model.profile.dims, own.native_dims))


def _weights(checkpoint: Any, model: ModelFile, arrays: Mapping[str, Array]) -> Check:
    """Every initialiser of the encoder against what an export of the checkpoint stores, bit for bit."""
    name, limit = "checkpoint's weights", "equal in every bit, in the form in which the file stores them"
    try:
        check_tensors(checkpoint.tensors, model.encoder)
        steps = input_steps(arrays, model.encoder) if model.variant.precision == "int8" else {}
    except BadInput as e:
        return Check(name, False, str(e), limit, WHY, CHECKPOINT)
    expected = expected_stored(checkpoint.tensors, model.encoder, model.variant, steps)
    other, digest = unlike(arrays, expected), weights_sha256(checkpoint.tensors)
    faults = [f"{len(other)} of {len(expected)} differ, first {other[0]}"] if other else []
    if digest != model.weights_sha256:
        faults.append(f"the checkpoint's sha256 is {digest[:16]}, the record says {model.weights_sha256[:16]}")
    right = f"all {len(expected)} equal, sha256 {digest[:16]}"
    return faults_check(name, CHECKPOINT, faults, right, f"{limit}; sha256 as in the record", WHY)


def run_checks(checkpoint: Any, bench: Bench) -> Iterator[Check]:
    """PyTorch's codes over every case of the bench, and its whole output before it is cut."""
    model, precision = bench.model, bench.precision
    if checkpoint.sizes != model.encoder:
        for name in ("parity with PyTorch", "native outputs"):
            yield Check(name, False, "not run: sizes differ", "the same sizes", WHY, CHECKPOINT)
        return
    from model.encoders import encoder_of
    from model.export import run_torch

    encoder = encoder_of(checkpoint.tensors, checkpoint.sizes, profile_of(checkpoint, model))
    limit = LIMITS[precision]
    far = distance(bench.runs, (run_torch(encoder, case) for case in bench.cases))
    yield Check("parity with PyTorch", far.within(precision), words_of(far), limit_words(limit), WHY, CHECKPOINT)
    try:
        native = np.concatenate(
            [values for values, _ in native_of(bench.proto, model.profile.native_dims, bench.cases)]
        )
        apart = apart_of(native, np.concatenate([_native(encoder, case) for case in bench.cases]))
        ok, measured = apart.keeps(limit), f"{native.shape[1]} values of {len(native)} pixels: {apart.words}"
    except RunError as e:
        ok, measured = False, str(e)
    must = f"{native_words(limit)}, before the cut to {model.dims} values"
    yield Check("native outputs", ok, measured, must, WHY, CHECKPOINT)


def _native(encoder: Any, case: Inputs) -> npt.NDArray[np.float32]:
    """`Encoder.embed` over raw inputs, on one thread, as `export.run_torch` runs the rest."""
    torch = need("torch", "model gate --against")
    s2, s2_doy, s1, orbit, s1_doy = (torch.from_numpy(array) for array in case.values())
    s2_doy, s1_doy, orbit = s2_doy.long(), s1_doy.long(), orbit.long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            x2 = encoder.standardise(s2, s2_doy, encoder.s2_mean, encoder.s2_std)
            x1 = encoder.standardise(s1, s1_doy, encoder.s1_mean[orbit], encoder.s1_std[orbit])
            native: npt.NDArray[np.float32] = encoder.embed(x2, s2_doy, x1, s1_doy).numpy()
            return native
    finally:
        torch.set_num_threads(threads)
