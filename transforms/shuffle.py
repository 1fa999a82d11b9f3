"""Shuffle: records of the whole Earth into shards of equal size, in an order that a seed alone gives, in two passes.

A record's place is a keyed hash of (seed, tile, row, column). The first pass sends it to the bucket of the hash's
highest bits. The second sorts a bucket, cuts whole shards off it, and hands on the rest, which is less than a shard;
the rests of all buckets, put one behind the other, are cut into shards too. Where they are cut follows from the counts
of all buckets, so that neither the engine nor its workers have a say in any byte.

A worker holds a bucket twice, as pieces and in one, and four copies of a shard: 660 MB of a bucket of 256 MB, measured.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.order import hashed, key_of
from model.records import Records, Rows, chosen, count_in, rows_in, to_bytes
from model.shards import parts_of, shard_name
from transforms.storage import open_store

MOST_BITS = 20  # a million buckets; the side input of their counts is some MB then
PIECE_RECORDS = 256  # that travel together: some 0.6 MB; engines want elements of some MB at most
TOO_LARGE = 4  # times what a bucket was expected to take at most, from where on it is refused


@dataclasses.dataclass(frozen=True)
class ShufflePlan:
    """A shuffle, as every worker must know it.

    Attributes:
      out: folder or URL of the shards. seed: of the order. bits: of the hash that choose the bucket.
      bucket_bytes: that a bucket takes at most, as expected. shard_records: of every shard but the last.
    """

    out: str
    seed: int
    bits: int
    bucket_bytes: int
    shard_records: int


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Where the buckets are cut into shards: whole shards of all buckets first, then those of the joined rests.

    Attributes:
      counts: bucket -> its records.
      size: records of a shard.
    """

    counts: Mapping[int, int]
    size: int

    @property
    def shards(self) -> int:
        return -(-sum(self.counts.values()) // self.size)

    def first_shard(self, bucket: int) -> int:
        """The number of a bucket's first whole shard, or what it would be."""
        return sum(n // self.size for b, n in self.counts.items() if b < bucket)

    def rest_begins(self, bucket: int) -> int:
        """Where a bucket's rest begins among the joined rests."""
        return sum(n % self.size for b, n in self.counts.items() if b < bucket)

    @property
    def first_joined(self) -> int:
        """The number of the first shard that is made of rests."""
        return sum(n // self.size for n in self.counts.values())


class Written(NamedTuple):
    """A shard that was written: its number, its entry of the manifest."""

    number: int
    entry: dict[str, Any]


class Rest(NamedTuple):
    """A piece of a bucket's rest: the number of its shard, its place among the joined rests, records as bytes."""

    number: int
    place: int
    data: bytes


def bits_for(expected_bytes: int, bucket_bytes: int) -> int:
    """How many bits choose the bucket, so that one takes `bucket_bytes` at most, as expected.

    Raises:
      BadInput: there would be more buckets than can be told apart.
    """
    bits = max(0, -(-expected_bytes // bucket_bytes) - 1).bit_length()
    if bits > MOST_BITS:
        raise BadInput(f"{expected_bytes / 1e12:.1f} TB in buckets of {bucket_bytes >> 20} MB: enlarge --bucket-mb")
    return bits


def hashes_of(
    tile: NDArray[np.bytes_], row_px: NDArray[np.int32], col_px: NDArray[np.int32], seed: int
) -> NDArray[np.uint64]:
    """(N,) of the tile, row and column (N,) of each record: its place in the order."""
    at = (row_px.astype(np.int64).astype(np.uint64) << np.uint64(32)) + col_px.astype(np.uint64)
    out = np.empty(len(tile), np.uint64)
    for name in np.unique(tile):
        here = tile == name
        out[here] = hashed(np.full(1, key_of("shuffle", seed, name.decode())), at[here])
    return out


def pieces_of(records: Records, seed: int, bits: int) -> Iterator[tuple[int, bytes]]:
    """(bucket, some of its records as bytes), for the first pass."""
    if not len(records):
        return
    # In two steps, for a shift by 64 is undefined.
    hashes = hashes_of(records.tile, records.row_px, records.col_px, seed)
    bucket = (hashes >> np.uint64(1) >> np.uint64(63 - bits)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.flatnonzero(np.diff(bucket[order])) + 1
    for part in np.split(order, ends):
        for start in range(0, len(part), PIECE_RECORDS):
            yield int(bucket[part[0]]), to_bytes(chosen(records, part[start : start + PIECE_RECORDS]))


def order_of(heads: NDArray[np.void], seed: int) -> NDArray[np.int64]:
    """(N,) which record comes first, second, ..: by hash; should two be alike, by tile, row and column."""
    tile, row, col = heads["tile"], heads["row_px"], heads["col_px"]
    order: NDArray[np.int64] = np.lexsort((col, row, tile, hashes_of(tile, row, col, seed)))
    return order


def bucket_of(pieces: Iterable[bytes], plan: ShufflePlan) -> Rows:
    """The records of a bucket, as they come.

    Raises:
      BadInput: the bucket is much larger than was expected.
    """
    held, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > TOO_LARGE * plan.bucket_bytes:
            raise BadInput(
                f"a bucket of the shuffle has more than {TOO_LARGE} times the {plan.bucket_bytes >> 20} MB that were "
                "expected: delete the folder and run again with a smaller --bucket-mb, which makes more buckets"
            )
        held.append(piece)
    return rows_in(held)


def put_shard(plan: ShufflePlan, number: int, count: int, records: Records) -> dict[str, Any]:
    """Writes a shard to the output; it is there whole or not at all. Returns its entry of the manifest."""
    digest, size, name = hashlib.sha256(), 0, shard_name(number, count)
    with open_store(plan.out).writer(name) as file:
        for piece in parts_of(records):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return {"name": name, "records": len(records), "bytes": size, "sha256": digest.hexdigest()}


def cut_bucket(plan: ShufflePlan, cuts: Cuts, bucket: int, pieces: Iterable[bytes]) -> Iterator[Written | Rest]:
    """Writes the whole shards of a bucket; yields each of them, then the rest in pieces.

    Raises:
      BadInput: as `bucket_of`.
    """
    rows = bucket_of(pieces, plan)
    order = order_of(rows.heads, plan.seed)
    size, first = plan.shard_records, cuts.first_shard(bucket)
    whole = len(order) // size
    for n in range(whole):
        part = rows.picked(order[n * size : (n + 1) * size])
        yield Written(first + n, put_shard(plan, first + n, cuts.shards, part))
    at, place = whole * size, cuts.rest_begins(bucket)
    while at < len(order):
        n = min(PIECE_RECORDS, len(order) - at, size - place % size)  # up to the end of the shard
        yield Rest(cuts.first_joined + place // size, place, to_bytes(rows.picked(order[at : at + n])))
        at, place = at + n, place + n


def join_shard(plan: ShufflePlan, cuts: Cuts, number: int, pieces: Iterable[tuple[int, bytes]]) -> Written:
    """Writes a shard of rests, given as (place, records as bytes), in the order of their places."""
    rows = rows_in([data for _, data in sorted(pieces)])
    return Written(number, put_shard(plan, number, cuts.shards, rows.picked(np.arange(len(rows.heads)))))


@dataclasses.dataclass
class CutBucket(beam.DoFn):
    """A bucket to its whole shards and, as `rest`, what is left. Stands behind the shuffle of all records."""

    plan: ShufflePlan

    def process(self, element: tuple[int, Iterable[bytes]], counts: Mapping[int, int]) -> Iterator[Any]:
        cuts = Cuts(counts, self.plan.shard_records)
        for found in cut_bucket(self.plan, cuts, *element):
            if isinstance(found, Written):
                yield found.number, json.dumps(found.entry)
            else:
                yield beam.pvalue.TaggedOutput("rest", (found.number, (found.place, found.data)))


@dataclasses.dataclass
class JoinShard(beam.DoFn):
    """The rests that make a shard, to the shard. Less than a shard of every bucket goes through this second shuffle."""

    plan: ShufflePlan

    def process(
        self, element: tuple[int, Iterable[tuple[int, bytes]]], counts: Mapping[int, int]
    ) -> Iterator[tuple[int, str]]:
        number, entry = join_shard(self.plan, Cuts(counts, self.plan.shard_records), *element)
        yield number, json.dumps(entry)


@dataclasses.dataclass
class GlobalShuffle(beam.PTransform):
    """(bucket, records as bytes) to (number of a shard, its entry as JSON), with the shards written."""

    plan: ShufflePlan

    def expand(self, pieces: beam.PCollection) -> beam.PCollection:
        counts = (
            pieces
            | "Count" >> beam.MapTuple(lambda bucket, data: (bucket, count_in(data)))
            | "CountBuckets" >> beam.CombinePerKey(sum)
        )
        aside = beam.pvalue.AsDict(counts)
        cut = (
            pieces
            | "ByBucket" >> beam.GroupByKey()
            | "CutBucket" >> beam.ParDo(CutBucket(self.plan), aside).with_outputs("rest", main="shards")
        )
        joint = cut.rest | "ByShard" >> beam.GroupByKey() | "JoinShard" >> beam.ParDo(JoinShard(self.plan), aside)
        return (cut.shards, joint) | "Shards" >> beam.Flatten()
