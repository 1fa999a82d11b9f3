"""Whole trainings of a tiny encoder: what they leave, how they go on, and how they end."""

import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_sets import config_for, small_set
from two_ranks import on_ranks

from model.checkpoints import load_checkpoint
from model.errors import BadInput
from model.export import export
from model.gate import gate
from model.shards import open_shards
from model.training import checkpoint, progress
from model.training.device import Device
from model.training.loop import STOPPED, Stopped, prepared, train
from model.training.run import build, profile_of, run

FAMILIES = {
    "v2": (),
    "v2 with QK-norm": ("encoder.qk-norm=true",),
    "v2 pooled by the mean": ("encoder.pooling=mean",),
    "v1.1-mpc": ("encoder.family=v1.1-mpc", "encoder.stored-dims=6"),
    "v1.0-early": ("encoder.family=v1.0-early", "encoder.hidden=0"),
}
WILD = ("optimiser.rate=1e30", "optimiser.clip=0.0", "schedule.warmup=0.0")  # soon nothing is finite
WHERE = "TESSERA_TEST_STOPPED"  # how ranks in processes of their own find the shard set and the folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("set") / "shards").folder


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A training that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    return run(config_for(shards), out), out


def told(out):
    """The lines of progress without what a clock says."""
    clocks = ("pixels_per_s", "seconds")
    return [{k: v for k, v in line.items() if k not in clocks} for line in progress.read(out)]


def same(one, other):
    """Whether two trainings have the same bits: weights, what stands on them, and the optimiser."""
    (weights, state), (theirs, their_state) = checkpoint.read(one), checkpoint.read(other)
    moments = [
        [{k: torch.as_tensor(v) for k, v in s.items()} for s in st.optimiser["state"].values()]
        for st in (state, their_state)
    ]
    return (
        all(np.array_equal(weights[n], theirs[n]) for n in theirs)
        and all(torch.equal(t, state.modules[n]) for n, t in their_state.modules.items())
        and all(torch.equal(a[k], b[k]) for a, b in zip(*moments, strict=True) for k in a)
    )


