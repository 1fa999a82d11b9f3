import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published_checkpoints import (
    BINS,
    QK,
    changed,
    load_v2,
    loaded_from,
    one_folder,
    payload_of,
    same_weights,
    saved,
    state_of,
    written,
)
from small_encoders import SMALL, tensors_of

from model.checkpoints import load_checkpoint
from model.errors import BadInput
from model.layouts import WRAPPERS
from model.weights import weights_sha256


@one_folder
@given(st.sampled_from(sorted(SMALL)), st.randoms(use_true_random=False))
def test_order_of_keys_and_wrappers_in_them_do_not_matter(tmp_path, case, random):
    payload = payload_of(case)
    state = state_of(payload)
    names = list(state)
    random.shuffle(names)
    wrapped = {}
    for name in names:
        parts = name.split(".")
        for _ in range(random.randrange(4)):
            parts.insert(random.randrange(len(parts)), random.choice(sorted(WRAPPERS)))
        wrapped[".".join(parts)] = state[name]
    kept = {key: wrapped if value is state else value for key, value in payload.items()}
    loaded = loaded_from(written(tmp_path, kept), case)
    same_weights(loaded, case)
    assert loaded.ignored == (0 if loaded.family in ("v2", "v1.0-early") else 2)


def test_two_wrappings_of_one_tensor_are_refused(tmp_path):
    payload = payload_of("v2")
    payload["model"]["module.dim_reducer.0.bias"] = payload["model"]["dim_reducer.0.bias"] + 1
    with pytest.raises(BadInput, match=r"dim_reducer.0.bias stands twice .* as module\.dim_reducer\.0\.bias"):
        load_v2(written(tmp_path, payload))


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_widths_become_float32_as_pytorch_makes_them(tmp_path, case, dtype):
    payload = payload_of(case)
    state = state_of(payload)
    for name, tensor in state.items():
        state[name] = torch.nn.Parameter(tensor.to(dtype)) if tensor.is_floating_point() else tensor
    loaded = loaded_from(written(tmp_path, payload), case)
    for name, tensor in tensors_of(SMALL[case]).items():
        expected = torch.from_numpy(tensor).to(dtype)
        # Half precision is a subset of float32: back again nothing is lost.
        assert torch.equal(torch.from_numpy(loaded.tensors[name]).to(dtype), expected), name


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(28, dtype=torch.int64), "dim_reducer.0.bias is torch.int64, not a tensor of real numbers"),
        (torch.ones(28, dtype=torch.complex64), "is torch.complex64"),
        (torch.ones(28).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
        ([1.0] * 28, "is list"),
        (None, "is NoneType"),
        (torch.ones(28).to_sparse(), r"layout torch.sparse_coo on cpu: plain numbers"),
        (torch.empty(28, device="meta"), r"layout torch.strided on meta: plain numbers"),
        (torch.ones(1).expand(10**7, 10**7), r"is \(10000000, 10000000\), more than a file of [\d,]+ bytes can hold"),
        (torch.full((28,), 1e300, dtype=torch.float64), "dim_reducer.0.bias holds NaN or infinity"),
        (torch.full((28,), torch.inf, dtype=torch.float16), "dim_reducer.0.bias holds NaN or infinity"),
        (torch.tensor(1.0), "unexpected dim_reducer.1.weight"),  # a hidden width of 0 is a reducer of one layer
        (torch.ones(28, 1), r"dim_reducer.0.bias is \(28, 1\), but .* makes it \(28,\)"),
        (torch.ones(29), r"tensor dim_reducer.0.weight is \(28, 48\), but .* makes it \(29, 48\)"),
    ],
)
def test_what_is_no_plain_tensor_of_numbers_is_refused(tmp_path, tensor, message):
    payload = payload_of("v2")
    payload["model"]["dim_reducer.0.bias"] = tensor
    with pytest.raises(BadInput, match=message):
        load_v2(written(tmp_path, payload))


def test_a_number_where_a_row_of_one_must_stand_is_refused(tmp_path):
    payload = payload_of("v2")
    payload["model"]["s1_backbone.attn_pool.query.bias"] = torch.tensor(0.5)
    with pytest.raises(BadInput, match=r"query.bias is \(\), but .* makes it \(1,\)"):
        load_v2(written(tmp_path, payload))


def test_weights_do_not_change_with_the_file_that_they_came_from(tmp_path):
    path = written(tmp_path, payload_of("v2"))
    before = load_v2(path)
    digest = weights_sha256(before.tensors)
    content = path.read_bytes()
    with path.open("r+b") as file:  # in place, as a copy over it would do
        file.write(bytes(len(content)))
    assert weights_sha256(before.tensors) == digest


