"""Feed: the batches of a training, from any step on, as views that the encoder takes."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.order import batches
from model.shards import Batch, ShardSet
from model.training.schedule import position
from model.views import View, ViewRule, take, two_views

Item = TypeVar("Item")
Array = TypeVar("Array")


class Inputs(NamedTuple, Generic[Array]):
    """What an encoder takes of n pixels, raw, in the order of its arguments: arrays or tensors.

    Attributes:
      s2: uint16 (n, T2, 10). s2_doy: int16 (n, T2).
      s1: int16 (n, T1, 2). s1_orbit: uint8 (n, T1). s1_doy: int16 (n, T1).
    """

    s2: Array
    s2_doy: Array
    s1: Array
    s1_orbit: Array
    s1_doy: Array


Draw = Callable[[Batch, int, int], tuple[View, View]]  # of a batch, its epoch and step


@dataclasses.dataclass(frozen=True)
class Fed:
    """A rank's part of one step.

    Attributes:
      step, epoch: of the training, from 0.
      index: int64 (n,) numbers of the records.
      first, second: the views.
    """

    step: int
    epoch: int
    index: NDArray[np.int64]
    first: Inputs[NDArray[np.generic]]
    second: Inputs[NDArray[np.generic]]


def pairs(rule: ViewRule, seed: int) -> Draw:
    """Two views of one kind, for the self-supervised losses."""

    def draw(batch: Batch, epoch: int, step: int) -> tuple[View, View]:
        return two_views(batch.s2_valid, batch.s1_valid, batch.index, rule, seed, epoch, step)

    return draw


def taught(rule: ViewRule, teacher: ViewRule, seed: int) -> Draw:
    """A student's view and its teacher's, each by a rule of its own: what the student does not see is another draw."""

    def draw(batch: Batch, epoch: int, step: int) -> tuple[View, View]:
        given = batch.s2_valid, batch.s1_valid, batch.index
        return two_views(*given, rule, seed, epoch, step)[0], two_views(*given, teacher, seed, epoch, step)[1]

    return draw


def seen(batch: Batch, view: View) -> Inputs[NDArray[np.generic]]:
    """The observations that a view has drawn."""
    return Inputs(
        take(batch.s2, view.s2),
        take(batch.s2_doy, view.s2),
        take(batch.s1, view.s1),
        take(batch.s1_orbit, view.s1),
        take(batch.s1_doy, view.s1),
    )


def feed(
    shards: ShardSet,
    draw: Draw,
    seed: int,
    batch: int,
    steps: range,
    rank: int = 0,
    world: int = 1,
    stored: bool = False,
) -> Iterator[Fed]:
    """A rank's parts of these steps, in their order; epoch after epoch where there are so many.

    What all ranks together get at a step depends on the step alone: neither on where the training began, nor on how
    many they are.

    Args:
      stored: as of `order.batches`.

    Raises:
      BadInput: as `order.batches`, or a shard that is damaged or gone.
    """
    step = steps.start
    while step < steps.stop:
        epoch, start = position(step, len(shards), batch)
        for index in batches(len(shards), seed, epoch, batch, rank, world, start, stored):
            if step >= steps.stop:
                return
            records = shards.take(index)
            first, second = (seen(records, view) for view in draw(records, epoch, step))
            yield Fed(step, epoch, index, first, second)
            step += 1


def made_ahead(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The same items, up to `ahead` of them made by another thread while one is worked on."""
    if not ahead:
        yield from items
        return
    source = iter(items)
    waiting: collections.deque[Future[list[Item]]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:  # one thread: it takes them in their order

        def begin() -> None:
            waiting.append(pool.submit(lambda: list(itertools.islice(source, 1))))

        for _ in range(ahead):
            begin()
        while item := waiting.popleft().result():
            begin()
            yield item[0]
