"""One step of the training: what the branches see, and that parts and ranks give what the whole batch gives."""

import os

import numpy as np
import pytest
import torch
from torch import nn
from training_sets import config_for, small_set, stepped
from two_ranks import on_ranks

from model.losses.mix import draw_mixing
from model.losses.reduce import rank
from model.order import hashed as order_hashed
from model.order import share_of
from model.quantise import dequantise, quantise
from model.shards import open_shards
from model.training.branches import partners_of, quantised
from model.training.device import Device
from model.training.dropout import hashed, keep
from model.training.feed import feed
from model.training.loop import given_of, on_device
from model.training.run import build, profile_of

WHERE = "TESSERA_TEST_SHARDS"  # how ranks in processes of their own find the shard set

# What stands on the encoder, in every form that changes the way of the gradients.
CASES = {
    "barlow alone": ("loss.mix=none",),
    "with mix": (),
    "mixed as in tessera-util": ("loss.mix=tessera-util", "loss.barlow=tessera-util"),
    "detached": ("loss.mix=detached",),
    "split": ("loss.split=true",),
    "quantised": ("qat.start=0.0",),
    "of v1.1, quantised": ("qat.start=0.0", "encoder.family=v1.1-mpc", "encoder.stored-dims=6"),
    "pooled by the mean": ("encoder.pooling=mean",),
    "a student": ("qat.start=0.0", "distil.prefixes=[2, 8]"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("set") / "shards").folder


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    from model.training.run import run

    out = tmp_path_factory.mktemp("teacher")
    run(config_for(shards, "schedule.steps=1", "encoder.native-dims=10", "run.seed=9"), out)
    return out / "last.pt"


def overrides_of(case, teacher):
    return (*CASES[case], *((f"distil.teacher={teacher}",) if "student" in case else ()))


def close(ours, theirs, rtol=1e-9, floor=1e-13):
    """Every gradient, elementwise."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        atol = rtol * min(1.0, expected.abs().max().item())
        np.testing.assert_allclose(ours[name], expected, rtol=rtol, atol=max(atol, floor), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_that_passes_the_encoder_in_parts_has_the_gradients_of_the_whole(case, shards, teacher):
    given = overrides_of(case, teacher)
    whole = stepped(shards, *given)["steps"][0]
    parts = stepped(shards, *given, "run.micro-batch=4")["steps"][0]
    assert whole[1]["encoder.dim_reducer.4.weight"].norm() > 1e-6
    close(parts[1], whole[1])
    assert torch.equal(parts[2], whole[2]) or torch.allclose(parts[2], whole[2], rtol=1e-12)
    assert parts[0].keys() == whole[0].keys()


def test_parts_whose_losses_were_added_would_be_noticed(shards):
    """What plain accumulation gives: losses of the batches' own statistics, a part each."""
    whole = stepped(shards, "loss.mix=none")["steps"][0][1]
    alone = stepped(shards, "loss.mix=none", "data.batch=7", steps=range(2))["steps"]  # the same 14 records
    name = "encoder.dim_reducer.4.weight"
    added = (alone[0][1][name] + alone[1][1][name]) / 2
    assert (added - whole[name]).norm() > 0.05 * whole[name].norm()


def every_case():
    shards, teacher = os.environ[WHERE].split(os.pathsep)
    found = {}
    for case in CASES:
        given = overrides_of(case, teacher)
        found[case] = stepped(shards, *given, steps=range(2))
        found[case, "parts"] = stepped(shards, *given, "run.micro-batch=3", steps=range(2))
        found[case, "float32"] = stepped(shards, *given, dtype="float32")
    found["plain"] = stepped(shards, "qat.start=1.0")
    return found


@pytest.fixture(scope="module")
def two(shards, teacher, tmp_path_factory):
    os.environ[WHERE] = f"{shards}{os.pathsep}{teacher}"
    try:
        return on_ranks(every_case, tmp_path_factory.mktemp("two"))
    finally:
        del os.environ[WHERE]


@pytest.mark.slow  # each process loads PyTorch
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_the_batch_each_train_as_one_with_all_of_it(case, two, shards, teacher):
    given = overrides_of(case, teacher)
    one = stepped(shards, *given, steps=range(2))
    float32 = stepped(shards, *given, dtype="float32")["steps"][0][1]
    norm = torch.stack([g.norm() for g in float32.values()]).norm()
    for other in two:
        for form in (case, (case, "parts")):
            for ours, theirs in zip(other[form]["steps"], one["steps"], strict=True):
                rtol = 1e-9 if theirs is one["steps"][0] else 1e-7  # what AdamW makes of rounding adds up
                close(ours[0], theirs[0], rtol)
                close(ours[1], theirs[1], rtol)
            close(other[form]["weights"], one["weights"], 1e-6, floor=1e-9)  # some gradients are rounding alone
        missed = [(other[case, "float32"]["steps"][0][1][n] - g).norm() for n, g in float32.items()]
        assert torch.stack(missed).norm() <= 1e-5 * norm
    assert torch.equal(
        two[0][case]["weights"]["encoder.dim_reducer.4.weight"], two[1][case]["weights"]["encoder.dim_reducer.4.weight"]
    )


@pytest.mark.slow
def test_the_quantiser_is_active_under_ddp_in_the_loop(two, shards):
    for other in two:
        plain, active = other["plain"]["steps"][0], other["quantised"]["steps"][0]
        assert not torch.equal(plain[0]["loss"], active[0]["loss"])
        name = "encoder.dim_reducer.4.weight"
        assert (plain[1][name] - active[1][name]).norm() > 1e-4 * plain[1][name].norm()


def test_the_quantiser_is_active_from_its_step_on_in_loss_and_gradients(shards):
    """Against the same step without it; and in front of its step they are the same."""
    name = "encoder.dim_reducer.4.weight"
    steps = range(2, 4)
    never, late, early = (stepped(shards, f"qat.step={s}", steps=steps)["steps"] for s in (99, 3, 0))
    assert torch.equal(never[0][1][name], late[0][1][name])
    assert not torch.equal(never[1][0]["loss"], late[1][0]["loss"])
    assert not torch.equal(never[1][1][name], late[1][1][name])
    assert not torch.equal(never[0][1][name], early[0][1][name])


def test_what_the_projector_sees_is_what_codes_and_scales_give(shards):
    """Through the module as the loop calls it: the inputs of the projector, caught on their way."""
    config = config_for(shards, "qat.start=0.0", "encoder.family=v1.1-mpc", "encoder.stored-dims=6")
    opened = open_shards(shards)
    built = build(config, profile_of(config, opened), 8)
    caught = []
    built.objective.projector.register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
    fed = next(iter(feed(opened, built.draw, 3, 14, range(1))))
    _, z = built.objective(given_of(fed, config, torch.device("cpu")), 0)
    assert len(caught) == 3
    stored, rest = caught[0][:, :6], caught[0][:, 6:]
    assert (dequantise(*quantise(z[:, :6].numpy(), 1e-8, "scale")) == stored.numpy()).all()
    assert torch.equal(rest, z[:, 6:])


def test_values_behind_the_stored_ones_have_no_part_in_the_scale():
    class Halves(nn.Module):
        def forward(self, z, step):
            return z / 2

    z = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(quantised(Halves(), z, 2, 0), torch.tensor([[0, 0.5, 2], [1.5, 2, 5]]))


def test_every_day_of_the_mixed_branch_is_whole(shards):
    """The third branch mixes tokens: its inputs are the rows of both views as they were observed."""
    opened = open_shards(shards)
    config = config_for(shards)
    built = build(config, profile_of(config, opened), 8)
    fed = next(iter(feed(opened, built.draw, 3, 14, range(1))))
    given = given_of(fed, config, torch.device("cpu"))
    mixing = draw_mixing(14, 3, 0)
    second = on_device(fed.second, torch.device("cpu"))
    for name in second._fields:
        mine, theirs = getattr(given.partner, name), getattr(second, name)
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs[torch.from_numpy(mixing.partner)])
    encoder = built.encoder
    with torch.no_grad():
        a, b = encoder.raw_tokens(*given.first), encoder.raw_tokens(*given.partner)
        expected = [mixing.share * x + (1 - mixing.share) * y for x, y in zip(a, b, strict=True)]
        factors = keep(given.keys[2], 12, 0.2, torch.float32)
        torch.testing.assert_close(
            built.objective.embeddings(given)[2], encoder.embed_tokens(*expected, factors), rtol=1e-5, atol=1e-5
        )


