"""The graph: tiles of a plan -> blocks -> one embedding step -> a sweep per tile -> the run's end."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipeline.finish import finish_run
from transforms import inventory
from transforms.embed import inventory_of
from transforms.plans import BlockTask, Plan
from transforms.steps import REAL, EmbedBlock, OneTask, PlanTiles, SweepTile, Work
from transforms.storage import open_store


def tiles_of(plan: Plan) -> Iterator[str]:
    """The plan's tiles, from the store: a list of 18,400 names does not belong into a job request."""
    if plan.tiles:
        yield from json.loads(open_store(plan.out).get(f"_inputs/{plan.tiles}.tiles.json"))
    else:
        yield from inventory.read_header(inventory_of(plan)).tiles


@dataclasses.dataclass
class FinishRun(beam.DoFn):
    """Writes what a reader of the whole output starts from. Stands last; what it says comes from the store."""

    plan: Plan

    def process(self, tiles: int) -> Iterator[dict[str, Any]]:
        yield finish_run(self.plan)


@dataclasses.dataclass
class EmbedTiles(beam.PTransform):
    """Everything from a plan to published tiles.

    Four shuffles, all of small records: tiles over the workers (5 bytes each), blocks over the workers (45), a task of
    each tile to the sweep (45), their count. A tile is published by the worker that completes it, not behind the last
    two shuffles, which wait for the whole run.

    Attributes:
      work: what is done to tiles and blocks.
      spread_blocks: False to have a tile's blocks made one after another by one worker. Every distributed engine hands
        out the records of a shuffle in the order of random keys: of tiles of 36 blocks nearly all end towards the end
        of the run, and 88 % of all fragments wait on the store at worst (x - x^36 of them when the share x is done).
        Where there are many more tiles than workers, a tile a worker keeps only those of the tiles in work.
    """

    plan: Plan
    work: Work = REAL
    spread_blocks: bool = True

    def expand(self, begin: beam.Pipeline) -> beam.PCollection:
        blocks = (
            begin
            | "Plan" >> beam.Create([self.plan], reshuffle=False)  # one element: a shuffle of it would be for nothing
            | "Tiles" >> beam.FlatMap(tiles_of)
            | "SpreadTiles" >> beam.Reshuffle()
            | "PlanTiles" >> beam.ParDo(PlanTiles(self.plan, self.work))
        )
        if self.spread_blocks:
            blocks = blocks | "SpreadBlocks" >> beam.Reshuffle()
        return (
            blocks
            | "EmbedBlock" >> beam.ParDo(EmbedBlock(self.plan, self.work))
            | "ByTile" >> beam.CombinePerKey(OneTask()).with_output_types(tuple[str, BlockTask])
            | "SweepTile" >> beam.ParDo(SweepTile(self.plan, self.work))
            | "CountTiles" >> beam.combiners.Count.Globally()
            | "FinishRun" >> beam.ParDo(FinishRun(self.plan))
        )
