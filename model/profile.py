"""The profile: the compatibility contract between imagery, model and output, carried inside the ONNX file."""

import dataclasses
import hashlib
import json
from typing import Any

from model.errors import BadInput

FORMAT = "tessera-beam/profile"
VERSION = 2  # raised when a field is added or changes its meaning; newer files are refused by number

# ucam-eo/tessera README: red, blue, green, nir, nir08, red edge 1-3, swir16, swir22. Not wavelength order.
S2_BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
S1_BANDS = ("VV", "VH")

# Names of sources as inventories and profiles write them: collection@provider.
ES_C1 = "sentinel-2-c1-l2a@earth-search"
ES_L2A = "sentinel-2-l2a@earth-search"
PC_L2A = "sentinel-2-l2a@planetary-computer"
PC_RTC = "sentinel-1-rtc@planetary-computer"
OPERA_RTC = "rtc-s1@opera"
CDSE_L2A = "sentinel-2-l2a@cdse"

# What this release can do for each field that names a rule, with the words in which a person reads it.
RULES: dict[str, dict[str, str]] = {
    "s2_resampling": {
        "bilinear": "20 m bands to 10 m bilinear as GDAL's warper does, rounded half up",
        "nearest": "20 m bands to 10 m by nearest neighbour (the reference before 2026-05-06)",
    },
    "s1_resampling": {
        "nearest": "radar to 10 m by nearest neighbour",
        "bilinear": "radar from 30 m to 10 m bilinear",
    },
    "s1_arithmetic": {"float64": "scaled in float64", "float32": "scaled in float32"},
    "day_rule": {"utc-date": "scenes of one UTC date are one observation"},
    "s2_order": {"datetime-ascending": "the earliest valid scene of a day wins"},
    "s1_order": {
        "datetime-descending": "the latest radar scene of a day and orbit wins",
        "catalogue-order": "the first radar scene of a day and orbit wins, in the order that the catalogue gives",
    },
    "offset_rule": {"subtract-where-at-least": "the offset o is subtracted where v >= o, after resampling and mosaic"},
    "day_encoding": {"raw-sinusoids": "sinusoids of the raw day of year, base 10,000, added to the band embedding"},
    "sampler": {
        "v1.0": "40 of n drawn without replacement, with replacement where fewer, sorted by date",
        "v1.1": "all n, filled up to the bin by rounded points of a line, appended; the middles of 256 groups beyond",
        "v2": "all n, filled up to the bin by the middles of groups, appended; 256 truncated points of a line beyond",
    },
    "randomness": {
        "none": "no randomness",
        "counter": "random numbers are a hash of (profile, tile, period, sensor, pixel, draw)",
    },
    "row_order": {
        "ascending-first": "radar rows: the ascending orbit by date, then the descending one, then what was appended",
    },
    "empty_modality": {
        "one-absent-row": "a sensor without observations is one row of zeros after standardisation, day 0",
        "bin-of-absent-rows": "a sensor without observations is 8 rows of zeros after standardisation, day 0",
        "all-steps": "a sensor without observations gives all its time steps, valid or not",
    },
    "scale_floor_of": {
        "largest": "max|x| is never taken below",
        "scale": "the scale is never taken below",
    },
}  # fmt: skip


