import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_encoders import SMALL, family_of_case, tensors_of

from model import layouts
from model.errors import BadInput
from model.families import FAMILIES, HEADS, profile_for
from model.layouts import ARGS, CONFIG, LAYOUTS, TRAINING_ONLY, WRAPPERS
from model.weights import POOLINGS, sizes_of, tensor_shapes

NAMES = sorted({name for sizes in SMALL.values() for name in tensor_shapes(sizes)})
WIDE = "s2_backbone.embedding.2.bias"


def test_every_family_has_its_layout_and_no_other():
    assert tuple(LAYOUTS) == FAMILIES == tuple(HEADS)


def test_only_the_sources_share_a_form():
    forms = {}
    for family, layout in LAYOUTS.items():
        forms.setdefault((layout.form.pooling, layout.form.reducer), []).append(family)
    assert [families for families in forms.values() if len(families) > 1] == [["v1.1-mpc", "v1.1-aws"]]
    assert {layout.form.pooling for layout in LAYOUTS.values()} == set(POOLINGS)


@pytest.mark.parametrize("case", SMALL)
def test_the_layout_is_the_one_that_the_small_encoders_have(case):
    sizes, layout = SMALL[case], LAYOUTS[family_of_case(case)]
    form = layouts.form_of(tensors_of(sizes))
    assert dataclasses.replace(form, qk_norm=layout.form.qk_norm) == layout.form
    assert (form.qk_norm, layout.output_norm) == (sizes.qk_norm, sizes.output_norm)


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.sampled_from(sorted(WRAPPERS)), st.integers(0, 9)), max_size=6),
    st.booleans(),
)
def test_wrappers_come_off_wherever_they_stand(name, wrappers, with_layers):
    parts = name.split(".")
    if with_layers and "transformer_encoder" in parts:
        parts.insert(parts.index("transformer_encoder") + 1, "layers")
    for wrapper, at in wrappers:
        # Between `transformer_encoder` and `layers` stands nothing in any published file, but it may.
        parts.insert(min(at, len(parts) - 1), wrapper)
    assert layouts.plain_name(".".join(parts)) == name


def test_what_only_sounds_like_a_wrapper_stays():
    assert layouts.plain_name("submodule.x_orig_mod.s2_backbone") == "submodule.x_orig_mod.s2_backbone"


@pytest.mark.parametrize("part", sorted(TRAINING_ONLY))
def test_parts_of_training_are_known_by_their_first_name_alone(part):
    assert layouts.is_training_only(layouts.plain_name(f"_orig_mod.{part}.net.0.weight"))
    assert not layouts.is_training_only(f"s2_backbone.{part}.weight")
    assert not layouts.is_training_only(f"{part}2.weight")


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_packed_projections_come_apart_as_queries_keys_values(kind):
    packed = np.arange(24, dtype=np.float32).reshape((12, 2) if kind == "weight" else (24,))
    got = layouts.unpacked(f"s2_backbone.transformer_encoder.3.self_attn.in_proj_{kind}", packed)
    assert list(got) == [f"s2_backbone.transformer_encoder.3.{p}_proj.{kind}" for p in "qkv"]
    np.testing.assert_array_equal(np.concatenate(list(got.values())), packed)


@pytest.mark.parametrize("shape", [(), (8, 2)])
def test_a_packed_projection_that_is_not_three_equal_parts_is_refused(shape):
    with pytest.raises(BadInput, match=r"in_proj_weight is \(.*three equal parts"):
        layouts.unpacked("s2_backbone.transformer_encoder.0.self_attn.in_proj_weight", np.zeros(shape, np.float32))


@pytest.mark.parametrize("case", SMALL)
def test_a_family_is_known_from_names_and_settings_together(case):
    family, tensors = family_of_case(case), tensors_of(SMALL[case])
    own = LAYOUTS[family].settings
    alike = [f for f in FAMILIES if f[:4] == family[:4]] if family.startswith("v1.1") else [family]
    assert layouts.fitting(tensors, own, {}) == layouts.fitting(tensors, None, {}) == alike
    assert layouts.fitting(tensors, {CONFIG: ARGS, ARGS: CONFIG}[own], {}) == []
    if len(alike) > 1:
        assert layouts.fitting(tensors, own, {"data_source": family[5:]}) == [family]
    assert layouts.fitting({**tensors, "more": np.ones(1, np.float32)}, own, {}) == []


