import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_encoders import SMALL, tensors_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import on_ranks

from model import parity
from model.encoders import encoder_of
from model.errors import BadInput
from model.families import profile_for
from model.heads import Projector
from model.losses.barlow import barlow
from model.losses.reduce import rank, ranks
from model.order import share_of
from model.qat import FakeQuantise, fake_quantise
from model.quantise import dequantise, quantise

START = 5

vectors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@given(vectors, st.sampled_from([(1e-12, "largest"), (1e-8, "scale"), (0.5, "scale"), (0.5, "largest")]))
def test_values_are_to_the_bit_those_that_deployed_codes_and_scales_stand_for(x, floor):
    deployed = dequantise(*quantise(x, *floor))
    assert (fake_quantise(torch.from_numpy(x), *floor).numpy() == deployed).all()


@pytest.mark.parametrize("case", ["v2", "v1.1-mpc"])
def test_a_profile_s_rule_is_that_of_its_encoder_s_own_codes(case):
    sizes = SMALL[case]
    profile = profile_for(case, sizes.native_dims, 8)
    inputs = parity.inputs_of(4, 9, 5, seed=2)
    with torch.inference_mode():
        codes, scale, z = encoder_of(tensors_of(sizes), sizes, profile)(*(torch.from_numpy(a) for a in inputs.values()))
    trained = FakeQuantise(0, profile=profile)(z, 0)
    assert torch.equal(trained, codes.float() * scale[:, None])


def test_each_pixel_has_a_scale_of_its_own():
    z = torch.tensor([[1.0, 0.4], [1000.0, 400.0]])
    together, alone = fake_quantise(z), torch.cat([fake_quantise(row[None]) for row in z])
    assert torch.equal(together, alone)
    assert (together[0] - z[0]).abs().max() < 0.004  # half of 1 / 127; one scale for both rows would give 0


def test_each_prefix_is_cut_before_its_scale_is_made():
    z = torch.tensor([[0.3, -0.11, 0.07, 5.0]])
    cuts = FakeQuantise(0, (1, 2, 3, 4)).cut(z, 0)
    assert list(cuts) == [1, 2, 3, 4]
    for k, values in cuts.items():
        assert torch.equal(values, torch.from_numpy(dequantise(*quantise(z[:, :k].numpy()))))
    assert not torch.equal(cuts[4][:, :3], cuts[3])  # the fourth value is the largest, and would set the scale


@given(vectors, vectors)
def test_gradients_go_straight_through_to_every_value_and_none_through_the_scale(x, g):
    z = torch.from_numpy(x).requires_grad_()
    grad = torch.from_numpy(np.resize(g, x.shape).astype(np.float32))
    fake_quantise(z).backward(grad)
    assert torch.equal(z.grad, grad)


def test_what_is_lost_is_the_loss_at_the_quantised_values():
    """The gradient of a loss that is not linear is taken where the codes are, not where the encoder is."""
    z = torch.tensor([[1.0, 0.3, -0.2]], requires_grad=True)
    (fake_quantise(z) ** 2).sum().backward()
    assert torch.equal(z.grad, 2 * fake_quantise(z).detach()) and not torch.equal(z.grad, 2 * z.detach())


