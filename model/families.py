"""Families: the profiles of the published TESSERA weights, by the names that `--family` takes."""

import dataclasses
from typing import Any

from model.errors import BadInput
from model.profile import ES_C1, ES_L2A, OPERA_RTC, PC_L2A, PC_RTC, Profile

# Statistics in the order of S2_BANDS and S1_BANDS. Two sets of one family differ by a few per cent: a model under the
# other's gives plausible numbers, so nothing but the name keeps them apart (facts/tessera.md, trap T2).

# ucam-eo/tessera tessera_infer{,_QAT}/src/datasets/ssl_dataset.py: one set, both orbits alike.
_V1_0_NORMS: dict[str, Any] = {
    "s2_mean": (
        1711.0938, 1308.8511, 1546.4543, 3010.1293, 3106.5083,
        2068.3044, 2685.0845, 2931.5889, 2514.6928, 1899.4922,
    ),
    "s2_std": (
        1926.1026, 1862.9751, 1803.1792, 1741.7837, 1677.4543,
        1888.7862, 1736.3090, 1715.8104, 1514.5199, 1398.4779,
    ),
    "s1_ascending_mean": (5484.0407, 3003.7812),
    "s1_ascending_std": (1871.2334, 1726.0670),
    "s1_descending_mean": (5484.0407, 3003.7812),
    "s1_descending_std": (1871.2334, 1726.0670),
}  # fmt: skip

# ucam-eo/tessera tessera_infer_QAT/src/datasets/v1_1_norm_stats.py.
_V1_1_MPC_NORMS: dict[str, Any] = {
    "s2_mean": (
        2683.4553, 2223.3630, 2432.0950, 3633.1970, 3602.1755,
        3006.4324, 3400.2710, 3515.6392, 2456.9163, 1983.8783,
    ),
    "s2_std": (
        2739.5217, 2846.2993, 2690.8250, 2290.0439, 2088.8970,
        2673.1106, 2381.4521, 2229.5225, 1601.0942, 1495.3545,
    ),
    "s1_ascending_mean": (5588.3291, 3025.6270),
    "s1_ascending_std": (1713.4646, 1693.0471),
    "s1_descending_mean": (5552.9683, 2955.0520),
    "s1_descending_std": (1685.5857, 1677.6414),
}  # fmt: skip
_V1_1_AWS_NORMS: dict[str, Any] = {
    "s2_mean": (
        2793.6589, 2356.7776, 2551.0496, 3741.9229, 3713.7844,
        3120.1997, 3516.3342, 3637.0342, 2501.0283, 2038.1504,
    ),
    "s2_std": (
        2810.0093, 2933.8835, 2755.6360, 2344.5027, 2145.7986,
        2743.9019, 2438.8601, 2286.5977, 1680.7367, 1585.5529,
    ),
    "s1_ascending_mean": (5697.0859, 2838.6687),
    "s1_ascending_std": (1671.3737, 1789.4116),
    "s1_descending_mean": (5759.1367, 2873.2854),
    "s1_descending_std": (1583.2858, 1747.8390),
}  # fmt: skip

# ucam-eo/tessera tessera_infer_v2/student/model.py. One set for all sources, made on MPC's data.
_V2_NORMS: dict[str, Any] = {
    "s2_mean": (
        1633.0042, 1341.1090, 1539.5536, 3054.8269, 3117.4658,
        2004.1648, 2694.7275, 2945.1504, 2266.6079, 1657.3094,
    ),
    "s2_std": (
        1999.4603, 2014.7549, 1929.2201, 1754.2493, 1649.9807,
        1936.8988, 1748.6041, 1708.6991, 1207.5250, 1108.6046,
    ),
    "s1_ascending_mean": (5909.3921, 3405.0322),
    "s1_ascending_std": (1507.1750, 1531.2615),
    "s1_descending_mean": (5816.1382, 3277.7576),
    "s1_descending_std": (1554.6475, 1546.4733),
}  # fmt: skip

