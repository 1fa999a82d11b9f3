"""Describe: what a model file and a profile are, in the words of a person who has to decide about them."""

import textwrap
from typing import Any

from model.modelfile import ModelFile
from model.profile import RULES, Profile
from model.weights import ATTENTION, CUSTOM_GRU, EncoderSizes

POOLING_WORDS = {
    ATTENTION: "attention over the tokens; their order does not matter",
    CUSTOM_GRU: "TESSERA's own GRU (reset before the product), then attention; the order of the rows matters",
}
TORCH_GRU_WORDS = "nn.GRU, then attention; the order of the rows matters"
RECURRENCE_WORDS = {
    "scan": ", its GRU a Scan of plain operators",
    "gru": ", its GRU an ONNX GRU",
    "none": "",
}
COLUMN, WIDTH = 11, 120  # width of the first column, and of a line


def describe(model: ModelFile) -> str:
    """What the file is: where it comes from, its encoder, its proof, and its whole profile."""
    sizes, variant = model.encoder, model.variant
    lines = {
        "model": f"{model.name}, {model.size_bytes:,} bytes, sha256 {model.sha256[:16]}",
        "made from": _origin_words(model.origin),
        "encoder": f"{model.profile.family}: {_encoder_words(sizes)}",
        "heads": _heads_words(sizes, model.origin),
        "pooling": POOLING_WORDS.get(sizes.pooling, TORCH_GRU_WORDS),
        "numbers": f"{variant.precision}, runs on {' or '.join(variant.devices)}{RECURRENCE_WORDS[variant.recurrence]}",
        "parity": _parity_words(model.parity),
        "file": f"ONNX IR {model.ir_version}, opset {model.opset}, graph digest {model.graph_digest[:16]}",
    }
    return f"{_table(lines)}\n{describe_profile(model.profile)}"


def describe_profile(profile: Profile) -> str:
    """Every row of a profile, one line each, and its statistics as a table."""
    kept = f"the first {profile.dims} of {profile.native_dims}" if profile.dims < profile.native_dims else "all kept"
    bins = profile.sampler_bins
    rows = str(bins[0]) if len(bins) == 1 else f"{bins[0]} to {bins[-1]} in {len(bins)} steps"
    pooled = (profile.s1_ascending_mean, profile.s1_ascending_std) == (
        profile.s1_descending_mean,
        profile.s1_descending_std,
    )
    lines = {
        "profile": f"{profile.name}, family {profile.family}, digest {profile.digest[:16]}",
        "embedding": f"{profile.dims} int8 codes {profile.code_min}..{profile.code_max}, a scale per pixel ({kept}); "
        f"{RULES['scale_floor_of'][profile.scale_floor_of]} {profile.scale_floor:g}",
        "optical": f"{' '.join(profile.s2_bands)} of {' or '.join(profile.s2_sources)}",
        "": f"{_rule(profile, 's2_resampling')}; {_rule(profile, 'offset_rule')}",
        "masked": f"scene classes {', '.join(map(str, profile.scl_invalid))}",
        "days": f"{_rule(profile, 'day_rule')}; {_rule(profile, 's2_order')}; {_rule(profile, 's1_order')}",
        "dates": profile.coverage_rule,
        "radar": f"{' '.join(profile.s1_bands)} of {' or '.join(profile.s1_sources)}, "
        f"{'one set of statistics' if pooled else 'own statistics for each orbit'}",
        " ": f"{profile.s1_scaling}, {_rule(profile, 's1_arithmetic')}; {_rule(profile, 's1_resampling')}",
        "sampler": f"{profile.sampler}, {rows} rows a sensor: {_rule(profile, 'sampler')}",
        "  ": f"{_rule(profile, 'row_order')}; {_rule(profile, 'randomness')}",
        "no data": _rule(profile, "empty_modality"),
        "day code": _rule(profile, "day_encoding"),
        "statistics": f"(x - mean) / (std + {profile.std_epsilon:g})",
    }
    if profile.notes:
        lines["note"] = profile.notes
    return f"{_table(lines)}\n{_statistics(profile)}"


def _table(lines: dict[str, str]) -> str:
    later = " " * COLUMN
    return "\n".join(
        textwrap.fill(value, WIDTH, initial_indent=f"{key:<{COLUMN}}", subsequent_indent=later, break_on_hyphens=False)
        for key, value in lines.items()
    )


def _rule(profile: Profile, field: str) -> str:
    return RULES[field][getattr(profile, field)]


def _statistics(profile: Profile) -> str:
    rows = [
        *zip(profile.s2_bands, profile.s2_mean, profile.s2_std, strict=True),
        *(
            (f"{band} {orbit}", mean, std)
            for orbit in ("ascending", "descending")
            for band, mean, std in zip(
                profile.s1_bands,
                getattr(profile, f"s1_{orbit}_mean"),
                getattr(profile, f"s1_{orbit}_std"),
                strict=True,
            )
        ),
    ]
    return "\n".join(f"{'':<{COLUMN}}{name:<14} mean {mean:>10.4f}  std {std:>10.4f}" for name, mean, std in rows)


def _encoder_words(sizes: EncoderSizes) -> str:
    reducer = f"reducer {2 * sizes.width}-{sizes.hidden}-{sizes.native_dims}" if sizes.hidden else "a linear reducer"
    return (
        f"width {sizes.width}, {sizes.layers} layers, {sizes.heads} heads, feed-forward {sizes.feed_forward}"
        f"{', QK-norm' if sizes.qk_norm else ''}, {reducer}{', output normalised' if sizes.output_norm else ''}"
    )


def _heads_words(sizes: EncoderSizes, origin: dict[str, Any]) -> str:
    words = {
        "file": "written in the checkpoint",
        "family": "ASSUMED: the checkpoint does not say, the family's table does",
        "given": "given by --heads: the checkpoint does not say",
    }
    return f"{sizes.heads}, {words.get(str(origin.get('heads_from')), 'written in the checkpoint')}"


def _origin_words(origin: dict[str, Any]) -> str:
    file = f", {origin['file_name']} (sha256 {origin['file_sha256'][:16]})" if origin.get("file_name") else ""
    return f"{origin.get('kind', 'unknown')} of family {origin.get('family', 'unknown')}{file}"


def _parity_words(parity: dict[str, Any]) -> str:
    try:
        return (
            f"against {parity['reference']}: largest error {parity['max_abs_error']:.1e} at rms {parity['rms']:.2f}, "
            f"{parity['equal_codes_share']:.4%} of {parity['codes']:,} codes equal, "
            f"at most {parity['max_code_step']} off"
        )
    except (KeyError, TypeError, ValueError):
        return "no record that can be read"