def partners_on_each_rank():
    config = config_for(os.environ[WHERE].split(os.pathsep)[0])
    opened = open_shards(config.data.shards)
    built = build(config, profile_of(config, opened), 8)
    own = share_of(14, rank(), 2)
    fed = next(iter(feed(opened, built.draw, 3, 14, range(1), rank(), 2)))
    return partners_of(on_device(fed.second, torch.device("cpu")), draw_mixing(14, 3, 0), own)._asdict()


@pytest.mark.slow
def test_partners_come_raw_from_whatever_rank_has_them(shards, tmp_path, monkeypatch):
    monkeypatch.setenv(WHERE, str(shards))
    config = config_for(shards)
    opened = open_shards(shards)
    built = build(config, profile_of(config, opened), 8)
    fed = next(iter(feed(opened, built.draw, 3, 14, range(1))))
    everyone = partners_of(on_device(fed.second, torch.device("cpu")), draw_mixing(14, 3, 0), slice(0, 14))
    got = on_ranks(partners_on_each_rank, tmp_path)
    for name, expected in everyone._asdict().items():
        assert torch.equal(torch.cat([g[name].to(torch.int64) for g in got]), expected.to(torch.int64))


def test_numbers_of_dropout_are_those_of_the_order(shards):
    keys = np.array([0, 1, 2**63, 2**64 - 1, 12345678901234567890], np.uint64)
    ours = hashed(torch.from_numpy(keys.view(np.int64)), 9).numpy().view(np.uint64)
    assert (ours == order_hashed(keys[:, None], np.arange(9, dtype=np.uint64))).all()


