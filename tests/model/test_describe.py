import dataclasses

import pytest
from gate_files import SHIPPED

from model.describe import WIDTH, describe, describe_profile
from model.families import names, profile_for
from model.modelfile import open_model


@pytest.mark.parametrize("name", names())
def test_a_person_reads_every_number_and_rule_of_a_profile(name):
    profile = profile_for(name, 192)
    text = describe_profile(profile)
    for field in ("s2_mean", "s2_std", "s1_ascending_mean", "s1_descending_std"):
        assert all(f"{number:.4f}" in text for number in getattr(profile, field))
    assert all(source in text for source in (*profile.s2_sources, *profile.s1_sources))
    assert f"the first {profile.dims} of 192" in text or profile.dims == 192
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_what_differs_between_two_profiles_differs_in_words():
    texts = {describe_profile(profile_for(name, 192)) for name in names()}
    assert len(texts) == len(names())
    assert "nearest neighbour (the reference before" in describe_profile(profile_for("v1.1-mpc+nearest", 192))


def test_heads_that_were_assumed_are_called_so():
    model = open_model(SHIPPED)
    assumed = dataclasses.replace(model, origin={**model.origin, "heads_from": "family"})
    assert "ASSUMED" in describe(assumed)
    assert "ASSUMED" not in describe(model)


def test_a_model_file_tells_its_encoder_devices_and_proof():
    text = describe(open_model(SHIPPED))
    assert "fp32, runs on cpu or cuda" in text
    assert "largest error" in text
    assert "their order does not matter" in text
