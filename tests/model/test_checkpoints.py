import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_encoders import SMALL, family_of_case, tensors_of

from model.checkpoints import Checkpoint, Record, args_of, load_checkpoint, save_v2
from model.errors import BadInput
from model.families import FAMILIES, profile_for
from model.layouts import LAYOUTS, WRAPPERS
from model.weights import EncoderSizes, weights_sha256
from pipeline.demo.untrained import random_weights

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")
PLAIN = EncoderSizes(width=16, layers=2, heads=2, feed_forward=24, hidden=20, native_dims=12, qk_norm=False)
QK = EncoderSizes(width=24, layers=1, heads=3, feed_forward=8, hidden=12, native_dims=10, qk_norm=True)
BINS = list(range(8, 257, 8))


def load_v2(path):
    return load_checkpoint(path, "v2")


one_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def published(tensors, sizes):
    """The names of published files: q, k, v of a layer in one tensor, but where they have norms."""
    if sizes.qk_norm:
        return {name: torch.from_numpy(t) for name, t in tensors.items()}
    state = {}
    for name, tensor in tensors.items():
        name = re.sub(r"(transformer_encoder)\.(\d+)", r"\1.layers.\2", name).replace(
            ".out_proj", ".self_attn.out_proj"
        )
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            old = next(n for n, t in tensors.items() if t is tensor)
            tensor = np.concatenate([tensors[old.replace("q_proj", f"{p}_proj")] for p in "qkv"])
            name = name.replace(".q_proj.", ".self_attn.in_proj_")
        state[name] = torch.from_numpy(tensor)
    return state


