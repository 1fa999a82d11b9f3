"""Correlation: how far the cross-correlation of two batches is from a target, whole on each rank or a part on each."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.errors import BadInput
from model.losses.reduce import in_full, rank, ranks, row_counts, rows_of_ranks


class Deviation(NamedTuple):
    """Sums of squares over the elements of C = a' b / N less their targets, float32 or float64 scalars.

    Attributes:
      on: of the diagonal.
      off: of everything else.
    """

    on: Tensor
    off: Tensor


class _Deviation(Function):
    """Both sums at once, from one product.

    Written by hand because what autograd keeps for it is several D x D matrices; this keeps one, makes no other on the
    way back, and sends none then: C has been summed over the ranks, so its gradient is the same on all of them.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, rows: int, first: int, on_target: float, off_target: float, split: bool
    ) -> Tensor:
        c = a.T @ b  # (columns of a, D)
        c /= rows
        if ranks() > 1 and not split:
            dist.all_reduce(c)
        on = c.diagonal(first) - on_target  # column i of a is column first + i of the whole
        if off_target:
            c -= off_target
        c.diagonal(first).zero_()  # in place of total less diagonal, which would cancel
        off = torch.linalg.vector_norm(c, dim=1)
        terms = torch.stack([on.square().sum(), off.square().sum()])
        if ranks() > 1 and split:
            dist.all_reduce(terms)
        ctx.save_for_backward(a, b, c, on)
        ctx.rows, ctx.first = rows, first
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, c, on = ctx.saved_tensors
        grad = grad.clone()
        if ranks() > 1:
            dist.all_reduce(grad)  # of the losses of all ranks (reduce.py: the convention)
        to_on, to_off = (2 * grad / ctx.rows).unbind()
        own = slice(ctx.first, ctx.first + len(on))
        with torch.autocast(a.device.type, enabled=False):
            grad_a = b @ c.T * to_off
            grad_a += b[:, own] * (on * to_on)
            grad_b = a @ c * to_off
            grad_b[:, own] += a * (on * to_on)
        return grad_a, grad_b, None, None, None, None, None


def columns_of(width: int, part: int, parts: int) -> slice:
    """Which columns of a correlation this part holds: parts follow each other, their sizes differ by one at most."""
    return slice(part * width // parts, (part + 1) * width // parts)


def deviation(a: Tensor, b: Tensor, on_target: float, off_target: float = 0.0, split: bool = False) -> Deviation:
    """How far C = a' b / N is from `on_target` on its diagonal and `off_target` off it, N being the rows of all ranks.

    Args:
      a, b: (n, D), this rank's rows, standardised over all ranks (`reduce.standardise`). Computed in float32 at least.
      split: each rank gathers all rows of `a` and `b` and makes D / ranks rows of C, in place of the sum of everyone's
        D x D: less to keep wherever D is large, and less to send where D > 2 N. The same sums.

    Returns:
      The same sums on every rank.

    Raises:
      BadInput: shapes that differ, or fewer columns than ranks to split them among.
    """
    if a.shape != b.shape or a.dim() != 2:
        raise BadInput(f"batches of shapes {tuple(a.shape)} and {tuple(b.shape)}: both must be (rows, columns), alike")
    split = split and ranks() > 1
    if split and a.shape[1] < ranks():
        raise BadInput(f"a correlation of {a.shape[1]} columns split among {ranks()} ranks: each must have one")
    with torch.autocast(a.device.type, enabled=False):
        a, b = in_full(a), in_full(b)
        first = 0
        if split:
            columns = columns_of(a.shape[1], rank(), ranks())
            a, b, first = rows_of_ranks(a)[:, columns].contiguous(), rows_of_ranks(b), columns.start
            rows = len(a)
        else:
            rows = sum(row_counts(len(a), a.device))
        terms: Tensor = _Deviation.apply(a, b, rows, first, on_target, off_target, split)
    return Deviation(*terms.unbind())
