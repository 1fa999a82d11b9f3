"""Gate static: the checks that read a model file without running it."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, checker, shape_inference

from model import gate_graph, parity
from model.errors import BadInput
from model.families import FAMILIES, family_of, names, profile_for
from model.gate_report import CONTRACT, FILE, Check, faults_check
from model.gate_tokens import day_rows
from model.graph_ops import WEIGHT_MAX
from model.layouts import LAYOUTS, MLP
from model.limits import DAY_STEPS, FILE_BYTES, LIMITS, allowed_codes
from model.modelfile import IR_VERSION, OPSET, RECORDS, VERSION, ModelFile, edit_faults, name_of, signature_faults
from model.stored import DAMAGED, Array
from model.variant import TARGETS, Variant, variant_of
from model.weights import Tensors, check_tensors, weights_sha256

ORIGINS = ("import", "training", "untrained")  # kinds of origin records: `pipeline.model`, `pipeline.demo.untrained`
DIGEST = re.compile(r"[0-9a-f]{64}")
NEEDED_TO_RUN = ("onnx checker", "operators", "signature", "weights")  # without these nothing of the file is run


def static_checks(
    proto: ModelProto, model: ModelFile, arrays: Mapping[str, Array], weights: Tensors | BadInput
) -> Iterator[Check]:
    """Every check that reads the file, each a failed one where the file is too damaged to be read for it.

    Args:
      arrays: the initialisers.
      weights: the encoder's tensors, dequantised, or why they cannot be had.
    """
    inferred, passed = _checker(proto)
    yield passed
    made: tuple[tuple[str, str, Callable[[], Check]], ...] = (
        ("versions", FILE, lambda: versions(proto, model)),
        ("operators", FILE, lambda: gate_graph.operators(proto, model)),
        ("graph digest", FILE, lambda: digests(proto, model)),
        ("records", FILE, lambda: records(proto, model)),
        ("weights", FILE, lambda: weights_check(model, weights)),
        ("nodes", FILE, lambda: gate_graph.nodes(proto, model, arrays, weights)),
        ("signature", CONTRACT, lambda: signature(proto, model)),
        ("profile", CONTRACT, lambda: profile(model)),
        ("variant", CONTRACT, lambda: variant(model)),
        ("constants", CONTRACT, lambda: gate_graph.constants(model, arrays)),
        ("inner constants", CONTRACT, lambda: gate_graph.inner_constants(proto, model, arrays)),
        ("element types", CONTRACT, lambda: gate_graph.element_types(inferred, model)),
        ("day table", CONTRACT, lambda: day_table(model, arrays)),
    )
    for name, group, check in made:
        try:
            yield check()
        except DAMAGED as e:  # BadInput among them
            yield Check(name, False, f"{type(e).__name__}: {e}", "it can be read", "the file is damaged", group)


def _checker(proto: ModelProto) -> tuple[ModelProto | None, Check]:
    """ONNX's own checks; with the types of all tensors, where they can be inferred."""
    inferred, found = None, "passed"
    try:
        checker.check_model(proto, full_check=True)
        inferred = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError, RuntimeError, *DAMAGED) as e:
        found = next(iter(str(e).strip().splitlines()), type(e).__name__)
    why = "a runtime could refuse it or read it another way"
    return inferred, Check("onnx checker", found == "passed", found, "full check, strict shape inference", why, FILE)


def versions(proto: ModelProto, model: ModelFile) -> Check:
    """Versions, domains and size; nothing that lies outside the file or beside the graph."""
    domains = {o.domain or "ai.onnx" for o in proto.opset_import}
    outside = []
    for _, graph in gate_graph.walk(proto.graph):
        domains |= {node.domain or "ai.onnx" for node in graph.node}
        tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.HasField("t"))]
        outside += [t.name for t in tensors if t.data_location == TensorProto.EXTERNAL]
    opsets = [o.version for o in proto.opset_import]
    faults = [
        *([f"IR {model.ir_version}"] if model.ir_version != IR_VERSION else []),
        *([f"opsets {opsets}"] if opsets != [OPSET] else []),
        *([f"domains {', '.join(sorted(domains))}"] if domains != {"ai.onnx"} else []),
        *(f"function {f.name}" for f in proto.functions),
        *(f"{name} in another file" for name in outside),
        *(["training information"] if proto.training_info else []),
        *([f"{model.size_bytes:,} bytes"] if model.size_bytes > FILE_BYTES else []),
    ]
    limit = f"IR {IR_VERSION}, opset {OPSET} of ai.onnx alone, no functions, all inside, at most {FILE_BYTES:,} bytes"
    why = "some ONNX Runtime or provider would not load it"
    right = f"IR {model.ir_version}, opset {model.opset}, ai.onnx, {model.size_bytes:,} bytes"
    return faults_check("versions", FILE, faults, right, limit, why)


