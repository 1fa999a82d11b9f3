"""Mix: inputs mixed between the views must have correlations mixed alike (Bandara et al., arXiv 2312.02151)."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import BadInput
from model.losses.barlow import standardised, terms_of
from model.losses.correlation import deviation
from model.losses.reduce import rank, row_counts, rows_of_ranks
from model.losses.variants import BARLOW, MIX, BarlowRule, MixRule
from model.order import Permutation, key_of


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How the inputs of a step are mixed: x_m[i] = share * x1[i] + (1 - share) * x2[partner[i]].

    Attributes:
      share: of the first view, in 0..1, one for the whole batch.
      partner: int64 (N,) a permutation of the batch of all ranks.
    """

    share: float
    partner: NDArray[np.int64]

    def of_rank(self, rows: slice) -> NDArray[np.int64]:
        """The partners of a rank's rows (`order.share_of`), numbers of rows of the whole batch."""
        return self.partner[rows]


def draw_mixing(rows: int, seed: int, step: int, alpha: float = 1.0, beta: float = 1.0) -> Mixing:
    """The mixing of a step: share from Beta(alpha, beta), partners from a keyed permutation; the same on every rank.

    Args:
      rows: of the batch of all ranks.
      alpha, beta: 1 and 1, a uniform share, wherever the regulariser is published.

    Raises:
      BadInput: no rows, or parameters that are not above 0.
    """
    if min(alpha, beta) <= 0:
        raise BadInput(f"shares from Beta({alpha}, {beta}): both parameters must be above 0")
    key = key_of("share", seed, step)
    share = np.random.RandomState(int(key) >> 32).beta(alpha, beta)  # the legacy generator's stream is frozen
    return Mixing(float(share), Permutation(rows, int(key_of("partner", seed, step)))[np.arange(rows)])


def mix_tokens(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The hook of the encoder: tokens of two pixels, row by row, (N, T, d) each, as one series.

    It stands between the embedding with its day encoding and the first transformer layer. Mixed before, the input would
    have days such as 93.7, for which the day table has no row, or bands of one date under the day of another.

    Raises:
      BadInput: views of unequal lengths, which have no rows to pair.
    """
    if first.shape != second.shape:
        raise BadInput(
            f"tokens of shapes {tuple(first.shape)} and {tuple(second.shape)}: views that are mixed need one length"
        )
    return torch.lerp(second, first, share)


class MixedTerms(NamedTuple):
    """The whole loss and what it is made of, scalars that are the same on every rank.

    Attributes:
      on, off: `BarlowTerms`.
      mix: the regulariser, weighted.
      total: on + weight * off + mix, the loss.
    """

    on: Tensor
    off: Tensor
    mix: Tensor
    total: Tensor


def barlow_with_mix(
    z1: Tensor,
    z2: Tensor,
    z_mixed: Tensor,
    mixing: Mixing,
    rule: MixRule = MIX["readme"],
    barlow_rule: BarlowRule = BARLOW["standard"],
    split: bool = False,
) -> MixedTerms:
    """Barlow Twins and the regulariser together, with one standardisation of each view for both.

    With r = z_m - (a z1 + (1 - a) z2[s]), all standardised, C(z_m, z) less its target is r' z / N: two products in
    place of the six of the formula.

    Args:
      z1, z2: (n, D) projections of the two views of this rank's rows.
      z_mixed: (n, D) those of the mixed inputs.
      mixing: how these were mixed, for all ranks.
      barlow_rule: how columns are standardised, and the weight that this rule's is a multiple of.
      split: `correlation.deviation`.

    Raises:
      BadInput: shapes that differ, or a mixing of another number of rows than all ranks have.
    """
    s1, s2, mixed = _standardised(z1, z2, z_mixed, barlow_rule)
    on, off, total = terms_of(s1, s2, barlow_rule, split)
    regulariser = _regulariser(s1, s2, mixed, mixing, rule, barlow_rule, split)
    return MixedTerms(on, off, regulariser, total + regulariser)


def _standardised(z1: Tensor, z2: Tensor, z_mixed: Tensor, rule: BarlowRule) -> tuple[Tensor, Tensor, Tensor]:
    if not z_mixed.shape == z1.shape == z2.shape:
        shapes = ", ".join(str(tuple(z.shape)) for z in (z1, z2, z_mixed))
        raise BadInput(f"projections of shapes {shapes}: those of both views and of their mixture must be alike")
    return standardised(z1, rule), standardised(z2, rule), standardised(z_mixed, rule)


def _regulariser(
    s1: Tensor, s2: Tensor, mixed: Tensor, mixing: Mixing, rule: MixRule, barlow_rule: BarlowRule, split: bool
) -> Tensor:
    counts = row_counts(len(s1), s1.device)
    if len(mixing.partner) != sum(counts):
        raise BadInput(f"a mixing of {len(mixing.partner)} rows for a batch of {sum(counts)}")
    start = sum(counts[: rank()])
    partner = torch.from_numpy(mixing.of_rank(slice(start, start + len(s1)))).to(s1.device)
    s2_partner = rows_of_ranks(s2)[partner]

    def missed(own: Tensor) -> Tensor:
        """By how much the mixed view misses its aim; twice the rows where the aim's correlation gives no gradient.

        Then C is one product of both halves: all of the gradient goes through the first, z's own part of it included,
        and none through the second. Twice, because the mean is over twice the rows.
        """
        aim = mixing.share * own + (1 - mixing.share) * s2_partner
        return 2 * torch.cat([mixed, -aim.detach()]) if rule.detached else mixed - aim

    def squares(left: Tensor, against: Tensor) -> Tensor:
        right = torch.cat([against, against.detach()]) if rule.detached else against
        terms = deviation(left, right, 0.0, split=split)
        return terms.on + terms.off

    left = missed(s1)
    loss = squares(left, s1) + squares(
        left if rule.own == "z1" else missed(s2), s2 if rule.against == "z2" else s2_partner
    )
    return rule.weight * barlow_rule.weight * loss
