"""RankMe: how many directions a batch of embeddings fills, the sign of a collapse that the loss does not show."""

import torch
from torch import Tensor

from model.losses.reduce import in_full

EPSILON = 1e-7  # added to every share, as published


@torch.no_grad()
def rankme(z: Tensor) -> float:
    """The effective rank of a batch: exp of the entropy of its singular values (Garrido et al., arXiv 2210.02885).

    Args:
      z: (N, D), uncentred, as published. Of one rank's rows or, with `rows_of_ranks`, of all; it grows with N, and
        never beyond the lesser of N and D.

    Returns:
      1 (one direction) to min(N, D) (all alike); 0 where `z` is all zeros; NaN where it holds NaN or infinity.
    """
    z = in_full(z)
    if not bool(torch.isfinite(z).all()):
        return float("nan")
    singular = torch.linalg.svdvals(z).double()
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total + EPSILON
    return float(torch.exp(-(share * share.log()).sum()))
