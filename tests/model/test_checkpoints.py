import json

import numpy as np
import pytest
import torch
from published_checkpoints import (
    GOLDEN,
    PLAIN,
    QK,
    changed,
    heads_given,
    load_v2,
    loaded_from,
    needs_golden,
    payload_of,
    same_weights,
    saved,
    settings_of,
    state_of,
    written,
)
from small_encoders import SMALL, family_of_case, tensors_of

from model.checkpoints import Checkpoint, Record, load_checkpoint, save_v2
from model.errors import BadInput
from model.families import FAMILIES, profile_for
from model.layouts import LAYOUTS
from model.weights import weights_sha256
from pipeline.demo.untrained import random_weights

# Every family, as published


@pytest.mark.parametrize("case", SMALL)
def test_every_family_loads_from_its_published_layout(tmp_path, case):
    loaded = loaded_from(written(tmp_path, payload_of(case)), case)
    same_weights(loaded, case)
    assert loaded.sizes == SMALL[case]
    assert loaded.family == family_of_case(case)
    assert loaded.heads_from == ("given" if heads_given(case) else "file")
    assert loaded.stored_dims == (9 if loaded.family.startswith("v1.1") else None)
    assert loaded.prefixes == ((4, 8, 16) if loaded.family == "v2" else ())
    assert loaded.ignored == (0 if loaded.family in ("v2", "v1.0-early") else 2)
    assert json.loads(json.dumps(loaded.args, allow_nan=False)) == loaded.args


@needs_golden
@pytest.mark.parametrize(
    ("file", "family", "heads", "heads_from", "stored", "prefixes", "ignored"),
    [
        ("v1.0-early", "v1.0-early", 8, "family", None, (), 0),
        ("v1.0-qat", "v1.0-qat", 4, "family", None, (), 0),
        ("v1.1-mpc", "v1.1-mpc", 4, "file", 16, (), 1),
        ("v1.1-aws", "v1.1-aws", 4, "file", 16, (), 1),
        ("v2", "v2", 4, "file", None, (8, 16, 32), 0),
        ("v2-qknorm", "v2", 4, "file", None, (8, 16, 32), 0),
    ],
)
def test_the_published_files_load(file, family, heads, heads_from, stored, prefixes, ignored):
    loaded = load_checkpoint(GOLDEN / f"{file}.pt", family)
    assert (loaded.family, loaded.sizes.heads, loaded.heads_from) == (family, heads, heads_from)
    assert (loaded.stored_dims, loaded.prefixes, loaded.ignored) == (stored, prefixes, ignored)
    assert loaded.sizes.output_norm == (family == "v2")
    state = torch.load(GOLDEN / f"{file}.pt", weights_only=True)
    query = next(t for n, t in state_of(state).items() if n.endswith("s1_backbone.attn_pool.query.weight"))
    np.testing.assert_array_equal(loaded.tensors["s1_backbone.attn_pool.query.weight"], query.numpy())
    assert len(loaded.file_sha256) == 64 and loaded.file_name == f"{file}.pt"


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_under_another_family_is_refused_with_both_sides_named(tmp_path, case, family):
    own = family_of_case(case)
    path = written(tmp_path, payload_of(case))
    if family == own:
        assert load_checkpoint(path, family, heads_given(case)).family == own
        return
    sources = f"data_source = '{own[5:]}', family {family} has '{family[5:]}'"
    forms = f"the file has .*, family {family} has .*; it looks like {own}$"
    with pytest.raises(BadInput, match=sources if own[:4] == family[:4] == "v1.1" else forms):
        load_checkpoint(path, family, heads_given(case))


def test_a_variant_of_a_family_takes_the_same_checkpoint(tmp_path):
    path = written(tmp_path, payload_of("v1.1-mpc"))
    assert load_checkpoint(path, "v1.1-mpc+nearest").family == "v1.1-mpc"
    with pytest.raises(BadInput, match=r"family 'v3': this release knows v1\.0-early"):
        load_checkpoint(path, "v3")


@pytest.mark.parametrize("case", SMALL)
def test_without_a_family_only_v2_students_tell_their_own(tmp_path, case):
    path = written(tmp_path, payload_of(case))
    if family_of_case(case) == "v2":
        assert load_checkpoint(path).family == "v2"
        return
    with pytest.raises(
        BadInput,
        match=rf"nothing in the file names its family; .*use `tessera-beam model import` with --family {case}$",
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("case", SMALL)
def test_the_bare_tensors_load_under_their_family(tmp_path, case):
    state = state_of(payload_of(case))
    path = written(tmp_path, {name: t for name, t in state.items() if t.is_floating_point()})
    loaded = load_checkpoint(path, family_of_case(case), None if SMALL[case].qk_norm else SMALL[case].heads)
    same_weights(loaded, case)
    assert (loaded.args, loaded.stored_dims, loaded.prefixes) == ({}, None, ())
    with pytest.raises(BadInput, match="use `tessera-beam model import` with --family"):
        load_checkpoint(path)


def test_heads_that_stand_nowhere_are_those_of_the_family_and_recorded_as_assumed(tmp_path):
    payload = payload_of("v1.0-early")
    loaded = load_checkpoint(written(tmp_path, payload), "v1.0-early")
    assert (loaded.sizes.heads, loaded.heads_from) == (8, "family")
    payload["config"] |= {"s2_num_heads": 3, "s1_num_heads": 3}
    loaded = load_checkpoint(written(tmp_path, payload), "v1.0-early")
    assert (loaded.sizes.heads, loaded.heads_from) == (3, "file")
    with pytest.raises(BadInput, match=r"c\.pt: --heads 8, but the file says config.s2_num_heads = 3"):
        load_checkpoint(tmp_path / "c.pt", "v1.0-early", 8)


@pytest.mark.parametrize("case", ["v1.0-qat", "v2"])
def test_settings_in_the_dictionary_of_another_layout_are_refused(tmp_path, case):
    payload = payload_of(case)
    state, said = state_of(payload), settings_of(payload)
    other = {"model_state": state, "config": said} if case == "v2" else {"model": state, "args": said}
    wrong, right = ("config", "args") if case == "v2" else ("args", "config")
    with pytest.raises(BadInput, match=rf"has its settings in {wrong}, family {case} has them in {right}; it fits no"):
        load_checkpoint(written(tmp_path, other), case)


@needs_golden
@pytest.mark.parametrize("name", ["v2", "v2-qknorm"])
def test_saving_writes_the_published_layout(tmp_path, name):
    loaded = load_checkpoint(GOLDEN / f"{name}.pt")
    save_v2(tmp_path / "c.pt", loaded)
    ours = torch.load(tmp_path / "c.pt", weights_only=True)
    theirs = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    assert ours["args"] == theirs["args"]
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(ours["model"][k], theirs["model"][k]) for k in theirs["model"])


