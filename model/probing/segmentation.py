"""Segmentation: patches of embeddings in, a class for every pixel out, by a small UNet or by each pixel alone."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.errors import BadInput
from model.probing import heads, scores, splits
from model.probing.labels import CLASSIFICATION, SEGMENTATION, Labels
from model.probing.scores import Sums

UNET = "unet"
HEADS = (UNET, "linear")
WIDTH = 32  # channels at full size; twice as many at half size, four times at a quarter
STEPS = 200
BATCH = 8
RATE = 3e-3
DECAY = 1e-4
MOST_PIXELS = 5000  # labelled pixels that a head of single pixels is fitted on
OUTSIDE = -1  # class of a place of a patch that has no record or no embedding


@dataclasses.dataclass(frozen=True)
class Patches:
    """Where the records of a set lie in its patches.

    Attributes:
      names: (P,) of the patches. at: int64 (P, H, W) numbers of labelled records, OUTSIDE where there is none; all
        patches are filled up to the size of the largest, and that to a multiple of four.
      group: (P,) of the patches.
    """

    names: NDArray[np.str_]
    at: NDArray[np.int64]
    group: NDArray[np.str_]


def patches_of(labels: Labels) -> Patches:
    """Puts the labelled records into their patches.

    Raises:
      BadInput: two records in one place, a negative row or column, a patch of two groups.
    """
    assert labels.patch is not None and labels.row is not None and labels.col is not None
    names, patch = np.unique(labels.patch, return_inverse=True)
    if min(labels.row.min(), labels.col.min()) < 0:
        raise BadInput(f"probe set {labels.name}: rows and columns in a patch are counted from 0")
    height, width = (-(-(int(v.max()) + 1) // 4) * 4 for v in (labels.row, labels.col))
    at = np.full((len(names), height, width), OUTSIDE, np.int64)
    at[patch, labels.row, labels.col] = np.arange(len(labels))
    if (at >= 0).sum() != len(labels):
        raise BadInput(f"probe set {labels.name}: two records lie in one place of a patch")
    group = np.array([labels.group[patch == p][0] for p in range(len(names))])
    if (group[patch] != labels.group).any():
        raise BadInput(f"probe set {labels.name}: a patch has records of two groups")
    return Patches(names, at, group)


class PatchTask:
    """Segmentation of patches: a patch has its most frequent class where it is stratified by."""

    task = SEGMENTATION

    def __init__(self, labels: Labels) -> None:
        self._patches = patches_of(labels)
        classes = splits.strata_of(labels.label)
        self.classes = int(classes.max()) + 1
        at = self._patches.at
        self._y = np.where(at >= 0, classes[at], OUTSIDE)
        counts = np.stack([(self._y == c).sum((1, 2)) for c in range(self.classes)], axis=1)
        self.strata = np.unique(counts.argmax(1), return_inverse=True)[1].astype(np.int64)
        self.groups = self._patches.group
        self.test: NDArray[np.bool_] | None = None
        if labels.test is not None:
            first = [int(p[p >= 0][0]) for p in at]
            self.test = labels.test[first]

    def sums(
        self,
        head: str,
        x: NDArray[np.float32],
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        seed: int,
        blocks: tuple[int, ...],
    ) -> Sums:
        """(G, C, C) truth by guess of the pixels of the patches `test`, by their groups in the order of their names."""
        at, y = self._patches.at, self._y
        if head == UNET:
            guess = _unet(x, at, y, train, test, self.classes, seed)
        else:
            guess = _pixels(head, x, at, y, train, test, self.groups, seed, blocks)
        group = np.unique(self.groups[test], return_inverse=True)[1].astype(np.int64)
        truth = y[test]
        where = truth >= 0
        spread = np.broadcast_to(group[:, None, None], truth.shape)
        return scores.confusions(truth[where], guess[where], spread[where], self.classes)


def _pixels(
    head: str,
    x: NDArray[np.float32],
    at: NDArray[np.int64],
    y: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    groups: NDArray[np.str_],
    seed: int,
    blocks: tuple[int, ...],
) -> NDArray[np.int64]:
    known = y[train] >= 0
    rows, classes = at[train][known], y[train][known]
    of = np.broadcast_to(groups[train][:, None, None], known.shape)[known]
    some = np.sort(splits.shuffled(len(rows), "pixels", seed)[:MOST_PIXELS])
    out = np.zeros(y[test].shape, np.int64)
    seen = y[test] >= 0
    out[seen] = heads.predict(
        head, CLASSIFICATION, x[rows[some]], classes[some], of[some], x[at[test][seen]], seed, blocks
    )
    return out


class UNet(nn.Module):
    """Two halvings and back, with what was there before each halving put beside what comes back: (B, D, H, W) to
    (B, classes, H, W)."""

    def __init__(self, dims: int, classes: int, width: int) -> None:
        super().__init__()
        self.first = _convolutions(dims, width)
        self.middle = _convolutions(width, 2 * width)
        self.bottom = _convolutions(2 * width, 4 * width)
        self.up_half = _convolutions(6 * width, 2 * width)
        self.up = _convolutions(3 * width, width)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.first(x)  # (B, w, H, W)
        half = self.middle(F.max_pool2d(whole, 2))  # (B, 2w, H/2, W/2)
        quarter = self.bottom(F.max_pool2d(half, 2))  # (B, 4w, H/4, W/4)
        back = self.up_half(torch.cat([half, F.interpolate(quarter, scale_factor=2.0)], dim=1))
        logits: Tensor = self.out(self.up(torch.cat([whole, F.interpolate(back, scale_factor=2.0)], dim=1)))
        return logits


def _convolutions(dims: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (dims, width):
        # Norms over groups of channels: batches are small, and a batch norm would differ between fit and test.
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(min(8, width), width), nn.GELU()]
    return nn.Sequential(*layers)


def _unet(
    x: NDArray[np.float32],
    at: NDArray[np.int64],
    y: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    classes: int,
    seed: int,
) -> NDArray[np.int64]:
    """Fits the UNet on the patches `train`; the classes (P, H, W) of the patches `test`."""
    there = at[train] >= 0
    fit, all_ = heads.standardised(x[at[train][there]].astype(np.float64), x.astype(np.float64))
    if not fit.shape[1]:
        all_ = np.zeros((len(x), 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(all_.shape[1], classes, WIDTH)
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
        truth = torch.from_numpy(y)
        count = np.bincount(y[train][y[train] >= 0], minlength=classes)
        weight = torch.from_numpy(np.where(count > 0, 1 / np.sqrt(np.maximum(count, 1)), 0)).float()
        order: list[int] = []
        for _ in range(STEPS):
            if len(order) < BATCH:
                order += train[torch.randperm(len(train)).numpy()].tolist()
            some, order = order[:BATCH], order[BATCH:]
            image, wanted = _maps(all_, at[some]), truth[some]
            turns, mirrored = (int(v) for v in torch.randint(0, 4, (2,)))
            if image.shape[2] != image.shape[3]:
                turns = 2 * (turns // 2)
            image, wanted = torch.rot90(image, turns, (2, 3)), torch.rot90(wanted, turns, (1, 2))
            if mirrored % 2:
                image, wanted = image.flip(3), wanted.flip(2)
            loss = F.cross_entropy(net(image), wanted, weight, ignore_index=OUTSIDE)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            parts = [net(_maps(all_, at[test[a : a + BATCH]])).argmax(1) for a in range(0, len(test), BATCH)]
        guess: NDArray[np.int64] = torch.cat(parts).numpy()
    return guess


def _maps(x: NDArray[np.float64], at: NDArray[np.int64]) -> Tensor:
    """(P, D, H, W) of features (N, D); zeros, which are their mean, where there is no record."""
    picked = x[np.maximum(at, 0)] * (at >= 0)[..., None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(picked, -1, 1))).float()
