"""Export: a checkpoint and its profile to one ONNX file that carries its own contract and proof."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, TensorProto, checker, helper

from model import modelfile, parity
from model.checkpoints import Checkpoint
from model.encoders import Encoder, day_table, encoder_of
from model.errors import BadInput, NotProven
from model.graph import build, layer_inputs
from model.limits import FILE_BYTES, LIMITS
from model.modelfile import ModelFile, open_model
from model.profile import Profile
from model.variant import Variant, variant_of
from model.weights import EncoderSizes, Tensors, weights_sha256


def export(
    checkpoint: Checkpoint,
    profile: Profile,
    stem: str,
    origin: dict[str, Any],
    out: str | Path,
    precision: str = "fp32",
    target: str = "any",
) -> ModelFile:
    """Writes the model file; the same arguments give the same bytes on the same kind of CPU.

    On another kind PyTorch's last bits differ, and with them the parity report and the golden record, hence the file's
    sha256; name, weights and graph digest of fp32 and fp16 files do not. Ship one file, do not export per machine.

    Args:
      stem: what the model is called; `modelfile.name_of` makes its name of it.
      origin: import or training record, JSON values.
      out: path of the file, replaced at once when it is complete.
      precision, target: of `variant.PRECISIONS` and `variant.TARGETS`.

    Raises:
      BadInput: tensors and profile do not fit each other, an unknown precision or target, a stem that cannot stand in
        paths, or `out` cannot be written.
      NotProven: ONNX Runtime's numbers are not PyTorch's; nothing is written.
    """
    out = check_out(out)
    if profile.native_dims != checkpoint.sizes.native_dims:
        raise BadInput(
            f"profile {profile.name} has {profile.native_dims} dimensions, the weights {checkpoint.sizes.native_dims}"
        )
    variant = variant_of(checkpoint.sizes, precision, target)
    digest = weights_sha256(checkpoint.tensors)
    name = modelfile.name_of(stem, digest, checkpoint.sizes, profile, variant, origin)
    model = model_of(checkpoint.tensors, checkpoint.sizes, profile, variant)
    encoder = encoder_of(checkpoint.tensors, checkpoint.sizes, profile)
    measured = _parity(model, encoder)
    if not measured.within(precision):
        raise NotProven(
            f"{out.name} was not written: its {precision} graph is {measured.error_per_rms:.1e} of rms from PyTorch, "
            f"{measured.equal_codes_share:.2%} of the codes equal, at most {measured.max_code_step} off, least cosine "
            f"{measured.cosine:.6f}; {precision} must keep {LIMITS[precision]}"
        )
    records = {
        "tessera_beam": _json({"format": modelfile.FORMAT, "version": modelfile.VERSION}),
        "name": name,
        "profile": profile.to_json(),
        "encoder": _json(dataclasses.asdict(checkpoint.sizes)),
        "variant": _json(dataclasses.asdict(variant)),
        "weights_sha256": digest,
        "origin": _json(origin),
        "parity": _json(parity_record(measured)),
        "golden": _json(_golden(encoder)),
        "graph_digest": modelfile.graph_digest(model),
    }
    records["records_digest"] = modelfile.records_digest(records)
    helper.set_model_props(model, records)
    if model.ByteSize() > FILE_BYTES:
        raise BadInput(f"{out.name} would have {model.ByteSize():,} bytes: an ONNX file holds at most {FILE_BYTES:,}")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_bytes(model.SerializeToString(deterministic=True))
        partial.replace(out)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise BadInput(f"{out} cannot be written: {e.strerror or e}") from None
    return open_model(out)


def check_out(out: str | Path) -> Path:
    """Where a model file is to be written. Raises BadInput where none can be, so that no work is done before."""
    out = Path(out)
    if out.is_dir():
        raise BadInput(f"{out} is a folder: give the model file's own name, e.g. {out / 'm.onnx'}")
    if not out.parent.is_dir():
        raise BadInput(f"no folder {out.parent} to write {out.name} into: make it first")
    return out


def model_of(tensors: Tensors, sizes: EncoderSizes, profile: Profile, variant: Variant) -> ModelProto:
    """The model without its records, checked by ONNX itself."""
    days = day_table(sizes.width).numpy()
    ranges = None
    if variant.precision == "int8":
        exact = dataclasses.replace(variant, precision="fp32")
        wide = _proto(build(tensors, days, sizes, profile, exact))
        ranges = measured_ranges(wide, layer_inputs(tensors, sizes, profile, exact))
    model = _proto(build(tensors, days, sizes, profile, variant, ranges))
    checker.check_model(model, full_check=True)
    return model


def _proto(graph: GraphProto) -> ModelProto:
    return helper.make_model(
        graph,
        ir_version=modelfile.IR_VERSION,
        opset_imports=[helper.make_opsetid("", modelfile.OPSET)],
        producer_name="tessera-beam",
    )


def measured_ranges(model: ModelProto, layer_inputs: dict[str, str]) -> dict[str, float]:
    """The largest |input| of each layer over the calibration inputs; the model is left as it is.

    Fixed ranges, not ones found in each batch: a pixel's codes must not depend on its neighbours. Behind a LayerNorm
    they hang on the weights more than on the pixel, but not alone: the made-up pixels reach as far as imagery does
    (`parity.rare_inputs`), and a gate holds the file to others of the kind. What lies beyond is clipped.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    names = sorted(set(layer_inputs.values()))
    kept = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    probe.graph.output.extend(kept)
    session = parity.Session(probe.SerializeToString())
    reach = dict.fromkeys(names, 0.0)
    for case in parity.calibration_inputs():
        for name, values in zip(names, session.values(case, names), strict=True):
            reach[name] = max(reach[name], float(np.abs(values).max()))
    return {layer: reach[name] for layer, name in layer_inputs.items()}


def run_torch(encoder: Encoder, inputs: parity.Inputs) -> parity.Outputs:
    """The encoder on one thread, so that its own result does not depend on the machine's number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return parity.Outputs(*(t.numpy() for t in encoder(*(torch.from_numpy(a) for a in inputs.values()))))
    finally:
        torch.set_num_threads(threads)


def _parity(model: ModelProto, encoder: Encoder) -> parity.Distance:
    session = parity.Session(model.SerializeToString(deterministic=True))
    cases = [parity.inputs_of(*size) for size in parity.SIZES]
    return parity.distance((session.run(c) for c in cases), (run_torch(encoder, c) for c in cases))


def parity_record(measured: parity.Distance) -> dict[str, Any]:
    """The parity report as it stands in the metadata; errors to two digits, for the third differs between machines."""
    return {
        "reference": "torch eval float32",
        "max_abs_error": float(f"{measured.max_abs_error:.1e}"),
        "rms": round(measured.rms, 4),
        "equal_codes_share": round(measured.equal_codes_share, 6),
        "max_code_step": measured.max_code_step,
        "cosine": float(f"{measured.cosine:.8f}"),
        "codes": measured.codes,
        "cases": [list(size) for size in parity.SIZES],
    }


def _golden(encoder: Encoder) -> dict[str, Any]:
    cases = [parity.inputs_of(*size) for size in parity.GOLDEN_SIZES]
    runs = [run_torch(encoder, c) for c in cases]
    return {
        "cases": [list(size) for size in parity.GOLDEN_SIZES],
        "inputs_sha256": parity.digest_of(cases),
        "codes": base64.b64encode(np.concatenate([r.codes for r in runs]).tobytes()).decode(),
        "scales": base64.b64encode(np.concatenate([r.scale for r in runs]).astype("<f4").tobytes()).decode(),
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