def digests(proto: ModelProto, model: ModelFile) -> Check:
    """The digests that the file carries of its graph and of its records."""
    limit = "nodes, initialisers and records are those of the export"
    return faults_check(
        "graph digest", FILE, edit_faults(proto, model), model.graph_digest[:16], limit, "it was edited"
    )


def records(proto: ModelProto, model: ModelFile) -> Check:
    """The metadata: every record once and no other, and none that contradicts another."""
    keys = [p.key for p in proto.metadata_props]
    known = {"tessera_beam", *RECORDS}
    faults = [f"record {key}, which this release does not write" for key in keys if key not in known]
    faults += [f"record {key} twice" for key in known if keys.count(key) > 1]
    if model.version != VERSION:
        faults.append(f"format version {model.version}, whose records lie under no digest: export it again")
    faults += _name_faults(model)
    faults += _origin_faults(model)
    try:
        faults += _parity_faults(model)
    except (KeyError, TypeError, ValueError) as e:
        faults.append(f"parity report that cannot be read ({type(e).__name__} {e})")
    return faults_check(
        "records",
        FILE,
        faults,
        f"{len(keys)} records; made by {model.origin.get('kind')} of {model.origin.get('family')}, "
        f"error {model.parity.get('max_abs_error')} against PyTorch then",
        "all there, none contradicts another, a parity report within the limits",
        "the file is not what it says of itself",
    )


def _name_faults(model: ModelFile) -> list[str]:
    """The name stands in paths: what it is made of, and that it tells weights, cut and precision."""
    profile, digest = model.profile, model.weights_sha256
    faults = [] if DIGEST.fullmatch(digest) else [f"weights_sha256 {digest!r}, which is no sha256"]
    stem = profile.name if model.origin.get("kind") == "import" else model.name.partition(f"-{digest[:8]}")[0]
    try:
        meant = name_of(stem, digest, model.encoder, profile, model.variant, model.origin)
    except BadInput as e:
        return [*faults, str(e)]
    if model.name != meant:
        faults.append(f"name {model.name!r}, must be {meant!r}")
    return faults


def _origin_faults(model: ModelFile) -> list[str]:
    """An import is of a published name; whatever was made here is of a family, under a profile of its own or not."""
    kind, family = model.origin.get("kind"), model.origin.get("family")
    if kind not in ORIGINS:
        return [f"origin {kind!r}, must be one of {', '.join(ORIGINS)}"]
    meant = model.profile.name if kind == "import" else model.profile.family
    faults = [f"origin of {family}, the profile is {meant}"] if family != meant else []
    if kind == "import" and model.profile.name not in names():
        faults.append(f"imported under profile {model.profile.name}, which no published weights have")
    return faults


def _parity_faults(model: ModelFile) -> list[str]:
    """Whether the report of the export speaks of the cases of this release and keeps the limits of its precision."""
    told, limit = model.parity, LIMITS[model.variant.precision]
    cases = [list(size) for size in parity.SIZES]
    codes = sum(n for n, _, _ in parity.SIZES) * model.dims
    faults = []
    if told["cases"] != cases or told["codes"] != codes:
        faults.append(f"parity report of {told['codes']} codes over {len(told['cases'])} cases, must be {codes}")
    error = float(told["max_abs_error"]) / float(told["rms"])
    differing = round((1 - float(told["equal_codes_share"])) * codes)
    kept = (
        0 <= error <= limit.error_per_rms * 1.05  # it is written down in two digits
        and differing <= allowed_codes(codes, model.variant.precision)
        and (limit.code_step is None or 0 <= told["max_code_step"] <= limit.code_step)
        and float(told["cosine"]) >= limit.cosine
    )
    if not kept:
        faults.append(f"parity report beyond the limits of {model.variant.precision}: {json.dumps(told)[:160]}")
    return faults


def weights_check(model: ModelFile, weights: Tensors | BadInput) -> Check:
    """Whether the tensors are all there and, where float32 shows it, those of the record."""
    precision = model.variant.precision
    limit = {
        "fp32": f"complete, finite, sha256 {model.weights_sha256[:16]}",
        "fp16": "complete, finite, float16 for the products of tokens",
        "int8": f"complete, finite, int8 for q, k, v and feed-forward, every row reaching {WEIGHT_MAX}",
    }[precision]
    ok = False
    if isinstance(weights, BadInput):
        measured = str(weights)
    else:
        try:
            check_tensors(weights, model.encoder)
            digest = weights_sha256(weights)
            ok = precision != "fp32" or digest == model.weights_sha256
            measured = f"sha256 {digest[:16]}"
            if precision != "fp32":
                measured = f"{len(weights)} tensors; {precision} cannot show the checkpoint's sha256, --against can"
        except BadInput as e:
            measured = str(e)
    return Check("weights", ok, measured, limit, "they are not those that were exported", FILE)


