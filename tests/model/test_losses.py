import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.encoders import Backbone
from model.errors import BadInput
from model.losses.barlow import barlow
from model.losses.correlation import columns_of, deviation
from model.losses.mix import Mixing, barlow_with_mix, draw_mixing, mix_tokens
from model.losses.rankme import rankme
from model.losses.reduce import standardise
from model.losses.variants import BARLOW, MIX, barlow_rule, mix_rule
from model.weights import EncoderSizes


def mix(*given, **options):
    """The regulariser alone."""
    return barlow_with_mix(*given, **options).mix


def batches(rows, columns, seed=1, number=3, dtype=torch.float64):
    """Views of one thing, so that their correlation is neither none nor whole, with means and spreads of their own."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(rows, columns))
    made = [common + random.normal(size=common.shape) * 0.8 for _ in range(number)]
    made = [m * random.uniform(0.2, 5, columns) + random.normal(size=columns) * 3 for m in made]
    return [torch.tensor(m, dtype=dtype, requires_grad=True) for m in made]


def slow_standardise(z, rule):
    """One number at a time."""
    rows, columns = len(z), len(z[0])
    out = [[0.0] * columns for _ in range(rows)]
    for j in range(columns):
        mean = sum(z[i][j] for i in range(rows)) / rows
        variance = sum((z[i][j] - mean) ** 2 for i in range(rows)) / (rows - (1 if rule.unbiased else 0))
        for i in range(rows):
            out[i][j] = (z[i][j] - mean) / max(math.sqrt(variance + rule.epsilon), rule.floor)
    return out


def slow_correlation(a, b):
    rows = len(a)
    return [[sum(a[n][i] * b[n][j] for n in range(rows)) / rows for j in range(len(b[0]))] for i in range(len(a[0]))]


def slow_barlow(z1, z2, rule):
    c = slow_correlation(slow_standardise(z1, rule), slow_standardise(z2, rule))
    width = range(len(c))
    on = sum((c[i][i] - 1) ** 2 for i in width)
    off = sum((c[i][j] - rule.target) ** 2 for i in width for j in width if i != j)
    return on, off, on + rule.weight * off


def slow_mix(z1, z2, zm, mixing, name, barlow_name):
    """The six correlations of the literature, as its formula has them."""
    rule, base = MIX[name], BARLOW[barlow_name]
    s1, s2, m = (slow_standardise(z, base) for z in (z1, z2, zm))
    permuted = [s2[p] for p in mixing.partner]
    a = mixing.share
    width = range(len(s1[0]))

    def distance(own, against):
        got, first, second = (slow_correlation(x, against) for x in (m, own, permuted))
        return sum((got[i][j] - (a * first[i][j] + (1 - a) * second[i][j])) ** 2 for i in width for j in width)

    terms = {
        "readme": lambda: distance(s1, s1) + distance(s1, s2),
        "detached": lambda: distance(s1, s1) + distance(s1, s2),
        "imagenet": lambda: distance(s1, s1) + distance(s2, s2),
        "tessera-util": lambda: distance(s1, s1) + distance(s1, permuted),
    }
    return rule.weight * base.weight * terms[name]()


@pytest.mark.parametrize("name", BARLOW)
@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 6), (9, 1)])
def test_barlow_twins_is_the_slow_loss(name, rows, columns):
    z1, z2 = batches(rows, columns, number=2)
    got = barlow(z1, z2, BARLOW[name])
    assert [t.item() for t in got] == pytest.approx(slow_barlow(z1.tolist(), z2.tolist(), BARLOW[name]), rel=1e-12)


@pytest.mark.parametrize("name", MIX)
@pytest.mark.parametrize("barlow_name", ["standard", "tessera-util"])
def test_the_mix_regulariser_is_the_slow_one(name, barlow_name):
    z1, z2, zm = batches(8, 5)
    mixing = draw_mixing(8, 3, 1)
    got = mix(z1, z2, zm, mixing, MIX[name], BARLOW[barlow_name])
    slow = slow_mix(z1.tolist(), z2.tolist(), zm.tolist(), mixing, name, barlow_name)
    assert got.item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("name", BARLOW)
def test_gradients_of_barlow_twins_are_those_of_finite_differences(name):
    assert torch.autograd.gradcheck(lambda a, b: barlow(a, b, BARLOW[name]), batches(6, 4, number=2))


@pytest.mark.parametrize("name", [n for n in MIX if not MIX[n].detached])
def test_gradients_of_the_mix_regulariser_are_those_of_finite_differences(name):
    mixing = draw_mixing(6, 3, 1)
    assert torch.autograd.gradcheck(lambda *z: mix(*z, mixing, MIX[name]), batches(6, 4))


def test_detached_targets_give_no_gradient_and_the_correlation_itself_all_of_it():
    """Against autograd on the formula, with its targets detached."""
    z1, z2, zm = batches(7, 4)
    mixing = draw_mixing(7, 3, 1)
    base = BARLOW["standard"]
    s1, s2, m = (standardise(z, base.epsilon) for z in (z1, z2, zm))
    a, permuted = mixing.share, s2[torch.from_numpy(mixing.partner)]
    loss = sum((m.T @ s / 7 - ((a * s1 + (1 - a) * permuted).T @ s / 7).detach()).square().sum() for s in (s1, s2))
    expected = torch.autograd.grad(base.weight * loss, (z1, z2, zm))
    got = torch.autograd.grad(mix(z1, z2, zm, mixing, MIX["detached"]), (z1, z2, zm))
    attached = torch.autograd.grad(mix(z1, z2, zm, mixing), (z1, z2, zm))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-14)
    for g, other in zip(got[:2], attached[:2], strict=True):  # targets are made of these alone
        assert (g - other).norm() > 1e-3 * other.norm()


def test_both_losses_at_once_are_both_losses():
    z1, z2, zm = batches(7, 4)
    mixing = draw_mixing(7, 3, 1)
    for split in (False, True):  # one process has nothing to split
        got = barlow_with_mix(z1, z2, zm, mixing, split=split)
        on, off, total = barlow(z1, z2)
        extra = mix(z1, z2, zm, mixing)
        assert [t.item() for t in got] == [on.item(), off.item(), extra.item(), (total + extra).item()]


@given(st.integers(0, 99))
def test_barlow_twins_knows_no_mean_and_no_scale_of_a_column(seed):
    z1, z2 = batches(9, 4, seed, 2)
    random = np.random.default_rng(seed)
    scale, shift = torch.tensor(random.uniform(1, 50, 4)), torch.tensor(random.normal(size=4) * 9)
    exact = BARLOW["tessera-util"]  # no epsilon
    assert barlow(z1 * scale + shift, z2, exact).total.item() == pytest.approx(barlow(z1, z2, exact).total.item())


def test_equal_views_with_independent_columns_have_no_loss_but_in_the_form_that_divides_by_two_counts():
    rows = 16
    hadamard = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(1, 5)] for i in range(rows)])
    z = hadamard.double()
    assert barlow(z, z).total.item() == pytest.approx(0, abs=1e-8)
    assert barlow(z, z, BARLOW["tessera-util"]).total.item() == pytest.approx(4 / rows**2)


@pytest.mark.parametrize("name", MIX)
def test_a_mixture_that_lands_where_linearity_puts_it_costs_nothing(name):
    """Equal views, each pixel its own partner: wherever the share lies, the mixture is the view itself."""
    z, other = batches(8, 4, number=2)
    mixing = Mixing(0.6, np.arange(8))
    assert mix(z, z, z, mixing, MIX[name]).item() == pytest.approx(0, abs=1e-20)
    assert mix(z, z, other, mixing, MIX[name]).item() > 1e-4


def test_constant_columns_give_finite_gradients():
    for rule in BARLOW.values():
        z1, z2 = batches(6, 3, number=2, dtype=torch.float32)
        flat = (z1 * torch.tensor([1.0, 0.0, 1.0])).detach().requires_grad_()
        barlow(flat, z2, rule).total.backward()
        assert torch.isfinite(flat.grad).all() and torch.isfinite(z2.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_projections_are_correlated_in_float32_whatever_autocast_says(dtype):
    z = [b.detach().to(dtype) for b in batches(32, 8)]
    mixing = draw_mixing(32, 1, 1)
    exact = barlow_with_mix(*(b.float().requires_grad_() for b in z), mixing)
    half = [b.clone().requires_grad_() for b in z]
    with torch.autocast("cpu", torch.bfloat16):
        got = barlow_with_mix(*half, mixing)
        got.total.backward()
    assert all(t.dtype == torch.float32 for t in got)
    assert [t.item() for t in got] == [t.item() for t in exact]
    assert all(torch.isfinite(b.grad).all() for b in half)


def test_a_mean_far_from_zero_costs_float32_no_more_than_its_rounding():
    z1, z2 = (b.detach() for b in batches(200, 5, number=2))
    exact = barlow(z1 + 300, z2 + 300).total.item()
    assert barlow((z1 + 300).float(), (z2 + 300).float()).total.item() == pytest.approx(exact, rel=1e-4)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_parts_of_a_correlation_cover_it_once(width, parts):
    columns = [c for p in range(parts) for c in range(width)[columns_of(width, p, parts)]]
    assert columns == list(range(width))


@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 9))
def test_a_mixing_is_the_step_s_own_and_pairs_every_row_once(rows, seed, step):
    one, again = draw_mixing(rows, seed, step), draw_mixing(rows, seed, step)
    assert one.share == again.share and (one.partner == again.partner).all()
    assert 0 <= one.share <= 1
    assert sorted(one.partner.tolist()) == list(range(rows))
    assert draw_mixing(rows, seed, step + 1).share != one.share != draw_mixing(rows, seed + 10, step).share


@pytest.mark.parametrize(("alpha", "beta", "deviation"), [(1.0, 1.0, 12**-0.5), (2.0, 6.0, 0.1443)])
def test_shares_are_spread_as_beta_says(alpha, beta, deviation):
    shares = [draw_mixing(1, 5, step, alpha, beta).share for step in range(2000)]
    assert np.mean(shares) == pytest.approx(alpha / (alpha + beta), abs=5 * deviation / 2000**0.5)
    assert np.std(shares) == pytest.approx(deviation, rel=0.08)


def test_mixed_tokens_lie_between_both_series_and_days_stay_whole():
    torch.manual_seed(1)
    backbone = Backbone(10, EncoderSizes(8, 1, 2, 12, 0, 4, False))
    x1, x2 = torch.randn(2, 5, 10), torch.randn(2, 5, 10)
    doy1, doy2 = torch.randint(1, 367, (2, 5)), torch.randint(1, 367, (2, 5))
    first, second = (backbone.embedding(x) + backbone.day_table[d] for x, d in ((x1, doy1), (x2, doy2)))
    torch.testing.assert_close(mix_tokens(first, second, 1.0), first)
    torch.testing.assert_close(mix_tokens(first, second, 0.0), second)
    torch.testing.assert_close(mix_tokens(first, second, 0.3), 0.3 * first + 0.7 * second)


def test_views_of_unequal_lengths_are_not_mixed():
    with pytest.raises(BadInput, match=r"\(2, 5, 8\) and \(2, 6, 8\)"):
        mix_tokens(torch.zeros(2, 5, 8), torch.zeros(2, 6, 8), 0.5)


def test_batches_that_do_not_fit_are_refused_by_shape():
    z1, z2, zm = batches(6, 4)
    with pytest.raises(BadInput, match=r"\(6, 4\) and \(5, 4\)"):
        barlow(z1, z2[:5])
    with pytest.raises(BadInput, match=r"\(6, 3\)"):
        mix(z1, z2, zm[:, :3], draw_mixing(6, 1, 1))
    with pytest.raises(BadInput, match="mixing of 5 rows for a batch of 6"):
        mix(z1, z2, zm, draw_mixing(5, 1, 1))
    with pytest.raises(BadInput, match=r"Beta\(0.*above 0"):
        draw_mixing(5, 1, 1, alpha=0.0)


def test_variants_are_chosen_by_name_each_with_its_reason():
    assert all(barlow_rule(n) is BARLOW[n] and len(BARLOW[n].why) > 40 for n in BARLOW)
    assert all(mix_rule(n) is MIX[n] and len(MIX[n].why) > 40 for n in MIX)
    with pytest.raises(BadInput, match=r"Barlow variant 'readme'.*standard"):
        barlow_rule("readme")
    with pytest.raises(BadInput, match=r"mix variant 'none'.*readme"):
        mix_rule("none")


def test_the_off_diagonal_is_summed_without_cancelling_against_the_diagonal():
    """Off-diagonal squares of 1e-8 beside a diagonal of 1: total less diagonal would have no digit of them."""
    width, rows = 64, 256
    hadamard = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(1, width + 1)] for i in range(rows)])
    a = hadamard + 1e-4 * hadamard.roll(1, 1)
    got = deviation(a, hadamard, 1.0)
    assert got.off.item() == pytest.approx(width * 1e-8, rel=1e-2)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rankme_counts_directions_of_equal_strength(rank):
    random = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=random)).Q for n in (20, 8))
    z = left[:, :rank] @ right[:rank]
    assert rankme(z) == pytest.approx(rank, rel=1e-3)


def test_rankme_is_the_slow_entropy_and_says_when_there_is_nothing_to_count():
    z = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values = [math.sqrt(v) for v in np.linalg.eigvalsh((z.T @ z).numpy())]
    shares = [v / sum(values) + 1e-7 for v in values]
    assert rankme(z) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)
    assert rankme(torch.zeros(4, 3)) == 0
    assert math.isnan(rankme(torch.tensor([[1.0, float("nan")]])))