@pytest.mark.parametrize("sizes", [PLAIN, QK])
def test_what_was_saved_comes_back(tmp_path, sizes):
    loaded = load_v2(saved(tmp_path, sizes))
    weights = random_weights(sizes, 5)
    assert loaded.sizes == sizes
    assert weights_sha256(loaded.tensors) == weights_sha256(weights)
    assert all(np.array_equal(loaded.tensors[name], weights[name]) for name in weights)


def test_only_v2_students_are_saved(tmp_path):
    sizes = SMALL["v1.1-mpc"]
    with pytest.raises(BadInput, match=r"was not written: .* is no v2 student"):
        save_v2(tmp_path / "c.pt", Checkpoint(tensors_of(sizes), sizes, {}))
    assert not list(tmp_path.iterdir())


# Our record


def test_our_record_travels_with_the_weights(tmp_path):
    record = Record("mine", profile_for("v2", 12, 8), {"steps": 3, "data": "synthetic"})
    loaded = load_checkpoint(saved(tmp_path, record=record))
    assert (loaded.record, loaded.family) == (record, "v2")


def test_a_record_says_the_family_and_no_other_may_be_given(tmp_path):
    path = saved(tmp_path, record=Record("mine", profile_for("v2", 12), {}))
    assert load_checkpoint(path, "v2").family == "v2"
    with pytest.raises(BadInput, match=r"its record says family v2, --family says v1\.1-mpc: leave --family out"):
        load_checkpoint(path, "v1.1-mpc")


def test_a_record_of_a_family_that_the_tensors_are_not_of_is_refused(tmp_path):
    path = saved(tmp_path, record=Record("mine", profile_for("v1.1-mpc", 12), {}))
    with pytest.raises(BadInput, match=r"weighed by attention alone.*, family v1\.1-mpc .*; it looks like v2"):
        load_checkpoint(path)


def test_a_record_tells_the_family_of_a_v1_layout(tmp_path):
    """Whoever trains a v1 encoder here may keep its layout."""
    payload = payload_of("v1.1-aws")
    with_record = torch.load(saved(tmp_path, record=Record("mine", profile_for("v1.1-aws", 12), {})), weights_only=True)
    loaded = load_checkpoint(written(tmp_path, payload | {"tessera_beam": with_record["tessera_beam"]}))
    assert (loaded.family, loaded.record.name) == ("v1.1-aws", "mine")
    same_weights(loaded, "v1.1-aws")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, "checkpoint version 7: this release reads 1"),
        ({"format": "x"}, "its tessera_beam record is not a tessera-beam/checkpoint"),
        ({"name": 3}, "its tessera_beam record has no name"),
        ({"profile": "{}"}, "not a tessera-beam/profile"),
        ({"training": "{"}, "training in its tessera_beam record is not JSON"),
    ],
)
def test_a_record_of_another_kind_is_refused(tmp_path, change, message):
    record = Record("mine", profile_for("v2", 12), {})
    path = changed(saved(tmp_path, record=record), lambda p: p["tessera_beam"].update(change))
    with pytest.raises(BadInput, match=message):
        load_v2(path)


def test_a_record_of_another_width_is_refused(tmp_path):
    record = Record("mine", profile_for("v2", 99), {})
    with pytest.raises(BadInput, match="99 dimensions, the tensors 12"):
        load_v2(saved(tmp_path, record=record))


def test_args_are_kept_as_json_values(tmp_path):
    values = {
        "betas": (0.9, 0.95),
        "start": float("inf"),
        "seed": 7,
        "amp": None,
        "mix": {"a": 1},
        "lr": [float("nan")],
    }
    path = changed(saved(tmp_path), lambda p: p["args"].update(values))
    got = json.loads(json.dumps(load_v2(path).args, allow_nan=False))
    assert {key: got[key] for key in values} == {
        "betas": [0.9, 0.95], "start": "inf", "seed": 7, "amp": None, "mix": "{'a': 1}", "lr": ["nan"],
    }  # fmt: skip


def test_the_layouts_of_these_tests_have_every_family():
    assert {family_of_case(case) for case in SMALL} == set(LAYOUTS)