def test_it_begins_at_its_step_and_not_before():
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    late, never = FakeQuantise(START), FakeQuantise(None)
    assert [late.active(s) for s in (0, START - 1, START, START + 1)] == [False, False, True, True]
    assert torch.equal(late(z, START - 1), z) and torch.equal(never(z, 10**9), z)
    assert torch.equal(late(z, START), fake_quantise(z)) and not torch.equal(late(z, START), z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_quantised_in_float32_whatever_autocast_says(dtype):
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = fake_quantise(z)
    assert got.dtype == torch.float32
    assert (got.numpy() == dequantise(*quantise(z.float().numpy()))).all()


def test_a_damaged_row_shows_and_no_other_does():
    z = torch.tensor([[1.0, float("nan")], [1.0, 0.5]])
    got = fake_quantise(z)
    assert got[0].isnan().any() and torch.isfinite(got[1]).all()


def test_what_cannot_be_is_refused_by_name():
    for prefixes in ((4, 2), (2, 2), (0, 2)):
        with pytest.raises(BadInput, match=r"prefixes \["):
            FakeQuantise(0, prefixes)
    with pytest.raises(BadInput, match="from step -1"):
        FakeQuantise(-1)
    with pytest.raises(BadInput, match="prefix of 8 values: the embedding has 4"):
        FakeQuantise(0, (4, 8)).cut(torch.zeros(1, 4), 0)
    seven_bits = dataclasses.replace(profile_for("v2", 16), code_min=-63, code_max=63)
    with pytest.raises(BadInput, match=r"-63\.\.63, but the quantiser makes -127\.\.127"):
        FakeQuantise(0, profile=seven_bits)


class Net(nn.Module):
    """An encoder, the quantiser behind it, and the projector that sees what it lets through."""

    def __init__(self, start):
        super().__init__()
        torch.manual_seed(11)
        self.body, self.projector, self.quantiser = nn.Linear(6, 8), Projector((8, 16, 12)), FakeQuantise(start)

    def forward(self, views, step):
        embeddings = [self.quantiser(self.body(v), step) for v in views]
        return embeddings, [self.projector(z) for z in embeddings]


def trained(start, step):
    """Embeddings that the projector saw and gradients of all parameters, of this process's part of 13 rows."""
    random = np.random.RandomState(7)
    own = share_of(13, rank(), ranks())
    views = [torch.tensor(random.normal(size=(13, 6)))[own] for _ in range(2)]
    net = Net(start).double()
    wrapped = DistributedDataParallel(net) if ranks() > 1 else net
    embeddings, projections = wrapped(views, step)
    barlow(*projections).total.backward()
    return torch.cat(embeddings).detach(), {name: p.grad for name, p in net.named_parameters()}


def both_sides_of_the_start():
    return {step: trained(START, step) for step in (START - 1, START)}


def on_codes(embeddings):
    """Whether every row is one of codes times a scale."""
    x = embeddings.float().numpy()
    return bool((dequantise(*quantise(x)) == x).all())


def differ(one, other):
    """Of the norm of all gradients together: some are none but for rounding, a bias in front of a norm."""
    apart, norm = (
        torch.stack([g.norm() for g in x.values()]).norm() for x in ({n: one[n] - other[n] for n in one}, one)
    )
    return (apart / norm).item()


def test_it_is_active_in_the_forward_pass_and_in_the_gradients_from_its_step_on():
    """Against the same step without it, and against the gradient by hand at the values of the codes."""
    before, after = trained(START, START - 1), trained(START, START)
    plain = trained(None, START)
    assert on_codes(after[0]) and not on_codes(before[0])
    assert differ(plain[1], before[1]) == 0 and differ(plain[1], after[1]) > 1e-3

    net = Net(None).double()
    random = np.random.RandomState(7)
    views = [torch.tensor(random.normal(size=(13, 6))) for _ in range(2)]
    made = [net.body(v) for v in views]
    codes = [torch.from_numpy(dequantise(*quantise(z.detach().numpy()))).double().requires_grad_() for z in made]
    barlow(*(net.projector(z) for z in codes)).total.backward()
    torch.autograd.backward(made, [z.grad for z in codes])
    assert differ({n: p.grad for n, p in net.named_parameters()}, after[1]) < 1e-12


@pytest.mark.slow  # each process loads PyTorch
def test_it_is_active_under_distributed_training_in_the_forward_pass_and_in_the_gradients(tmp_path):
    got = on_ranks(both_sides_of_the_start, tmp_path)
    for result in got:
        assert on_codes(result[START][0]) and not on_codes(result[START - 1][0])
        for step in (START - 1, START):
            assert differ(trained(START, step)[1], result[step][1]) < 1e-9
        assert differ(trained(None, START)[1], result[START][1]) > 1e-3