def test_a_tensor_that_was_saved_turned_comes_back_as_it_was(tmp_path):
    payload = payload_of("v2")
    name = "dim_reducer.0.weight"
    payload["model"][name] = payload["model"][name].T.contiguous().T
    loaded = load_v2(written(tmp_path, payload))
    same_weights(loaded, "v2")
    assert loaded.tensors[name].flags.c_contiguous


# What must be complete


@one_folder
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_trap_t5_no_tensor_may_be_absent(tmp_path, case, data):
    """`strict=False` would load all of these, and give plausible numbers from what was left at random."""
    payload = payload_of(case)
    state = state_of(payload)
    needed = sorted(name for name in state if "projector" not in name)
    gone = data.draw(st.sampled_from(needed))
    del state[gone]
    with pytest.raises(BadInput) as caught:
        loaded_from(written(tmp_path, payload), case)
    named = gone.removeprefix("_orig_mod.").replace(".layers.", ".").replace("self_attn.", "")
    assert f"without {named.replace('in_proj_', 'q_proj.')}" in str(caught.value)


@pytest.mark.parametrize("family", ["v1.0-qat", "v1.1-mpc", "v1.1-aws"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (r"temporal_context", r"the file has tokens weighed by attention alone.*, family v1.* by TESSERA's own GRU"),
        (r"s2_backbone.*temporal_context", r"the file is without s2_backbone.attn_pool.temporal_context.gru_cell.b_r"),
        (r"s1_backbone.*temporal_context", r"the file is without s1_backbone.attn_pool.temporal_context.gru_cell.b_r"),
        (r"s1_backbone.*W_hh", r"the file is without s1_backbone.attn_pool.temporal_context.gru_cell.W_hh.weight"),
        (r"layer_norm", r"the file is without s2_backbone.attn_pool.layer_norm.weight"),
        (r"dim_reducer", r"the file has a reducer of nothing, family v1.* has a reducer of dim_reducer.0"),
        (r"s1_backbone", r"the file is without s1_backbone.embedding.0.weight"),
    ],
)
def test_trap_t5_an_absent_gru_or_reducer_is_refused(tmp_path, family, part, message):
    payload = payload_of(family)
    for name in list(state_of(payload)):
        if re.search(part, name):
            del state_of(payload)[name]
    with pytest.raises(BadInput, match=message):
        loaded_from(written(tmp_path, payload), family)


def test_trap_t5_half_a_reducer_is_refused(tmp_path):
    payload = payload_of("v1.1-mpc")
    for kind in ("weight", "bias"):
        del payload["model_state"][f"_orig_mod.dim_reducer.4.{kind}"]
    with pytest.raises(
        BadInput, match=r"dim_reducer.0, dim_reducer.1, family .* dim_reducer.1, dim_reducer.4; it fits no"
    ):
        load_checkpoint(written(tmp_path, payload), "v1.1-mpc")


@pytest.mark.parametrize("family", ["v1.0-qat", "v1.1-mpc", "v1.1-aws"])
def test_trap_t4_an_nn_gru_in_place_of_the_own_gru_is_refused(tmp_path, family):
    """The fused form of the same matrices: a public archive was computed with it, and it looks right."""
    payload = payload_of(family)
    state = state_of(payload)
    for sensor in ("s2", "s1"):
        inside = f"_orig_mod.{sensor}_backbone.attn_pool.temporal_context."
        cell = {name.removeprefix(f"{inside}gru_cell."): state.pop(name) for name in list(state) if inside in name}
        state[f"{inside}weight_ih_l0"] = torch.cat([cell[f"W_i{gate}.weight"] for gate in "rzh"])
        state[f"{inside}weight_hh_l0"] = torch.cat([cell[f"W_h{gate}.weight"] for gate in "rzh"])
        state[f"{inside}bias_ih_l0"] = torch.cat([cell[f"b_{gate}"] for gate in "rzh"])
        state[f"{inside}bias_hh_l0"] = torch.zeros_like(state[f"{inside}bias_ih_l0"])
    path = written(tmp_path, payload)
    with pytest.raises(
        BadInput, match=r"weighed by an nn\.GRU, family v1.* weighed by TESSERA's own GRU \(not an nn\.GRU"
    ):
        load_checkpoint(path, family, SMALL[family].heads)
    if family == "v1.0-qat":  # nor is it the family that does have an nn.GRU: that one has no norm before its query
        with pytest.raises(
            BadInput, match=r"unexpected s2_backbone\.attn_pool\.layer_norm\.weight.*family v1\.0-early"
        ):
            load_checkpoint(path, "v1.0-early", SMALL[family].heads)


