"""The graph: tiles of a plan -> blocks -> one embedding step -> a sweep per tile -> the run's end."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipeline.finish import finish_run
from transforms import inventory
from transforms.embed import inventory_of
from transforms.plans import Plan
from transforms.steps import EmbedBlock, PlanTiles, SweepTile
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

    Three shuffles, all of small records: tiles over the workers, blocks over the workers, outcomes by tile. A tile is
    published by the worker that completes it, not behind the last shuffle, which waits for the whole run.
    """

    plan: Plan

    def expand(self, begin: beam.Pipeline) -> beam.PCollection:
        return (
            begin
            | "Plan" >> beam.Create([self.plan], reshuffle=False)  # one element: a shuffle of it would be for nothing
            | "Tiles" >> beam.FlatMap(tiles_of)
            | "SpreadTiles" >> beam.Reshuffle()
            | "PlanTiles" >> beam.ParDo(PlanTiles(self.plan))
            | "SpreadBlocks" >> beam.Reshuffle()
            | "EmbedBlock" >> beam.ParDo(EmbedBlock(self.plan))
            | "ByTile" >> beam.GroupByKey()
            | "SweepTile" >> beam.ParDo(SweepTile(self.plan))
            | "CountTiles" >> beam.combiners.Count.Globally()
            | "FinishRun" >> beam.ParDo(FinishRun(self.plan))
        )
