"""Steps: the Beam transforms over planning, embedding and sweeping; each is thin over a function of `embed`."""

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from transforms.embed import Worker, embed_block, open_worker, stop_name
from transforms.plans import BlockTask, Plan, desk_of
from transforms.publish import published_revision
from transforms.receipts import DONE
from transforms.storage import open_store
from transforms.tiles import plan_tile, publish_if_complete

NAMESPACE = "tessera"  # of the counters; they show progress, the truth is the receipts


@dataclasses.dataclass
class PlanTiles(beam.DoFn):
    """Tile names to the blocks that they still need; one look at the store a tile, on the workers."""

    plan: Plan

    def process(self, tile: str) -> Iterator[BlockTask]:
        tasks = plan_tile(self.plan, tile)
        Metrics.counter(NAMESPACE, "tiles_to_do" if tasks else "tiles_published_before").inc()
        yield from tasks


@dataclasses.dataclass
class EmbedBlock(beam.DoFn):
    """Blocks to (tile, status): the whole chain in one step, so that no pixel ever leaves it.

    The session and the reader pool are the process's own, shared by its threads.
    """

    plan: Plan
    shared: Shared = dataclasses.field(default_factory=Shared)

    def setup(self) -> None:
        self.worker: Worker = self.shared.acquire(lambda: open_worker(self.plan), tag=self.plan.run)

    def process(self, task: BlockTask) -> Iterator[tuple[str, tuple[str, BlockTask]]]:
        if self._needed(task):
            receipt = embed_block(self.worker, task)
            Metrics.counter(NAMESPACE, f"blocks_{receipt.status}").inc()
            Metrics.counter(NAMESPACE, "pixels_embedded").inc(receipt.counts.get("embedded", 0))
            if receipt.status == DONE:
                publish_if_complete(self.worker, task)
            yield task.block.tile, (receipt.status, task)

    def _needed(self, task: BlockTask) -> bool:
        plan, store = self.plan, self.worker.store
        if store.stat(stop_name(plan)) is not None:
            Metrics.counter(NAMESPACE, "blocks_not_begun").inc()
            return False
        # Published meanwhile: by a bundle that ran before this one, and twice.
        there = published_revision(store, task.block.tile, plan.period, plan.model_name)
        return plan.force or there != task.revision


@dataclasses.dataclass
class SweepTile(beam.DoFn):
    """Publishes a complete tile whose publisher died. Stands behind a GroupByKey, hence after all blocks."""

    plan: Plan
    shared: Shared = dataclasses.field(default_factory=Shared)

    def process(self, element: tuple[str, Iterable[tuple[str, BlockTask]]]) -> Iterator[str]:
        tile, outcomes = element
        task = next(iter(outcomes))[1]
        store = open_store(self.plan.out)
        if published_revision(store, tile, self.plan.period, self.plan.model_name) != task.revision:
            statuses = desk_of(self.plan, task).statuses(store)
            if statuses and all(s == DONE for s in statuses.values()):
                publish_if_complete(self.shared.acquire(lambda: open_worker(self.plan), tag=self.plan.run), task)
        yield tile