# The reference's limit is a share of the region it was asked for, which no metadata tell.
COVERAGE = "none: a date without a valid pixel adds nothing (the reference drops days under 0.01 % of its region)"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Everything that must agree between a model and the d-pixels it is given. All numbers are raw digital numbers.

    Attributes:
      name: profile name, e.g. "v2".
      family: encoder family, one of `FAMILIES`.
      s2_sources, s1_sources: the sources (collection@provider) whose pixels the weights may be given.
      s2_bands, s1_bands: channel order of the model's inputs.
      s2_mean, s2_std: standardisation of S2, one number a band, DN after the offset rule.
      s1_ascending_mean, .._std, s1_descending_mean, .._std: the same for VV, VH of each orbit direction, scaled DN.
      std_epsilon: added to every standard deviation before the division.
      scl_invalid: scene classes that mask an observation.
      s2_resampling: how 20 m bands come to the 10 m grid.
      day_rule: what makes two scenes one observation.
      s2_order, s1_order: which scene of a day wins where several are valid.
      offset_rule: form of the BOA offset, decided per scene from baseline and provider.
      s1_scaling: from linear gamma0 to the stored int16. `s1_arithmetic`: in which width; the other moves some by 1.
      s1_resampling: how radar comes to the 10 m grid.
      day_encoding: how a day of year enters the encoder.
      sampler: how valid observations become token rows; `sampler_bins` are the lengths they are filled up to.
      randomness: what a sampler that draws is keyed by. `row_order`: of what the pooling sees.
      empty_modality: what stands in for a modality without any valid observation.
      native_dims, dims: width of the encoder's output, and how many of its first values are quantised and stored.
        The scale is made from those alone.
      code_min, code_max: range of the codes. The v1 references clip at -128 and never reach it.
      scale_floor, scale_floor_of: least max|x| that a scale is made from, or least scale.
      coverage_rule: which dates are left out for covering too little.
      notes: departures a reader must know of, in words.

    Fields that are keys of `RULES` hold one of its names.
    """

    name: str
    family: str
    s2_sources: tuple[str, ...]
    s1_sources: tuple[str, ...]
    s2_mean: tuple[float, ...]
    s2_std: tuple[float, ...]
    s1_ascending_mean: tuple[float, ...]
    s1_ascending_std: tuple[float, ...]
    s1_descending_mean: tuple[float, ...]
    s1_descending_std: tuple[float, ...]
    native_dims: int
    dims: int
    s2_bands: tuple[str, ...] = S2_BANDS
    s1_bands: tuple[str, ...] = S1_BANDS
    std_epsilon: float = 1e-9
    scl_invalid: tuple[int, ...] = (0, 1, 2, 3, 8, 9)
    s2_resampling: str = "bilinear"
    day_rule: str = "utc-date"
    s2_order: str = "datetime-ascending"
    s1_order: str = "datetime-descending"
    offset_rule: str = "subtract-where-at-least"
    s1_scaling: str = "trunc(clip((20 log10 x + 50) * 200, 0, 32767)), x <= 0 is 0"
    s1_arithmetic: str = "float64"
    s1_resampling: str = "nearest"
    day_encoding: str = "raw-sinusoids"
    sampler: str = "v2"
    sampler_bins: tuple[int, ...] = tuple(range(8, 257, 8))
    randomness: str = "none"
    row_order: str = "ascending-first"
    empty_modality: str = "one-absent-row"
    code_min: int = -127
    code_max: int = 127
    scale_floor: float = 1e-12
    scale_floor_of: str = "largest"
    coverage_rule: str = COVERAGE
    notes: str = ""

    def __post_init__(self) -> None:
        for field, known in RULES.items():
            if getattr(self, field) not in known:
                raise BadInput(
                    f"profile {self.name}: {field} {getattr(self, field)!r} is not in this release, "
                    f"which has {', '.join(known)}"
                )
        for field, width in (("s2_mean", 10), ("s2_std", 10)):
            if len(getattr(self, field)) != width:
                raise BadInput(f"profile {self.name}: {field} has {len(getattr(self, field))} numbers, not {width}")
        for orbit in ("ascending", "descending"):
            for stat in ("mean", "std"):
                if len(getattr(self, f"s1_{orbit}_{stat}")) != 2:
                    raise BadInput(f"profile {self.name}: s1_{orbit}_{stat} must have 2 numbers (VV, VH)")
        if not 1 <= self.dims <= self.native_dims:
            raise BadInput(f"profile {self.name}: dims {self.dims} must lie in 1..{self.native_dims}")
        if self.code_min <= -128:
            raise BadInput(f"profile {self.name}: code_min {self.code_min}: -128 is reserved for 'no data'")

    def to_json(self) -> str:
        """One line of JSON with sorted keys: equal profiles give equal text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @property
    def digest(self) -> str:
        """sha256 of `to_json`, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def profile_from_json(text: str) -> Profile:
    """Reads what `Profile.to_json` wrote.

    Raises:
      BadInput: not a profile, a newer version, or unknown, missing or contradictory fields.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
    except ValueError as e:
        raise BadInput(f"the profile is not JSON: {e}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise BadInput(f"this is not a {FORMAT} record")
    version = fields.pop("version", None)
    if version not in range(1, VERSION + 1):
        raise BadInput(f"profile version {version}: this release reads 1 to {VERSION}; use a newer tessera-beam")
    if version == 1:  # one sentence stood where a rule's name stands now; what was added has version 1's meaning
        fields["empty_modality"] = _EMPTY_V1.get(fields.get("empty_modality", ""), fields.get("empty_modality"))
    known = {f.name for f in dataclasses.fields(Profile)}
    required = {
        f.name
        for f in dataclasses.fields(Profile)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if unknown := sorted(set(fields) - known):
        raise BadInput(f"profile with unknown fields {', '.join(unknown)}: made by another release")
    if missing := sorted(required - set(fields)):
        raise BadInput(f"profile without {', '.join(missing)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Profile(**values)


_EMPTY_V1 = {"one row of zeros after standardisation, day 0": "one-absent-row"}
