"""Barlow Twins: the cross-correlation of two views of a batch towards the identity."""

from typing import NamedTuple

from torch import Tensor

from model.losses.correlation import deviation
from model.losses.reduce import standardise
from model.losses.variants import BARLOW, BarlowRule


class BarlowTerms(NamedTuple):
    """The loss and what it is made of, scalars that are the same on every rank.

    Attributes:
      on: sum over the diagonal of (C_ii - 1)^2: how far the views are from saying the same.
      off: sum over the rest of (C_ij - target)^2, unweighted: how much the columns say of each other.
      total: on + weight * off, the loss.
    """

    on: Tensor
    off: Tensor
    total: Tensor


def standardised(z: Tensor, rule: BarlowRule) -> Tensor:
    """A batch of projections (n, D) as the rule standardises it, over the rows of all ranks."""
    return standardise(z, rule.epsilon, rule.unbiased, rule.floor)


def barlow(z1: Tensor, z2: Tensor, rule: BarlowRule = BARLOW["standard"], split: bool = False) -> BarlowTerms:
    """The loss of the batches of all ranks together (Zbontar et al. 2021, arXiv 2103.03230).

    Args:
      z1, z2: (n, D) projections of this rank's rows, row by row of the same pixels. Computed in float32 at least.
      split: `correlation.deviation`.

    Raises:
      BadInput: shapes that differ.
    """
    return terms_of(standardised(z1, rule), standardised(z2, rule), rule, split)


def terms_of(s1: Tensor, s2: Tensor, rule: BarlowRule, split: bool) -> BarlowTerms:
    """`barlow` of projections that are `standardised` already."""
    on, off = deviation(s1, s2, 1.0, rule.target, split)
    return BarlowTerms(on, off, on + rule.weight * off)