def test_a_training_tells_every_step_and_ends_with_a_checkpoint_that_says_what_it_saw(whole, shards):
    result, out = whole
    lines = told(out)
    assert [line["step"] for line in lines] == [*range(1, 9)] and result["complete"]
    for line in lines:
        rule = 5e-3
        assert line["loss"] == pytest.approx(line["on"] + rule * line["off"] + line["mix"], rel=1e-5)
        assert 1 <= line["rankme"] <= 8 and line["gradient"] > 0
    assert [line["epoch"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [line["seen"] for line in lines[:6]] == [14, 28, 42, 56, 0, 14]
    loaded = load_checkpoint(out / "last.pt")
    record = loaded.record
    assert record.name == record.profile.name == "tiny" and record.training["steps"] == 8
    assert record.training["shards"]["records"] == 70 and record.training["shards"]["origin"] == {"made": "by a test"}
    assert str(shards) not in json.dumps(record.training)
    assert load_checkpoint(out / "untrained.pt").record.training["steps"] == 0


def test_the_loss_falls(shards, tmp_path):
    run(config_for(shards, "schedule.steps=60", "run.log-every=60"), tmp_path)
    run(config_for(shards, "schedule.steps=1"), tmp_path / "one")
    assert told(tmp_path)[-1]["loss"] < 0.7 * told(tmp_path / "one")[0]["loss"]


@pytest.mark.parametrize("end", [1, 4, 7])
def test_stopped_behind_any_step_it_goes_on_to_the_same_losses_and_the_same_bits(whole, shards, tmp_path, end):
    asked = iter([False] * (end - 1) + [True])
    first = run(config_for(shards), tmp_path, stop=lambda: next(asked))
    assert (first["step"], first["complete"]) == (end, False)
    second = run(config_for(shards), tmp_path)
    assert second["complete"] and told(tmp_path) == told(whole[1])
    assert same(tmp_path / "last.pt", whole[1] / "last.pt")


def test_a_checkpoint_goes_on_whatever_free_fields_say(whole, shards, tmp_path):
    asked = iter([False, False, True])
    run(config_for(shards), tmp_path, stop=lambda: next(asked))
    moved = shards.rename(shards.with_name("moved"))
    try:
        run(config_for(moved, "run.save-every=1", "run.ahead=0", "data.check=false"), tmp_path)
    finally:
        moved.rename(shards)
    assert same(tmp_path / "last.pt", whole[1] / "last.pt")


def test_another_seed_is_another_training(whole, shards, tmp_path):
    run(config_for(shards, "run.seed=4"), tmp_path)
    assert not same(tmp_path / "last.pt", whole[1] / "last.pt")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.rate=0.02", r"optimiser.rate is 0.02, there 0.01.*--fresh"),
        ("run.seed=4", r"run.seed is 4, there 3"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_by_what_differs(whole, shards, override, said):
    with pytest.raises(BadInput, match=said):
        run(config_for(shards, override), whole[1])


def test_a_checkpoint_of_other_records_is_refused(whole, tmp_path):
    other = small_set(tmp_path / "other", count=71).folder
    with pytest.raises(BadInput, match="shard set has other records"):
        run(config_for(other), whole[1])


def test_a_damaged_checkpoint_is_refused_by_name_and_begun_anew_where_that_is_asked(whole, shards, tmp_path):
    content = bytearray((whole[1] / "last.pt").read_bytes())
    for name, damaged in (("short", content[: len(content) // 2]), ("none", b"{}")):
        out = tmp_path / name
        out.mkdir()
        (out / "last.pt").write_bytes(damaged)
        with pytest.raises(BadInput, match=rf"{name}/last.pt: "):
            run(config_for(shards), out)
    content[len(content) // 2] ^= 0x10
    (out / "last.pt").write_bytes(content)
    with pytest.raises(BadInput, match=r"none/last.pt: "):
        run(config_for(shards), out)
    run(config_for(shards), out, resume=False)
    assert same(out / "last.pt", whole[1] / "last.pt")


def test_begun_anew_an_early_end_does_not_go_on_from_the_old_training(whole, shards, tmp_path):
    (tmp_path / "last.pt").write_bytes((whole[1] / "last.pt").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run(config_for(shards), tmp_path, resume=False, stop=interrupted)
    assert not (tmp_path / "last.pt").exists()


def interrupted():
    raise KeyboardInterrupt


def test_weights_alone_are_not_gone_on_from(whole, shards, tmp_path):
    (tmp_path / "last.pt").write_bytes((whole[1] / "untrained.pt").read_bytes())
    with pytest.raises(BadInput, match="weights alone"):
        run(config_for(shards), tmp_path)


def test_a_shard_with_another_byte_is_refused_by_name(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    shard = sorted(copy.glob("*.bin"))[1]
    content = bytearray(shard.read_bytes())
    content[-70] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadInput, match=f"{shard.name}: its sha256"):
        run(config_for(copy), tmp_path / "out")


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it_and_a_sentence(shards, tmp_path):
    wild = config_for(shards, *WILD, "run.save-every=1")
    with pytest.raises(Stopped, match=r"step \d+: the .* is not finite \(loss .*stopped.pt has what was there before"):
        run(wild, tmp_path)
    lines = progress.read(tmp_path)
    assert 0 < len(lines) < 8 and all(math.isfinite(line["loss"]) for line in lines)
    content = torch.load(tmp_path / "stopped.pt", weights_only=True)
    assert content["tessera_beam_training"]["step"] == lines[-1]["step"]


def test_under_fp16_a_gradient_that_never_becomes_finite_stops_too(shards, tmp_path):
    """Skipped steps lower the scale; a gradient that is NaN whatever the scale would be skipped to the end."""
    config = config_for(shards, "optimiser.precision=fp16", "schedule.steps=80")
    opened = open_shards(shards)
    built = build(config, profile_of(config, opened), 80)
    device = Device(torch.device("cpu"), "fp16")
    trained = prepared(built.objective, config, device)
    weight = built.encoder.dim_reducer[4].weight
    before = weight.detach().clone()
    saved = []

    def go_on(steps):
        train(trained, opened, built.draw, config, device, steps, lambda *given: saved.append(given), None)

    seen = iter(range(80))
    hook = weight.register_hook(lambda g: g * math.nan if next(seen) < 3 else g)
    go_on(range(15))
    assert {name for _, name in saved} == {"last.pt"} and not torch.equal(weight, before)
    hook.remove()
    weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(Stopped, match=r"step \d+: the gradient is not finite \(loss "):
        go_on(range(15, 80))
    assert saved[-1][1] == STOPPED


def stopped_on_each_rank():
    """Whether the state is there when this rank has ended; rank 0 takes its time to write it."""
    shards, out = map(Path, os.environ[WHERE].split(os.pathsep))
    write = checkpoint.write

    def slow(path, content):
        if path.name == STOPPED:
            time.sleep(1)
        write(path, content)

    checkpoint.write = slow
    try:
        run(config_for(shards, *WILD), out)
    except Stopped:
        return (out / STOPPED).exists()


@pytest.mark.slow  # each process loads PyTorch
def test_no_rank_ends_before_the_state_is_saved_for_torchrun_then_ends_the_others(shards, tmp_path, monkeypatch):
    monkeypatch.setenv(WHERE, f"{shards}{os.pathsep}{tmp_path / 'out'}")
    assert on_ranks(stopped_on_each_rank, tmp_path) == [True, True]


@pytest.mark.parametrize("case", FAMILIES)
def test_a_checkpoint_of_any_family_is_exported_and_passes_the_gate(case, shards, tmp_path):
    run(config_for(shards, "schedule.steps=2", *FAMILIES[case]), tmp_path)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded.family == case.split(" ")[0] and loaded.heads_from == "file" and loaded.sizes.heads == 2
    origin = {"kind": "training", "family": loaded.record.profile.family, "training": loaded.record.training}
    made = export(loaded, loaded.record.profile, loaded.record.name, origin, tmp_path / "m.onnx")
    report = gate(made.path, tmp_path / "last.pt")
    assert report.ok, [c for c in report.checks if not c.ok]
    if case.endswith("mean"):
        assert not loaded.tensors["s2_backbone.attn_pool.query.weight"].any()


@pytest.mark.parametrize("micro", [5, 13])
def test_a_batch_in_parts_trains_as_the_whole_batch_does(whole, shards, tmp_path, micro):
    run(config_for(shards, f"run.micro-batch={micro}"), tmp_path)
    ours, theirs = told(tmp_path), told(whole[1])
    for name in ("loss", "on", "off", "mix", "gradient"):
        np.testing.assert_allclose([x[name] for x in ours], [x[name] for x in theirs], rtol=2e-3, err_msg=name)
    np.testing.assert_allclose([x["loss"] for x in ours[:1]], [x["loss"] for x in theirs[:1]], rtol=1e-6)


def test_bf16_runs_and_ends_near_float32(whole, shards, tmp_path):
    run(config_for(shards, "optimiser.precision=bf16"), tmp_path)
    ours, theirs = told(tmp_path), told(whole[1])
    assert ours[0]["loss"] != theirs[0]["loss"]
    assert abs(ours[-1]["loss"] - theirs[-1]["loss"]) < 0.2 * theirs[-1]["loss"]


def test_what_the_device_lacks_is_refused_before_the_start(shards, tmp_path):
    with pytest.raises(BadInput, match=r"fp16.*CPU"):
        run(config_for(shards, "optimiser.precision=fp16"), tmp_path)
    with pytest.raises(BadInput, match=r"GiB of each cpu.*\[loss\] split"):
        run(config_for(shards, "projector.widths=[12, 3000000]"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match=r"\[run\] device = 'cuda'"):
            run(config_for(shards, "run.device=cuda"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_projectors_memory_is_said_before_the_first_step(shards, tmp_path):
    said = []
    run(config_for(shards, "schedule.steps=1"), tmp_path, say=said.append)
    assert said[0].startswith("projector 8 x 12 x 12: 264 parameters") and "step 1 of 1" in said[1]


def test_pixels_made_by_the_rules_of_another_family_are_refused(tmp_path):
    other = small_set(tmp_path / "v1.1", profile="v1.1-aws").folder
    with pytest.raises(BadInput, match=r"made for v1.1-aws, whose s1_order, s1_arithmetic, s1_resampling"):
        run(config_for(other), tmp_path / "out")


def test_a_model_says_the_sources_that_it_saw_where_the_family_has_others(tmp_path):
    odd = small_set(tmp_path / "odd", sources=("sentinel-2-l2a@cdse", "rtc-s1@opera")).folder
    run(config_for(odd, "schedule.steps=1"), tmp_path / "a")
    profile = load_checkpoint(tmp_path / "a" / "last.pt").record.profile
    assert profile.s2_sources == ("sentinel-2-l2a@cdse",) and profile.s1_sources == ("rtc-s1@opera",)
    usual = small_set(tmp_path / "usual", sources=("sentinel-2-c1-l2a@earth-search",)).folder
    run(config_for(usual, "schedule.steps=1"), tmp_path / "b")
    assert len(load_checkpoint(tmp_path / "b" / "last.pt").record.profile.s2_sources) == 3


def test_inputs_can_be_standardised_by_what_the_records_hold(shards, tmp_path):
    run(config_for(shards, "encoder.statistics=shards", "schedule.steps=1"), tmp_path)
    profile = load_checkpoint(tmp_path / "last.pt").record.profile
    batch = open_shards(shards).take(np.arange(70))
    seen = batch.s2[batch.s2_valid].astype(np.float64)
    np.testing.assert_allclose(profile.s2_mean, seen.mean(0), atol=1e-4)
    np.testing.assert_allclose(profile.s2_std, seen.std(0), atol=1e-4)
    down = batch.s1[batch.s1_valid & (batch.s1_orbit == 1)].astype(np.float64)
    np.testing.assert_allclose(profile.s1_descending_std, down.std(0), atol=1e-4)


def test_a_file_that_was_there_stays_until_the_new_one_is_whole(whole, tmp_path):
    class Unsaved:
        def __reduce__(self):
            raise RuntimeError("in the middle")

    (tmp_path / "last.pt").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="in the middle"):
        checkpoint.write(tmp_path / "last.pt", {"a": torch.zeros(100), "b": Unsaved()})
    assert (tmp_path / "last.pt").read_bytes() == b"before"


@pytest.mark.parametrize("end", [None, 2])
def test_tensorboard_has_the_numbers_of_the_lines_of_a_run_that_went_on_too(shards, tmp_path, end):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    asked = iter(range(1, 4))
    for _ in range(1 if end is None else 2):
        config = config_for(shards, "run.tensorboard=true", "schedule.steps=3")
        run(config, tmp_path, stop=lambda: next(asked) == end)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = progress.read(tmp_path)
    for name in ("loss", "on", "off", "mix", "rankme", "pixels_per_s"):
        got = [(e.step, e.value) for e in events.Scalars(name)]
        assert got == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
