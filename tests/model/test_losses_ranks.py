"""Two processes with a part of the batch each against one with all of it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import on_ranks

from model.heads import Projector
from model.losses.barlow import barlow
from model.losses.correlation import deviation
from model.losses.mix import barlow_with_mix, draw_mixing
from model.losses.reduce import rank, ranks, row_counts, rows_of_ranks, standardise, sum_over_ranks
from model.losses.variants import BARLOW, MIX
from model.order import share_of


def mix(*given, **options):
    """The regulariser alone."""
    return barlow_with_mix(*given, **options).mix


pytestmark = pytest.mark.slow  # each process loads PyTorch

ROWS, WIDTH = 23, 12  # odd: one rank has 11 rows, the other 12
WIDE_ROWS, WIDE = 40, 1024

# Every loss in every form: name -> function of the two views' projections and the mixed ones.
LOSSES = {
    **{f"barlow {n}": lambda a, b, m, s, n=n: barlow(a, b, BARLOW[n]).total for n in BARLOW},
    **{f"mix {n}": lambda a, b, m, s, n=n: mix(a, b, m, s, MIX[n]) for n in MIX},
    "both": lambda a, b, m, s: barlow_with_mix(a, b, m, s).total,
    "barlow standard split": lambda a, b, m, s: barlow(a, b, split=True).total,
    "barlow hsic split": lambda a, b, m, s: barlow(a, b, BARLOW["hsic"], split=True).total,
    **{f"mix {n} split": lambda a, b, m, s, n=n: mix(a, b, m, s, MIX[n], split=True) for n in MIX},
    "both split": lambda a, b, m, s: barlow_with_mix(a, b, m, s, split=True).total,
    "batch norm": lambda a, b, m, s: sum_over_ranks((standardise(a, 1e-5).tanh() * b).sum()),
    "rows": lambda a, b, m, s: (rows_of_ranks(a).cumsum(0) * rows_of_ranks(b)).sum(),
    "1,024 columns": lambda a, b, m, s: barlow_with_mix(a, b, m, s).total,
    "1,024 columns split": lambda a, b, m, s: barlow_with_mix(a, b, m, s, split=True).total,
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def batch(rows, width):
    """Three views of one thing; the same numbers wherever they are made."""
    random = np.random.RandomState(7)
    common = random.normal(size=(rows, width))
    return [torch.tensor((common + random.normal(size=common.shape)) * 2 + 1) for _ in range(3)]


class Net(nn.Module):
    """A body, a projector with its norms, and all views of a step in one call, as a training has them."""

    def __init__(self, inside, widths):
        super().__init__()
        torch.manual_seed(11)
        self.body, self.projector = nn.Linear(inside, widths[0]), Projector(widths)

    def forward(self, *views):
        return [self.projector(self.body(v).tanh()) for v in views]


def gradients(case, dtype):
    """{parameter: gradient} and the loss, of this process's part of the batch."""
    wide = "1,024" in case
    rows, inside = (WIDE_ROWS, 16) if wide else (ROWS, 6)
    own = share_of(rows, rank(), ranks())
    views = [v.to(dtype)[own] for v in batch(rows, inside)]
    net = Net(inside, (8, WIDE) if wide else (8, 16, WIDTH)).to(dtype)
    wrapped = DistributedDataParallel(net) if ranks() > 1 else net
    loss = LOSSES[case](*wrapped(*views), draw_mixing(rows, 5, 2))
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in net.named_parameters()}}


def every_case():
    return {(case, d): gradients(case, dtype) for case in LOSSES for d, dtype in DTYPES.items()}


def collectives():
    """What reduce.py says of itself, and gradients of losses that differ from rank to rank."""
    r = rank()
    x = torch.arange(3.0 + r, dtype=torch.float64).requires_grad_()  # 3 and 4 rows
    everyone = rows_of_ranks(x)
    (everyone * torch.arange(7.0) * (r + 1)).sum().backward()
    days = torch.full((2 + r, 2), 300 + r, dtype=torch.int16)
    unsigned = torch.full((1 + r, 2, 3), 60_000 + r, dtype=torch.uint16)
    z = torch.tensor([[1.0 + r, 2.0], [0.5, -r - 1.0]], dtype=torch.float64, requires_grad=True)
    terms = deviation(z, z * 2, 1.0)
    ((r + 1) * terms.on + (3 - r) * terms.off).backward()
    return {
        "world": (r, ranks(), row_counts(5 + r)),
        "rows": everyone.detach(),
        "grad": x.grad,
        "days": rows_of_ranks(days),
        "unsigned": rows_of_ranks(unsigned),
        "deviation": z.grad,
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return on_ranks(every_case, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", LOSSES)
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch_in_float64(two, case):
    one = gradients(case, torch.float64)
    assert len(one) > 3 and all(g.norm() > 1e-9 for g in one.values())
    for other in two:
        for name, expected in one.items():
            atol = 1e-9 * min(1.0, expected.abs().max().item())
            np.testing.assert_allclose(other[case, "float64"][name], expected, rtol=1e-9, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", LOSSES)
def test_and_to_1e_5_of_the_gradients_norm_in_float32(two, case):
    one = gradients(case, torch.float32)
    norm = torch.stack([g.norm() for name, g in one.items() if name != "loss"]).norm()
    for other in two:
        missed = [(other[case, "float32"][name] - g).norm() for name, g in one.items() if name != "loss"]
        assert torch.stack(missed).norm() <= 1e-5 * norm


@pytest.mark.parametrize("case", [c for c in LOSSES if c.endswith(" split")])
def test_a_split_correlation_has_the_gradients_of_a_whole_one(two, case):
    for other in two:
        whole = other[case.removesuffix(" split"), "float64"]
        for name, expected in whole.items():
            np.testing.assert_allclose(other[case, "float64"][name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_sum_that_lets_gradients_through_unsummed_would_be_noticed(two):
    """Half of the gradient, as torch.distributed.all_reduce gives it, is far outside what these tests allow."""
    one = gradients("both", torch.float32)
    norm = torch.stack([g.norm() for name, g in one.items() if name != "loss"]).norm()
    half = [(two[0]["both", "float32"][name] / 2 - g).norm() for name, g in one.items() if name != "loss"]
    assert torch.stack(half).norm() > 0.4 * norm


def test_rows_are_carried_whole_in_the_order_of_the_ranks_and_give_back_the_gradients_of_all(tmp_path):
    got = on_ranks(collectives, tmp_path)
    for r, result in enumerate(got):
        assert result["world"] == (r, 2, [5, 6])
        assert result["rows"].tolist() == [0, 1, 2, 0, 1, 2, 3]
        assert result["grad"].tolist() == [[0, 3, 6], [9, 12, 15, 18]][r]  # once and twice each rank's loss
        assert result["days"].dtype == torch.int16 and result["days"][:, 0].tolist() == [300, 300, 301, 301, 301]
        assert result["unsigned"].dtype == torch.uint16 and result["unsigned"].shape == (3, 2, 3)
        assert result["unsigned"][:, 1, 2].tolist() == [60_000, 60_001, 60_001]
    # Losses of (1, 3) and (2, 2) times both sums are one of (3, 5) on one process.
    z = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 2.0], [0.5, -2.0]], dtype=torch.float64, requires_grad=True)
    terms = deviation(z, z * 2, 1.0)
    (3 * terms.on + 5 * terms.off).backward()
    torch.testing.assert_close(torch.cat([r["deviation"] for r in got]), z.grad, rtol=1e-12, atol=1e-12)