_V1_0: dict[str, Any] = {
    **_V1_0_NORMS,
    "s2_sources": (PC_L2A,),
    "s1_sources": (PC_RTC,),
    "sampler": "v1.0",
    "sampler_bins": (40,),
    "randomness": "counter",
    "empty_modality": "all-steps",
    "scale_floor": 1e-8,
    "scale_floor_of": "scale",
}
_V1_0_NOTE = (
    "Nothing published says on which source these statistics were made: Planetary Computer is assumed. The reference "
    "draws without a seed, so its own runs differ from each other. Where no radar pass exists at all the reference "
    "stops; here 40 rows of zeros after standardisation, day 0, stand in."
)
_V1_1: dict[str, Any] = {
    "sampler": "v1.1",
    "empty_modality": "bin-of-absent-rows",
    "scale_floor": 1e-8,
    "scale_floor_of": "scale",
}

_PROFILES: dict[str, dict[str, Any]] = {
    "v1.0-early": {**_V1_0, "notes": f"The reference stores float32; codes and scale are made here. {_V1_0_NOTE}"},
    "v1.0-qat": {**_V1_0, "notes": _V1_0_NOTE},
    "v1.1-mpc": {**_V1_1, **_V1_1_MPC_NORMS, "s2_sources": (PC_L2A,), "s1_sources": (PC_RTC,)},
    "v1.1-aws": {
        **_V1_1,
        **_V1_1_AWS_NORMS,
        "s2_sources": (ES_L2A,),
        "s1_sources": (OPERA_RTC,),
        "s1_order": "catalogue-order",
        "s1_resampling": "bilinear",
        "s1_arithmetic": "float32",
    },
    "v2": {**_V2_NORMS, "s2_sources": (ES_C1, ES_L2A, PC_L2A), "s1_sources": (PC_RTC,)},
}
FAMILIES = tuple(_PROFILES)

# Where the reference of today and the one of the training era differ, today's is the default and the other a variant.
VARIANTS: dict[str, dict[str, Any]] = {"nearest": {"s2_resampling": "nearest"}}
_VARIANTS_OF = {family: tuple(VARIANTS) if family.startswith("v1.") else () for family in FAMILIES}

HEADS = {"v1.0-early": 8, "v1.0-qat": 4, "v1.1-mpc": 4, "v1.1-aws": 4, "v2": 4}  # facts/tessera.md 1.7
V1_1_NATIVE, V1_1_DIMS = 192, 128  # of its 192 values v1.1 stores the first 128, unless the config says otherwise
PREFIXES = (16, 32, 64, 128)  # lengths at which v2 embeddings may be cut (its Matryoshka training)


def family_of(name: str) -> tuple[str, str]:
    """Splits `v1.1-mpc+nearest` into family and variant ("" where there is none).

    Raises:
      BadInput: no such family, or a variant that it does not have.
    """
    family, _, variant = name.partition("+")
    if family not in FAMILIES:
        raise BadInput(f"family {name!r}: this release knows {', '.join(names())}")
    if name != family and variant not in _VARIANTS_OF[family]:
        has = ", ".join(f"{family}+{v}" for v in _VARIANTS_OF[family]) or "none"
        raise BadInput(f"family {name!r}: variants of {family} are: {has}")
    return family, variant


def names() -> list[str]:
    """Every family and every variant of it, as `--family` takes them."""
    return [*FAMILIES, *(f"{family}+{v}" for family in FAMILIES for v in _VARIANTS_OF[family])]


def profile_for(name: str, native_dims: int, dims: int | None = None) -> Profile:
    """The profile of a published family, e.g. "v1.1-mpc" or "v1.1-mpc+nearest", for weights of a given output width.

    Args:
      dims: how many of the first values are stored; left out, the family's own rule: v1.1 stores 128 of its 192.

    Raises:
      BadInput: an unknown family or variant.
    """
    family, variant = family_of(name)
    if dims is None:
        dims = min(V1_1_DIMS, native_dims) if family.startswith("v1.1") else native_dims
    profile = Profile(name=name, family=family, native_dims=native_dims, dims=dims, **_PROFILES[family])
    return dataclasses.replace(profile, **VARIANTS[variant]) if variant else profile