@given(st.sampled_from(sorted(SMALL)), st.data())
def test_an_encoder_with_a_tensor_less_fits_no_family(case, data):
    tensors = tensors_of(SMALL[case])
    gone = data.draw(st.sampled_from(sorted(tensors)))
    assert layouts.fitting({n: t for n, t in tensors.items() if n != gone}, None, {}) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SMALL)
def test_an_encoder_of_another_form_is_refused_with_both_sides_and_what_it_looks_like(case, family):
    own, tensors = family_of_case(case), tensors_of(SMALL[case])
    kind = LAYOUTS[own].settings
    if LAYOUTS[own].form == LAYOUTS[family].form:
        layouts.check_form(tensors, family, kind, {})
        return
    with pytest.raises(BadInput, match=rf"the file has .*, family {family} has .*; it looks like .*{own}") as caught:
        layouts.check_form(tensors, family, kind, {})
    # Of pooling and reducer it names those that differ, and no other.
    file, wanted = LAYOUTS[own].form, LAYOUTS[family].form
    assert ("tokens weighed by" in str(caught.value)) == (file.pooling != wanted.pooling)
    assert ("a reducer of" in str(caught.value)) == (file.reducer != wanted.reducer)


def test_norms_of_queries_and_keys_belong_to_v2_alone():
    tensors = tensors_of(dataclasses.replace(SMALL["v1.1-mpc"], qk_norm=True))
    with pytest.raises(BadInput, match=r"has QK-norm, family v1\.1-mpc has no QK-norm; it fits no family"):
        layouts.check_form(tensors, "v1.1-mpc", CONFIG, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 20}, "width 24, 2 layers and feed-forward 20, the S1 backbone has width 20"),
        ({"layers": 3}, "2 layers and feed-forward 20, the S1 backbone has width 24, 3 layers"),
        ({"feed_forward": 8}, "the S1 backbone has width 24, 2 layers and feed-forward 8"),
    ],
)
def test_backbones_of_unequal_sizes_are_refused_in_words(change, words):
    sizes = SMALL["v2"]
    other = tensors_of(dataclasses.replace(sizes, **{**change, "heads": 1}))
    mixed = {n: t for n, t in tensors_of(sizes).items() if not n.startswith("s1")}
    mixed |= {n: t for n, t in other.items() if n.startswith("s1")}
    with pytest.raises(BadInput, match=f"{words}.*both backbones .* have the same sizes"):
        layouts.check_form(mixed, "v2", ARGS, {})


@pytest.mark.parametrize(
    ("family", "settings", "given_heads", "expected"),
    [
        ("v1.0-early", {}, None, (8, "family")),
        ("v1.0-qat", {}, None, (4, "family")),
        ("v1.1-mpc", {}, None, (4, "family")),
        ("v1.1-aws", {"latent_dim": 6}, None, (4, "family")),
        ("v2", {}, None, (4, "family")),
        ("v2", {}, 3, (3, "given")),
        ("v1.0-early", {}, 8, (8, "given")),
        ("v2", {"nhead": 6}, None, (6, "file")),
        ("v2", {"nhead": 6}, 6, (6, "file")),
        ("v1.1-mpc", {"s2_num_heads": 2, "s1_num_heads": 2}, None, (2, "file")),
        ("v1.1-mpc", {"s1_num_heads": 2}, 2, (2, "file")),
        ("v1.1-mpc", {"nhead": 2}, None, (4, "family")),
    ],
)
def test_heads_come_from_the_file_then_from_the_user_then_from_the_family(family, settings, given_heads, expected):
    assert layouts.heads_of(family, settings, {WIDE: np.zeros(24)}, given_heads) == expected