def test_dropout_drops_its_share_and_makes_up_for_it():
    keys = torch.arange(400)
    factors = keep(keys, 250, 0.2, torch.float32)
    assert set(factors.unique().tolist()) == {0.0, 1.25}
    dropped = (factors == 0).float().mean().item()
    assert abs(dropped - 0.2) < 5 * (0.16 / factors.numel()) ** 0.5
    assert torch.equal(keep(keys[7:9], 250, 0.2, torch.float32), factors[7:9])
    assert (keep(keys, 5, 0.0, torch.float64) == 1).all()


def test_no_dropout_means_none(shards):
    """PyTorch's own 0.2 in the reducer has no part in a training, whose encoder is in training mode."""
    one, two = (stepped(shards, "encoder.dropout=0.0")["steps"][0] for _ in range(2))
    other = stepped(shards)["steps"][0]
    assert torch.equal(one[2], two[2]) and not torch.equal(one[2], other[2])


def test_autocast_to_bf16_leaves_the_loss_in_float32(shards):
    terms, grads, _ = stepped(shards, "optimiser.precision=bf16", dtype="float32")["steps"][0]
    plain = stepped(shards, dtype="float32")["steps"][0]
    assert all(t.dtype == torch.float32 for t in terms.values())
    assert all(g.dtype == torch.float32 for g in grads.values())
    assert 1e-4 < (terms["loss"] / plain[0]["loss"] - 1).abs() < 0.1 or terms["loss"] != plain[0]["loss"]


def test_devices_are_told_by_their_kind():
    assert Device(torch.device("cpu"), "fp32").kind == "cpu"