def payload_of(case, seed=1):
    """A whole file as the project that trained the family writes it."""
    family, sizes = family_of_case(case), SMALL[case]
    state = published(tensors_of(sizes, seed), sizes)
    if family == "v2":
        return {"model": state, "args": {**args_of(sizes), "max_seq_len": 256, "matryoshka_dims": "4,8,16"}}
    if family == "v1.0-early":
        return {"model_state_dict": state, "config": {"latent_dim": sizes.width // 4}}
    state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    state["_orig_mod.projector.net.0.weight"] = torch.full((2, 2), torch.nan)
    state["_orig_mod.segmented_matryoshka_projector.heads.0"] = torch.ones(2, dtype=torch.int64)
    config = {"latent_dim": sizes.width // 4, "qat_representation_start_step": float("inf")}
    if family.startswith("v1.1"):
        config |= {
            "representation_dim": sizes.native_dims,
            "save_embedding_dim": sizes.native_dims - 3,
            "fusion_method": "concat",
            "split_s1_modalities": False,
            "use_s2": True,
            "use_s1": True,
            "num_obs_checkpoints": BINS,
            "data_source": family.removeprefix("v1.1-"),
        }
        for sensor in ("s2", "s1"):
            config[f"{sensor}_num_heads"] = sizes.heads
            config[f"{sensor}_num_layers"] = sizes.layers
            config[f"{sensor}_dim_feedforward"] = sizes.feed_forward
    return {"model_state": state, "config": config, "epoch": 3, "step": 9, "optimizer_state_dict": {"state": {}}}


def written(folder, payload, **options):
    path = folder / "c.pt"
    torch.save(payload, path, **options)
    return path


def state_of(payload):
    return next(payload[key] for key in ("model", "model_state", "model_state_dict") if key in payload)


def settings_of(payload):
    return payload["args"] if "args" in payload else payload["config"]


def heads_given(case):
    """What must be said of heads where the small encoder has another number than its family's real one."""
    said = family_of_case(case).startswith("v1.0")
    return SMALL[case].heads if said else None


def loaded_from(path, case):
    return load_checkpoint(path, family_of_case(case), heads_given(case))


def saved(tmp_path, sizes=PLAIN, record=None):
    path = tmp_path / "c.pt"
    save_v2(path, Checkpoint(random_weights(sizes, 5), sizes, args_of(sizes), record=record))
    return path


def changed(path, change):
    payload = torch.load(path, weights_only=True)
    change(payload)
    torch.save(payload, path)
    return path


def same_weights(loaded, case, seed=1):
    expected = tensors_of(SMALL[case], seed)
    assert loaded.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor, err_msg=name)
        assert loaded.tensors[name].dtype == np.float32


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


# Names, order, types


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


# safetensors


def as_safetensors(folder, case, name="c.safetensors", more=None):
    payload = payload_of(case)
    metadata = {key: json.dumps(payload[key]) for key in ("args", "config") if key in payload}
    state = {name: t.contiguous() for name, t in state_of(payload).items()}
    save_file(state, folder / name, metadata={"format": "pt", **metadata, **(more or {})})
    return folder / name


@pytest.mark.parametrize("name", ["c.safetensors", "c.pt"])
@pytest.mark.parametrize("case", SMALL)
def test_safetensors_give_what_the_same_file_of_torch_gives(tmp_path, case, name):
    torch_s = loaded_from(written(tmp_path, payload_of(case)), case)
    other = loaded_from(as_safetensors(tmp_path, case, name), case)
    same_weights(other, case)
    for field in ("sizes", "args", "family", "heads_from", "stored_dims", "prefixes", "ignored"):
        assert getattr(other, field) == getattr(torch_s, field), field


def test_safetensors_without_settings_are_bare_tensors(tmp_path):
    state = {name: t.to(torch.bfloat16) for name, t in state_of(payload_of("v2")).items()}
    save_file(state, tmp_path / "c.safetensors")
    loaded = load_checkpoint(tmp_path / "c.safetensors", "v2", 3)
    assert (loaded.sizes, loaded.heads_from, loaded.args) == (SMALL["v2"], "given", {})
    with pytest.raises(BadInput, match="it looks like v2: use `tessera-beam model import` with --family v2"):
        load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"args": "{"}, "args in its metadata is not JSON"),
        ({"args": "[" * 100_000}, "args in its metadata is not JSON"),
        ({"args": "[4]"}, "args in its metadata is list, not an object"),
        ({"config": "{}"}, r"both config \(v1.x\) and args \(v2\)"),
        ({"tessera_beam": '{"format": "x"}'}, "its tessera_beam record is not a tessera-beam/checkpoint"),
    ],
)
def test_metadata_that_cannot_be_meant_are_refused(tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        load_checkpoint(as_safetensors(tmp_path, "v2", more=more))


def test_without_safetensors_installed_it_says_how_to_get_it(tmp_path, monkeypatch):
    path = as_safetensors(tmp_path, "v2")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(BadInput, match=r"needs safetensors, .* pip install 'tessera-beam\[train\]'"):
        load_checkpoint(path)


# Files


# torch says of pickles that it does not write itself that it may not understand them.
foreign_pickles = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@foreign_pickles
@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda o, path: torch.save(o, path, _use_new_zipfile_serialization=False),
        lambda o, path: Path(path).write_bytes(pickle.dumps(o, protocol=2)),
        lambda o, path: Path(path).write_bytes(pickle.dumps(o)),
    ],
)
@pytest.mark.parametrize("place", ["model", "args", "optimizer", "alone"])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, write, place):
    bomb = Bomb(str(tmp_path / "ran"))
    payload = bomb if place == "alone" else {**payload_of("v2"), place: {"state": bomb}}
    write(payload, tmp_path / "bomb.pt")
    # Newer protocols than torch writes end at their first unknown instruction, before anything is named.
    refusal = r"without running its code: it names \S+, and nothing in a checkpoint is run|Unsupported operand 149$"
    with pytest.raises(BadInput, match=refusal):
        load_checkpoint(tmp_path / "bomb.pt", "v2")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileExistsError):  # the bomb does go off where files are trusted
        for _ in range(2):
            pickle.loads(pickle.dumps(bomb))


def test_the_refusal_of_code_names_the_class_and_gives_no_advice_to_trust_it(tmp_path):
    path = written(tmp_path, {**payload_of("v1.0-qat"), "best": np.float64(0.5)})
    with pytest.raises(BadInput, match=r"it names numpy\S*scalar.* Save it again with plain numbers") as caught:
        load_checkpoint(path, "v1.0-qat")
    assert "weights_only" not in str(caught.value)


@foreign_pickles
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 cut", b"a text file\n", b"\x80\x02}q\x00.", b"\x80\x05\x95", b"\x89PNG\r\n\x1a\n", bytes(4096)],
)
@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors"])
def test_other_files_are_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{re.escape(name)}: (it is damaged|this is neither|the file is empty)"):
        load_checkpoint(path)