def test_norms_of_queries_show_the_heads_where_settings_do_not():
    tensors = tensors_of(SMALL["v2 with QK-norm"])
    assert layouts.heads_of("v2", {}, tensors, None) == (3, "file")
    with pytest.raises(BadInput, match="--heads 4, but the file says q_norm of 8 in a width of 24, so heads = 3"):
        layouts.heads_of("v2", {}, tensors, 4)


@pytest.mark.parametrize(
    ("family", "settings", "given_heads", "message"),
    [
        ("v2", {"nhead": 6}, 4, r"--heads 4, but the file says args.nhead = 6: leave --heads out"),
        ("v2", {"nhead": True}, None, r"args.nhead is True: a positive number"),
        ("v2", {"nhead": 0}, None, r"args.nhead is 0: a positive number"),
        ("v1.0-qat", {"s2_num_heads": "4"}, None, r"config.s2_num_heads is '4': a positive number"),
        ("v1.1-mpc", {"s2_num_heads": 4, "s1_num_heads": 2}, None, r"s2_num_heads = 4 and config.s1_num_heads = 2"),
        ("v2", {}, 0, r"--heads 0: a positive number"),
        ("v2", {}, 5, r"width 24 with 5 heads \(given by --heads\): the width must be a multiple"),
        ("v2", {"nhead": 5}, None, r"width 24 with 5 heads \(the file says so\)"),
    ],
)
def test_heads_that_cannot_be_are_refused(family, settings, given_heads, message):
    with pytest.raises(BadInput, match=message):
        layouts.heads_of(family, settings, {WIDE: np.zeros(24)}, given_heads)


def test_assumed_heads_that_do_not_divide_the_width_ask_for_heads():
    with pytest.raises(BadInput, match=r"width 30 with 4 heads \(assumed for family v1.0-qat, .* give --heads\)"):
        layouts.heads_of("v1.0-qat", {}, {WIDE: np.zeros(30)}, None)


def complete_settings(case):
    """Every setting that the family knows, as a file of this encoder would have it."""
    sizes, layout = SMALL[case], LAYOUTS[family_of_case(case)]
    shown = {k: sizes.width // 4 if f == "latent" else getattr(sizes, f) for k, f in layout.sizes.items()}
    return {**shown, **layout.fixed}


@pytest.mark.parametrize("case", SMALL)
def test_every_setting_that_a_family_knows_is_held_against_tensors_or_family(case):
    family, sizes, settings = family_of_case(case), SMALL[case], complete_settings(case)
    assert sizes_of(tensors_of(sizes), sizes.heads, sizes.output_norm) == sizes
    layouts.check_settings(family, settings, sizes)
    for key in settings:
        for other in (7.5, None, "elsewhere", [8, 16]):
            with pytest.raises(BadInput, match=rf"says {key} = .*, (the tensors|family {re.escape(family)})"):
                layouts.check_settings(family, {**settings, key: other}, sizes)


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("v1.0-early", "latent_dim", 7, "config says latent_dim = 7, the tensors 6"),
        ("v1.0-qat", "data_source", "aws", "data_source = 'aws', family v1.0-qat has 'mpc'"),
        ("v1.1-mpc", "representation_dim", 128, "representation_dim = 128, the tensors 12"),
        ("v1.1-mpc", "s1_num_layers", 4, "s1_num_layers = 4, the tensors 2"),
        ("v1.1-mpc", "s2_dim_feedforward", 2048, "s2_dim_feedforward = 2048, the tensors 28"),
        ("v1.1-mpc", "fusion_method", "sum", "fusion_method = 'sum', family v1.1-mpc has 'concat'"),
        ("v1.1-aws", "data_source", "mpc", "data_source = 'mpc', family v1.1-aws has 'aws'"),
        ("v1.1-aws", "split_s1_modalities", True, "split_s1_modalities = True, family v1.1-aws has False"),
        ("v1.1-aws", "use_s1", False, "use_s1 = False, family v1.1-aws has True"),
        ("v1.1-aws", "use_s2", False, "use_s2 = False, family v1.1-aws has True"),
        (
            "v1.1-mpc",
            "num_obs_checkpoints",
            [8, 16, 32, 64, 128],
            r"\[8, 16, 32, 64, 128\], family.* \[8, 16, 24, \.\.",
        ),
        ("v2", "enable_qk_norm", True, "enable_qk_norm = True, the tensors False"),
        ("v2", "max_seq_len", 128, "max_seq_len = 128, family v2 has 256"),
    ],
)
def test_settings_that_contradict_are_refused_with_both_sides(case, key, value, message):
    with pytest.raises(BadInput, match=message):
        layouts.check_settings(family_of_case(case), {key: value}, SMALL[case])


