"""Variants: the forms in which the literature and its code state each loss, by name, and why the default is one."""

import dataclasses
from collections.abc import Mapping

from model.errors import BadInput


@dataclasses.dataclass(frozen=True)
class BarlowRule:
    """A form of the Barlow Twins loss: sum (C_ii - 1)^2 + weight * sum_{i != j} (C_ij - target)^2.

    Attributes:
      weight: of the off-diagonal terms, the literature's lambda.
      target: of the off-diagonal correlations.
      epsilon: added to a column's variance.
      unbiased: variance over N - 1, while C is over N: its diagonal ends at (N - 1) / N.
      floor: least deviation that a column is divided by.
      why: the reason for it, or against it.
    """

    weight: float = 5e-3
    target: float = 0.0
    epsilon: float = 0.0
    unbiased: bool = False
    floor: float = 0.0
    why: str = ""


@dataclasses.dataclass(frozen=True)
class MixRule:
    """A form of the mix regulariser: how far correlations of mixed inputs are from mixtures of correlations.

    With z_m of the mixed input, share a, partners s and r = z_m - (a z1 + (1 - a) z2[s]) every form is a sum of two
    ||r' z||^2, for C(z_m, z) less its target is r' z / N.

    Attributes:
      weight: of the regulariser, times the Barlow rule's own.
      own: the view that stands for the first input in the second term's r, "z1" or "z2".
      against: the view that the second term's r is correlated with, "z2" or "z2[s]".
      detached: targets give no gradient.
      why: the reason for it, or against it.
    """

    weight: float = 1.0
    own: str = "z1"
    against: str = "z2"
    detached: bool = False
    why: str = ""


BARLOW: Mapping[str, BarlowRule] = {
    "standard": BarlowRule(
        epsilon=1e-5,
        why="the default: the paper's and its code's (facebookresearch/barlowtwins, batch norm's deviation), with the "
        "weight that TESSERA and lightly use; the code has 0.0051. A diagonal of 1 can be reached",
    ),
    "tessera-util": BarlowRule(
        unbiased=True,
        floor=1e-9,
        why="ucam-eo/tessera-util: the diagonal ends at (N - 1) / N, so equal views have a loss; a column that is "
        "nearly constant is blown up to deviation 1, noise and all, where the default leaves it small",
    ),
    "btfm": BarlowRule(
        weight=5e-4,
        epsilon=1e-5,
        why="the 2024 prototype (rbnyng/btfm): a tenth of the weight; for narrow projectors, with fewer terms to weigh",
    ),
    "hsic": BarlowRule(
        target=-1.0,
        epsilon=1e-5,
        why="Tsai et al. 2021 (arXiv 2104.13712): off-diagonal towards -1, as HSIC asks. They cannot all be -1, "
        "so the loss has no zero, and the wider the projector the more of it is that constant",
    ),
}

MIX: Mapping[str, MixRule] = {
    "readme": MixRule(
        why="the default: wgcban/mix-bt's README and CIFAR script. It is what linearity implies: were mixing linear, "
        "r would be 0, and both terms ask for that one r. Targets are not detached, as published",
    ),
    "imagenet": MixRule(
        weight=0.05,  # 0.5 of its script times the best weight that it reports, 0.1
        own="z2",
        why="wgcban/mix-bt's ImageNet script: a C(z2, z2) where the README has a C(z1, z2). The two agree only where "
        "the views do; its weight is small and warmed up over 10 epochs there",
    ),
    "tessera-util": MixRule(
        against="z2[s]",
        why="ucam-eo/tessera-util: the second term against the permuted view. The same r, other rows to weigh it",
    ),
    "detached": MixRule(
        detached=True,
        why="the usual caution with targets that move; not what the field publishes, and r pulls on z_m alone",
    ),
}


def barlow_rule(name: str) -> BarlowRule:
    """Raises BadInput for a name that is not in `BARLOW`."""
    if name not in BARLOW:
        raise BadInput(f"Barlow variant {name!r}: this release has {', '.join(BARLOW)}")
    return BARLOW[name]


def mix_rule(name: str) -> MixRule:
    """Raises BadInput for a name that is not in `MIX`."""
    if name not in MIX:
        raise BadInput(f"mix variant {name!r}: this release has {', '.join(MIX)}")
    return MIX[name]