@foreign_pickles
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x0f" + bytes(7) + b"{"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_worse(tmp_path, start, rest):
    path = tmp_path / "x.pt"
    path.write_bytes(start + rest)
    with pytest.raises(BadInput, match=r"x\.pt"):
        load_checkpoint(path, "v2")


FORMATS = {
    "zip": lambda folder: written(folder, payload_of("v2")),
    "before 2020": lambda folder: written(folder, payload_of("v2"), _use_new_zipfile_serialization=False),
    "safetensors": lambda folder: as_safetensors(folder, "v2"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(tmp_path, form):
    path = FORMATS[form](tmp_path)
    content = path.read_bytes()
    same_weights(load_checkpoint(path, "v2"), "v2")
    for end in {0, 1, 8, 9, *range(10, len(content), len(content) // 60), len(content) - 1, len(content) - 22}:
        path.write_bytes(content[:end])
        with pytest.raises(BadInput, match=r"c\.\w+: (it is damaged|this is neither|the file is empty)"):
            load_checkpoint(path, "v2")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_stands_where_nothing_is_read(tmp_path, where, change):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    expected = load_v2(path)
    content[int(where * len(content))] ^= change
    path.write_bytes(content)
    try:
        loaded = load_v2(path)
    except BadInput:
        return
    assert weights_sha256(loaded.tensors) == weights_sha256(expected.tensors)
    assert (loaded.args, loaded.sizes) == (expected.args, expected.sizes)


def test_a_damaged_weight_is_refused_though_it_is_a_number(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    at = content.index(random_weights(PLAIN, 5)["s2_backbone.embedding.0.weight"].tobytes())
    content[at] ^= 1  # the last bit of a mantissa
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"it is damaged .*CRC-32.*{info.filename}"):
        load_v2(path)


def test_an_archive_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, payload_of("v2"))
    finally:
        torch.serialization.set_crc32_options(True)
    same_weights(load_v2(path), "v2")


def test_a_compressed_archive_is_refused(tmp_path):
    """Mapped into memory, compressed bytes would be taken for weights."""
    path = written(tmp_path, payload_of("v2"))
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(BadInput, match=r"data\.pkl in it is compressed"):
        load_v2(tmp_path / "z.pt")


def test_a_torchscript_program_is_refused(tmp_path):
    path = written(tmp_path, payload_of("v2"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c/constants.pkl", b"")
    with pytest.raises(BadInput, match="TorchScript program: a checkpoint of weights is needed"):
        load_v2(path)


@pytest.mark.parametrize("payload", [[1], "text", 3, None, torch.ones(3)])
def test_a_file_of_something_else_is_refused(tmp_path, payload):
    with pytest.raises(BadInput, match=f"it holds {type(payload).__name__}; a checkpoint holds a dictionary"):
        load_v2(written(tmp_path, payload))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"no checkpoint at .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(BadInput, match="is a folder: give the checkpoint in it"):
        load_checkpoint(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"c\.pt cannot be read: Permission denied"):
        load_checkpoint(path)


def test_the_digest_is_the_files(tmp_path):
    import hashlib

    path = saved(tmp_path)
    loaded = load_v2(path)
    assert (loaded.file_name, loaded.file_sha256) == ("c.pt", hashlib.sha256(path.read_bytes()).hexdigest())


PEAK = """
import re, sys
from model.checkpoints import load_checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
load_checkpoint(sys.argv[1], "v2")  # what the first use of torch costs is no share of the large file's
load_checkpoint(sys.argv[2], "v2")
before = peak()
load_checkpoint(sys.argv[3], "v2")
load_checkpoint(sys.argv[4], "v2")
print((peak() - before) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
def test_optimiser_and_projector_are_not_taken_into_memory(tmp_path):
    small = written(tmp_path, payload_of("v2")), as_safetensors(tmp_path, "v2")
    payload, rest = payload_of("v2"), torch.ones(64 << 20, dtype=torch.float16)  # 128 MiB
    payload["model"]["projector.0.weight"] = rest
    large = tmp_path / "large.pt", tmp_path / "large.safetensors"
    torch.save(payload | {"optimizer": {"state": {0: {"exp_avg": rest + 1}}}}, large[0])
    save_file(payload["model"], large[1], metadata={"args": json.dumps(payload["args"])})
    assert min(path.stat().st_size for path in large) > 128 << 20
    run = subprocess.run([sys.executable, "-c", PEAK, *small, *large], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 32  # MiB


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