def test_bins_are_a_set_as_the_reference_reads_them():
    bins = list(profile_for("v1.1-mpc", 12).sampler_bins)
    layouts.check_settings("v1.1-mpc", {"num_obs_checkpoints": [*bins[::-1], 8]}, SMALL["v1.1-mpc"])


def test_a_width_that_is_not_four_latents_is_named_as_it_is():
    with pytest.raises(BadInput, match=r"latent_dim = 5, the tensors 5\.5"):
        layouts.check_settings("v2", {"latent_dim": 5}, dataclasses.replace(SMALL["v2"], width=22, heads=1))


def test_the_stored_length_is_read_for_v1_1_alone():
    assert layouts.stored_dims_of("v1.1-aws", {"save_embedding_dim": 9}, 12) == 9
    assert layouts.stored_dims_of("v1.1-aws", {}, 12) is None
    assert layouts.stored_dims_of("v2", {"save_embedding_dim": 9}, 12) is None
    for wrong in (0, 13, "9", True, None):
        with pytest.raises(BadInput, match=rf"save_embedding_dim = {wrong!r}, the tensors give 12 values"):
            layouts.stored_dims_of("v1.1-mpc", {"save_embedding_dim": wrong}, 12)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("8,16,32", (8, 16, 32)), ([32, 8], (8, 32)), (" 16 , 8", (8, 16)), ("", ()), (None, ()), ("32", (32,))],
)
def test_prefixes_are_read_from_text_or_numbers(said, expected):
    assert layouts.prefixes_of("v2", {"matryoshka_dims": said}, 32) == expected
    assert layouts.prefixes_of("v2", {}, 32) == layouts.prefixes_of("v1.1-mpc", {"matryoshka_dims": "8"}, 32) == ()


@pytest.mark.parametrize("said", ["8,33", "0,8", "8,,16", "all", [8.5], ["8"], 16, [None], []])
def test_prefixes_that_cannot_be_are_refused(said):
    with pytest.raises(BadInput, match=r"matryoshka_dims = .*1\.\.32"):
        layouts.prefixes_of("v2", {"matryoshka_dims": said}, 32)


@pytest.mark.parametrize("case", SMALL)
def test_a_file_that_does_not_name_its_family_is_told_what_to_say(case):
    family, tensors = family_of_case(case), tensors_of(SMALL[case])
    message = str(layouts.unnamed(tensors, LAYOUTS[family].settings, complete_settings(case)))
    assert message.endswith(f"it looks like {family}: use `tessera-beam model import` with --family {family}")


def test_both_sources_are_offered_where_nothing_tells_them_apart():
    message = str(layouts.unnamed(tensors_of(SMALL["v1.1-mpc"]), CONFIG, {}))
    assert message.endswith("use `tessera-beam model import` with --family v1.1-mpc or --family v1.1-aws")


def test_a_file_that_fits_nothing_is_told_what_it_has():
    tensors = {n: t for n, t in tensors_of(SMALL["v1.0-early"]).items() if not n.startswith("dim_reducer")}
    message = str(layouts.unnamed(tensors, CONFIG, {}))
    assert message.endswith(
        "it fits no family of this release: it has tokens weighed by an nn.GRU, a reducer of nothing, no QK-norm"
    )


def test_two_grus_at_once_are_refused():
    tensors = tensors_of(SMALL["v1.0-early"]) | tensors_of(SMALL["v1.0-qat"])
    with pytest.raises(BadInput, match=r"both an nn\.GRU and TESSERA's own GRU"):
        layouts.form_of(tensors)
