"""The graph of the shards verb: blocks, sampled, shuffled over all tiles, written as shards, told in a manifest."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from model.shards import MANIFEST, Shard, manifest_from_json
from transforms.grid import Block, blocks_of
from transforms.sampling import KEPT, REASONS, SAMPLED, WORK, SamplePlan, open_worker, sample_block
from transforms.shuffle import GlobalShuffle, ShufflePlan, pieces_of
from transforms.storage import open_store

PLAN, HEAD, TILES, RESULT = (f"{WORK}/{name}.json" for name in ("plan", "manifest", "tiles", "result"))


@dataclasses.dataclass
class SampleBlock(beam.DoFn):
    """Blocks to (bucket, records as bytes); `counts` and `failed` beside them. What was read never leaves the step."""

    plan: SamplePlan
    shared: Shared = dataclasses.field(default_factory=Shared)

    def setup(self) -> None:
        self.worker = self.shared.acquire(lambda: open_worker(self.plan), tag=self.plan.out)

    def process(self, block: Block) -> Iterator[Any]:
        found = sample_block(self.worker, block)
        for name, n in found.counts.items():
            yield beam.pvalue.TaggedOutput("counts", (name, n))
        if found.failure is not None:
            yield beam.pvalue.TaggedOutput("failed", json.dumps(found.failure))
        yield from pieces_of(found.records, self.plan.seed, self.plan.bits)


@dataclasses.dataclass
class WriteManifest(beam.DoFn):
    """Writes what the set is, when all of its shards are there: a folder without a manifest is no set."""

    out: str

    def process(
        self, _: None, entries: Sequence[tuple[int, str]], counts: Mapping[str, int], failed: Sequence[str]
    ) -> Iterator[str]:
        store = open_store(self.out)
        manifest = manifest_from_json(store.get(HEAD))
        shards = tuple(Shard(**json.loads(entry)) for _, entry in sorted(entries))
        failures = sorted((json.loads(f) for f in failed), key=lambda f: (f["tile"], f["row_px"], f["col_px"]))
        said: dict[str, Any] = {name: counts.get(name, 0) for name in (SAMPLED, KEPT)}
        said["left_out"] = {reason: counts.get(reason, 0) for reason in REASONS}
        manifest = dataclasses.replace(manifest, shards=shards, counts=said, failed=tuple(failures))
        store.replace(RESULT if not shards else MANIFEST, manifest.to_json().encode())
        yield MANIFEST


@dataclasses.dataclass
class MakeShards(beam.PTransform):
    """Everything from a plan to a set of shards: blocks spread over the workers, sampled, shuffled, written, told."""

    plan: SamplePlan

    def expand(self, begin: beam.Pipeline) -> beam.PCollection:
        plan = self.plan
        sampled = (
            begin
            | "Plan" >> beam.Create([plan.out], reshuffle=False)
            | "Tiles" >> beam.FlatMap(lambda out: json.loads(open_store(out).get(TILES)))
            | "Blocks" >> beam.FlatMap(blocks_of, plan.block_px)
            | "SpreadBlocks" >> beam.Reshuffle()
            | "Sample" >> beam.ParDo(SampleBlock(plan)).with_outputs("counts", "failed", main="pieces")
        )
        shuffle = ShufflePlan(plan.out, plan.seed, plan.bits, plan.bucket_bytes, plan.shard_records)
        entries = sampled.pieces | "Shuffle" >> GlobalShuffle(shuffle)
        counts = sampled.counts | "SumCounts" >> beam.CombinePerKey(sum)
        return (
            begin
            | "End" >> beam.Create([None], reshuffle=False)
            | "WriteManifest"
            >> beam.ParDo(
                WriteManifest(plan.out),
                beam.pvalue.AsList(entries),
                beam.pvalue.AsDict(counts),
                beam.pvalue.AsList(sampled.failed),
            )
        )
