"""Checkpoints as the projects that trained them write them, with small weights: for every test of reading them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from small_encoders import SMALL, family_of_case, tensors_of

from model.checkpoints import Checkpoint, args_of, load_checkpoint, save_v2
from model.weights import EncoderSizes
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


def as_safetensors(folder, case, name="c.safetensors", more=None):
    payload = payload_of(case)
    metadata = {key: json.dumps(payload[key]) for key in ("args", "config") if key in payload}
    state = {name: t.contiguous() for name, t in state_of(payload).items()}
    save_file(state, folder / name, metadata={"format": "pt", **metadata, **(more or {})})
    return folder / name