NORM = "s1_backbone.transformer_encoder.layers.1.norm2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["model"].pop(NORM), r"without s1_backbone.transformer_encoder.1.norm2.bias"),
        (lambda p: p["model"].update({"head.0.weight": torch.ones(2)}), r"unexpected head.0.weight"),
        (lambda p: p["model"].update({NORM: torch.ones(9)}), r"norm2.bias is \(9,\).*makes it \(16,\)"),
        (lambda p: p["model"][NORM].fill_(float("nan")), "norm2.bias holds NaN"),
        (
            lambda p: p["model"].pop("dim_reducer.4.bias"),
            r"without dim_reducer.4.bias: every such encoder of family v2",
        ),
        (lambda p: p["args"].update(dim_feedforward=32), "dim_feedforward = 32, the tensors 24"),
        (lambda p: p["args"].update(num_layers=3), "num_layers = 3, the tensors 2"),
        (lambda p: p["args"].update(latent_dim=16), "latent_dim = 16, the tensors 4"),
        (lambda p: p["args"].update(latent_dim=torch.tensor(4)), r"latent_dim = 'tensor\(4\)', the tensors 4"),
        (lambda p: p["args"].update(repr_dim=128), "repr_dim = 128, the tensors 12"),
        (lambda p: p["args"].update(enable_qk_norm=True), "enable_qk_norm = True, the tensors False"),
        (lambda p: p["args"].update(matryoshka_dims="4,16"), r"matryoshka_dims = '4,16': they must be .* in 1\.\.12"),
        (lambda p: p["args"].update(nhead=5), r"width 16 with 5 heads \(the file says so\)"),
        (lambda p: p["args"].update(nhead=None), "args.nhead is None"),
        (lambda p: p.pop("args"), "holds model; a v2 student checkpoint holds args and model"),
        (lambda p: p.clear(), "holds nothing; a v2 student checkpoint holds args and model"),
        (lambda p: p.update(args=[1]), "args and model must be dictionaries, not dict and list"),
        (lambda p: p.update(model_state=p["model"], model_state_dict={}), "holds model_state and model_state_dict"),
        (lambda p: p.update(encoder_state_dict=p.pop("model"), arch={}), "this is a v2 teacher.*give a v2 student"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused_with_both_sides_named(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        load_v2(changed(saved(tmp_path), change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(config=[1]), "model_state and config must be dictionaries, not dict and list"),
        (lambda p: p.update(model_state=[1]), "model_state and config must be dictionaries, not dict and list"),
        (lambda p: p["config"].update(s1_num_heads=2), r"config.s2_num_heads = 4 and config.s1_num_heads = 2"),
        (lambda p: p["config"].update(save_embedding_dim=13), "save_embedding_dim = 13, the tensors give 12 values"),
        (lambda p: p["config"].update(fusion_method="transformer"), "'transformer', family v1.1-mpc has 'concat'"),
        (
            lambda p: p["config"].update(split_s1_modalities=True),
            "split_s1_modalities = True, family v1.1-mpc has False",
        ),
        (lambda p: p["config"].update(num_obs_checkpoints=BINS[:-1]), r"\[8, 16, 24, .. 248\] \(31 of them\), family"),
        (
            lambda p: p["model_state"].update({"s1a_backbone.embedding.0.bias": torch.ones(3)}),
            "unexpected s1a_backbone",
        ),
    ],
)
def test_a_v1_1_checkpoint_that_contradicts_itself_is_refused(tmp_path, change, message):
    path = changed(written(tmp_path, payload_of("v1.1-mpc")), change)
    with pytest.raises(BadInput, match=message):
        load_checkpoint(path, "v1.1-mpc")


@pytest.mark.parametrize("config", [None, {}])
def test_a_v1_checkpoint_without_settings_loads_with_the_familys_heads(tmp_path, config):
    path = written(tmp_path, payload_of("v1.1-mpc") | {"config": config})
    loaded = load_checkpoint(path, "v1.1-mpc")
    assert (loaded.sizes.heads, loaded.heads_from, loaded.stored_dims, loaded.args) == (4, "family", None, {})


def test_heads_that_contradict_the_qk_norms_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"q_norm.weight is \(8,\).*makes it \(12,\)"):
        load_v2(changed(saved(tmp_path, QK), lambda p: p["args"].update(nhead=2)))