def signature(proto: ModelProto, model: ModelFile) -> Check:
    """Names, element types and axes as they stand in the file; inside the graph no axis is declared at all."""
    faults = signature_faults(proto, model.profile)
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        seen = [v.name for v in values]
        faults += [f"{kind} {name} twice" for name in sorted({n for n in seen if seen.count(n) > 1})]
    inner = [v.name for v in proto.graph.value_info]
    faults += [f"declared shape of inner tensor {name}" for name in inner]
    right = "as in the contract; pixel, t2 and t1 are free"
    why = "a worker would be refused, or held to the sizes of one run"
    return faults_check("signature", CONTRACT, faults, right, "names, types and axes of the contract", why)


def profile(model: ModelFile) -> Check:
    """A published profile field by field against this release's; any profile against the encoder and its family."""
    mine, sizes, faults = model.profile, model.encoder, []
    published = mine.name in names()
    if published:
        meant = profile_for(mine.name, mine.native_dims, mine.dims)
        faults += [
            f"{f.name} is {_short(getattr(mine, f.name))}, {mine.name} has {_short(getattr(meant, f.name))}"
            for f in dataclasses.fields(mine)
            if getattr(mine, f.name) != getattr(meant, f.name)
        ]
    if mine.native_dims != sizes.native_dims:
        faults.append(f"native_dims {mine.native_dims}, the encoder gives {sizes.native_dims}")
    if mine.family in FAMILIES:
        faults += _encoder_faults(model)
    else:
        faults.append(f"family {mine.family}, this release knows {', '.join(FAMILIES)}")
    whose = f"as published for {mine.name}" if published else f"{mine.name}: of an own training, family {mine.family}"
    limit = "a published name has the published fields; the encoder is one of its family"
    why = "d-pixels would be built by rules that the weights were not trained under"
    return faults_check("profile", CONTRACT, faults, whose, limit, why)


def _encoder_faults(model: ModelFile) -> list[str]:
    family, sizes = model.profile.family, model.encoder
    layout = LAYOUTS[family_of(family)[0]]
    said = {
        "pooling": (sizes.pooling, layout.form.pooling),
        "reducer": ("deep" if sizes.hidden else "linear", "deep" if layout.form.reducer == MLP else "linear"),
        "output_norm": (sizes.output_norm, layout.output_norm),
    }
    faults = [f"encoder with {what} {a}, family {family} has {b}" for what, (a, b) in said.items() if a != b]
    if sizes.qk_norm and not layout.form.qk_norm:
        faults.append(f"encoder with QK-norm, family {family} has none")
    return faults


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def variant(model: ModelFile) -> Check:
    """Precision, recurrence and devices against what such an encoder is exported as."""
    known: list[Variant] = []
    for target in TARGETS:
        try:
            known.append(variant_of(model.encoder, model.variant.precision, target))
        except BadInput:
            continue  # fp16 has no file for the CPU alone
    words = [_variant_words(v) for v in dict.fromkeys(known)]
    found = _variant_words(model.variant)
    why = "a device would be promised on which it falls back or computes something else"
    return Check("variant", model.variant in known, found, " or ".join(words), why, CONTRACT)


def _variant_words(v: Variant) -> str:
    return f"{v.precision}, recurrence {v.recurrence}, for {' and '.join(v.devices)}"


def day_table(model: ModelFile, arrays: Mapping[str, Array]) -> Check:
    """The table of days against sines and cosines in float64."""
    exact, allowed = day_rows(np.arange(367), model.encoder.width)
    table: npt.NDArray[Any] = arrays.get("day_table", np.empty(0))
    error, of_allowed = np.inf, np.inf
    if table.shape == exact.shape:
        off = np.where(np.isnan(table), np.inf, np.abs(table - exact))
        error, of_allowed = float(off.max()), float((off / allowed).max())
    ok = of_allowed <= 1 and table.dtype == np.float32
    why = "observations would be put on other days"
    limit = f"float32 {exact.shape}, within {DAY_STEPS:g} float32 steps of the angle"
    measured = f"{table.dtype} {table.shape}, error {error:.1e}, {of_allowed * DAY_STEPS:.1f} steps"
    return Check("day table", ok, measured, limit, why, CONTRACT)
