"""Steps: the Beam transforms over planning, embedding and sweeping; each is thin over a function of `embed`."""

import dataclasses
import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.coders import registry as coders
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from transforms import logs, metrics
from transforms.embed import embed_block, open_worker, stop_name
from transforms.grid import Block
from transforms.plans import BlockTask, Plan, desk_of
from transforms.publish import published_revision
from transforms.receipts import DONE, Receipt
from transforms.storage import Store, open_store
from transforms.tiles import plan_tile, publish_if_complete

# Tile, row, column, height, width, revision; the clip's 32 bytes follow where there is one. Sides are under 2^16 px.
_TASK = struct.Struct("<5s4H32s")


class BlockTaskCoder1(Coder):
    """A BlockTask as 45 or 77 bytes, format 1: pickled it is five times as large, and it lies in every shuffle.

    Deterministic, so that a task may be a key too.
    """

    def encode(self, value: BlockTask) -> bytes:
        """Raises ValueError for a task that is not of such names and digests."""
        b = value.block
        tile, revision, clip = b.tile.encode(), bytes.fromhex(value.revision), bytes.fromhex(value.clip)
        if len(tile) != 5 or len(revision) != 32 or len(clip) not in (0, 32):  # struct would cut or fill up
            raise ValueError(f"{value}: a tile's name has 5 letters, a digest 64 digits")
        return _TASK.pack(tile, b.row_px, b.col_px, b.height_px, b.width_px, revision) + clip

    def decode(self, encoded: bytes) -> BlockTask:
        tile, row, col, height, width, revision = _TASK.unpack_from(encoded)
        return BlockTask(Block(tile.decode(), row, col, height, width), revision.hex(), encoded[_TASK.size :].hex())

    def estimate_size(self, value: BlockTask) -> int:
        return _TASK.size + len(value.clip) // 2

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type[BlockTask]:
        return BlockTask

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


coders.register_coder(BlockTask, BlockTaskCoder1)


class Work:
    """What the steps do to tiles and blocks. A rehearsal of the graph puts what costs nothing in its place."""

    def plan(self, plan: Plan, tile: str) -> Sequence[BlockTask]:
        """The blocks that a tile still needs."""
        return plan_tile(plan, tile)

    def open(self, plan: Plan) -> Any:
        """What a process holds for a run: the worker that the other two are given."""
        return open_worker(plan)

    def block(self, worker: Any, task: BlockTask) -> Receipt:
        """Makes a block."""
        return embed_block(worker, task)

    def publish(self, worker: Any, task: BlockTask) -> bool:
        """Publishes the tile of a block when all of its blocks are done."""
        return publish_if_complete(worker, task)


REAL = Work()


def counted(amounts: Mapping[str, int]) -> None:
    """Adds to the run's counters. Only ever from `process`: a thread of our own would count in vain."""
    for name, amount in amounts.items():
        _counter(name).inc(amount)


@functools.cache  # made anew for every block they cost more than all else that Beam does with it
def _counter(name: str) -> Any:
    return Metrics.counter(metrics.NAMESPACE, name)


@dataclasses.dataclass
class PlanTiles(beam.DoFn):
    """Tile names to the blocks that they still need; one look at the store a tile, on the workers."""

    plan: Plan
    work: Work = REAL

    def process(self, tile: str) -> Iterator[BlockTask]:
        tasks = self.work.plan(self.plan, tile)
        counted({metrics.TILES_TO_DO if tasks else metrics.TILES_PUBLISHED_BEFORE: 1})
        yield from tasks


@dataclasses.dataclass
class EmbedBlock(beam.DoFn):
    """Blocks to (tile, block) of those that were begun: the whole chain in one step, so that no pixel ever leaves it.

    The session and the reader pool are the process's own, shared by its threads.
    """

    plan: Plan
    work: Work = REAL
    shared: Shared = dataclasses.field(default_factory=Shared)

    def setup(self) -> None:
        self.store: Store = open_store(self.plan.out)
        self.worker = self.shared.acquire(lambda: self.work.open(self.plan), tag=self.plan.run)

    def process(self, task: BlockTask) -> Iterator[tuple[str, BlockTask]]:
        if self._needed(task):
            receipt = self.work.block(self.worker, task)
            counted(metrics.amounts_of(receipt))
            logs.block_ended(receipt)
            if receipt.status == DONE and self.work.publish(self.worker, task):
                counted({metrics.TILES_PUBLISHED: 1})
                logs.tile_published(task.block.tile, self.plan.period, task.revision, swept=False)
            yield task.block.tile, task

    def _needed(self, task: BlockTask) -> bool:
        plan = self.plan
        if self.store.stat(stop_name(plan.run)) is not None:
            counted({metrics.BLOCKS_NOT_BEGUN: 1})
            return False
        # Published meanwhile: by a bundle that ran before this one, and twice.
        there = published_revision(self.store, task.block.tile, plan.period, plan.model_name)
        return plan.force or there != task.revision


class OneTask(beam.CombineFn):
    """The first of a tile's tasks: all that a sweep needs to know. What is shuffled is one task a tile and bundle.

    Any task of a tile would do. The first is the same one however they are bundled.
    """

    def create_accumulator(self) -> BlockTask | None:
        return None

    def add_input(self, mutable_accumulator: BlockTask | None, element: BlockTask) -> BlockTask:
        first = mutable_accumulator
        return element if first is None or element.block < first.block else first

    def merge_accumulators(self, accumulators: Iterable[BlockTask | None]) -> BlockTask | None:
        return min((task for task in accumulators if task is not None), default=None)

    def extract_output(self, accumulator: BlockTask | None) -> BlockTask | None:
        return accumulator

    def get_accumulator_coder(self) -> Coder:
        return BlockTaskCoder1()  # what leaves a bundle has had an input; Beam would pickle it


@dataclasses.dataclass
class SweepTile(beam.DoFn):
    """Publishes a complete tile whose publisher died. Stands behind a shuffle, hence after all blocks."""

    plan: Plan
    work: Work = REAL
    shared: Shared = dataclasses.field(default_factory=Shared)

    def process(self, element: tuple[str, BlockTask]) -> Iterator[str]:
        tile, task = element
        store = open_store(self.plan.out)
        if published_revision(store, tile, self.plan.period, self.plan.model_name) != task.revision:
            statuses = desk_of(self.plan, task).statuses(store)
            if statuses and all(s == DONE for s in statuses.values()):
                worker = self.shared.acquire(lambda: self.work.open(self.plan), tag=self.plan.run)
                if self.work.publish(worker, task):
                    counted({metrics.TILES_PUBLISHED: 1, metrics.TILES_SWEPT: 1})
                    logs.tile_published(tile, self.plan.period, task.revision, swept=True)
        yield tile
