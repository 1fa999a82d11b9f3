import dataclasses
import json
import re
from pathlib import Path

import pytest

from model.errors import BadInput
from model.families import FAMILIES, HEADS, VARIANTS, family_of, names, profile_for
from model.profile import OPERA_RTC, RULES, VERSION, Profile, profile_from_json

FACTS = Path(__file__).parents[2] / "../shared/facts/tessera.md"


@pytest.mark.parametrize("name", names())
def test_every_profile_survives_its_own_json(name):
    profile = profile_for(name, 192)
    assert profile_from_json(profile.to_json()) == profile
    assert json.loads(profile.to_json())["version"] == VERSION


def test_no_two_profiles_are_alike_in_what_touches_numbers():
    seen = {}
    for name in names():
        fields = dataclasses.asdict(profile_for(name, 192))
        numbers = json.dumps({k: v for k, v in fields.items() if k not in ("name", "family", "notes")}, sort_keys=True)
        # The two v1.0 families differ in the encoder alone: one set of statistics, one sampler.
        twin = {"v1.0-qat": "v1.0-early", "v1.0-qat+nearest": "v1.0-early+nearest"}.get(name)
        assert seen.get(numbers) == twin, name
        seen.setdefault(numbers, name)


@pytest.mark.skipif(not FACTS.is_file(), reason="../shared/facts is not here")
@pytest.mark.parametrize(
    ("family", "title"),
    [("v1.0-early", "v1.0 (early and QAT)"), ("v1.1-mpc", "v1.1 MPC"), ("v1.1-aws", "v1.1 AWS"), ("v2", "v2")],
)
def test_the_statistics_are_those_of_the_reference(family, title):
    text = FACTS.read_text()
    part = re.split(r"^\*\*", text[text.index(f"**{title}**") + 2 :], maxsplit=1, flags=re.M)[0]
    lines = [line for line in part.splitlines() if line.startswith("- ")]
    numbers = [[float(n) for n in re.findall(r"\d+\.\d+", line.split("Teacher")[0])] for line in lines]
    profile = profile_for(family, 128)
    assert numbers[0] == list(profile.s2_mean)
    assert numbers[1] == list(profile.s2_std)
    radar = [*profile.s1_ascending_mean, *profile.s1_ascending_std]
    if family != "v1.0-early":
        radar += [*profile.s1_descending_mean, *profile.s1_descending_std]
    assert numbers[2] == radar


def test_v1_1_stores_the_first_128_of_its_192_values():
    assert (profile_for("v1.1-mpc", 192).dims, profile_for("v1.1-mpc", 24).dims) == (128, 24)
    assert profile_for("v1.1-mpc", 24, 16).dims == 16
    assert profile_for("v1.0-qat", 128).dims == 128


def test_a_variant_changes_its_rule_and_its_name_alone():
    plain, nearest = profile_for("v1.1-mpc", 192), profile_for("v1.1-mpc+nearest", 192)
    changed = {f.name for f in dataclasses.fields(Profile) if getattr(plain, f.name) != getattr(nearest, f.name)}
    assert changed == {"name", *VARIANTS["nearest"]}
    assert nearest.family == plain.family == "v1.1-mpc"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v1.1", r"family 'v1\.1': this release knows v1\.0-early, .*v1\.1-mpc\+nearest"),
        ("v2+nearest", r"variants of v2 are: none"),
        ("v1.1-aws+cubic", r"variants of v1\.1-aws are: v1\.1-aws\+nearest"),
        ("v1.1-aws+", r"variants of v1\.1-aws are"),
        ("", r"family ''"),
    ],
)
def test_a_family_that_is_not_there_is_refused_with_those_that_are(name, message):
    with pytest.raises(BadInput, match=message):
        profile_for(name, 128)


def test_every_family_has_heads_sources_and_a_way_to_be_split():
    assert set(HEADS) == set(FAMILIES)
    for name in names():
        family, variant = family_of(name)
        assert name == (f"{family}+{variant}" if variant else family)
    assert profile_for("v1.1-aws", 192).s1_sources == (OPERA_RTC,)


@pytest.mark.parametrize("field", RULES)
def test_a_rule_that_this_release_does_not_know_is_refused_by_field_and_value(field):
    with pytest.raises(BadInput, match=rf"profile v2: {field} 'other' is not in this release, which has"):
        dataclasses.replace(profile_for("v2", 128), **{field: "other"})


def test_a_profile_of_version_1_means_what_it_meant():
    fields = json.loads(profile_for("v2", 128).to_json())
    new = (
        "s1_arithmetic",
        "s1_resampling",
        "day_encoding",
        "randomness",
        "row_order",
        "scale_floor_of",
        "coverage_rule",
    )
    old = {k: v for k, v in fields.items() if k not in new}
    old |= {"version": 1, "empty_modality": "one row of zeros after standardisation, day 0"}
    assert profile_from_json(json.dumps(old)) == profile_for("v2", 128)
    with pytest.raises(BadInput, match=f"profile version {VERSION + 1}: this release reads 1 to {VERSION}"):
        profile_from_json(json.dumps({**fields, "version": VERSION + 1}))
