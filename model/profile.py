"""The profile: the compatibility contract between imagery, model and output, carried inside the ONNX file."""

import dataclasses
import hashlib
import json
from typing import Any

from model.errors import BadInput

FORMAT = "tessera-beam/profile"
VERSION = 1  # raised when a field is added or changes its meaning; newer files are refused by number

# ucam-eo/tessera README: red, blue, green, nir, nir08, red edge 1-3, swir16, swir22. Not wavelength order.
S2_BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
S1_BANDS = ("VV", "VH")

# Names of sources as inventories and profiles write them: collection@provider.
ES_C1 = "sentinel-2-c1-l2a@earth-search"
ES_L2A = "sentinel-2-l2a@earth-search"
PC_L2A = "sentinel-2-l2a@planetary-computer"
PC_RTC = "sentinel-1-rtc@planetary-computer"


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
      s2_resampling: how 20 m bands come to the 10 m grid ("bilinear": GDAL's warper, rounded half up).
      day_rule: what makes two scenes one observation ("utc-date").
      s2_order, s1_order: which scene of a day wins where several are valid.
      offset_rule: form of the BOA offset ("subtract-where-at-least": v - o where v >= o, smaller values stay),
        applied after resampling and mosaic, decided per scene from baseline and provider.
      s1_scaling: from linear gamma0 to the stored int16.
      sampler: how valid observations become token rows; `sampler_bins` are the lengths they are filled up to.
      empty_modality: what stands in for a modality without any valid observation.
      native_dims, dims: width of the encoder's output, and how many of its first values are quantised and stored.
      code_min, code_max: range of the codes. `scale_floor`: least max|x| that a scale is made from.
      notes: departures a reader must know of, in words.
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
    sampler: str = "v2"
    sampler_bins: tuple[int, ...] = tuple(range(8, 257, 8))
    empty_modality: str = "one row of zeros after standardisation, day 0"
    code_min: int = -127
    code_max: int = 127
    scale_floor: float = 1e-12
    notes: str = ""

    def __post_init__(self) -> None:
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
    if version != VERSION:
        raise BadInput(f"profile version {version}: this release reads version {VERSION}; use a newer tessera-beam")
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


# ucam-eo/tessera tessera_infer_v2/student/model.py, order of S2_BANDS. One set for all sources, made on MPC's data.
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

FAMILIES = ("v2",)


def profile_for(family: str, native_dims: int, dims: int | None = None) -> Profile:
    """The profile of a published family, with the output width that the checkpoint has.

    Raises:
      BadInput: an unknown family.
    """
    if family != "v2":
        raise BadInput(f"family {family!r}: this release knows {', '.join(FAMILIES)}")
    return Profile(
        name="v2",
        family="v2",
        s2_sources=(ES_C1, ES_L2A, PC_L2A),
        s1_sources=(PC_RTC,),
        native_dims=native_dims,
        dims=native_dims if dims is None else dims,
        **_V2_NORMS,
    )
