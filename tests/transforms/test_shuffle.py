import collections
import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.order import hashed, key_of
from model.records import PIXELS, Records, chosen, count_in, from_bytes, joined, offsets_of, rows_in, to_bytes
from model.shards import Manifest, Shard, open_shards
from transforms import shuffle
from transforms.shuffle import (
    Cuts,
    GlobalShuffle,
    Rest,
    ShufflePlan,
    Written,
    bits_for,
    bucket_of,
    cut_bucket,
    hashes_of,
    join_shard,
    order_of,
    pieces_of,
)  # fmt: skip

TILES = (b"33TWL", b"01CCV", b"60KXF")


def records_at(tile, side, first=0):
    """A square of pixels of a tile, each with observations that tell which one it is."""
    n = side * side
    row, col = np.divmod(np.arange(n), side)
    s2, s1 = offsets_of(1 + (row + col) % 3), offsets_of((row * col) % 3)
    a, b = int(s2[-1]), int(s1[-1])
    which = np.repeat(np.arange(n), np.diff(s2))
    return Records(
        np.full(n, tile, "S5"), (first + row).astype(np.int32), col.astype(np.int32),
        np.full(n, 1.5), np.full(n, np.nan), np.ones(n, np.float32), s2, s1,
        np.repeat(which[:, None], 10, 1).astype(np.uint16), np.ones(a, bool), np.full(a, 7, np.int16),
        np.ones((b, 2), np.int16), np.ones(b, bool), np.zeros(b, np.uint8), np.full(b, 9, np.int16),
    )  # fmt: skip


def hashed_of(records, seed):
    return hashes_of(records.tile, records.row_px, records.col_px, seed)


def names_of(records):
    """(tile, row, col) of every record."""
    return list(zip(records.tile.tolist(), records.row_px.tolist(), records.col_px.tolist(), strict=True))


def plan_of(folder, size=10, bits=2, seed=0, bucket_bytes=1 << 20):
    return ShufflePlan(str(folder), seed, bits, bucket_bytes, size)


def by_hand(plan, batches):
    """The two passes without an engine: entries by number."""
    buckets, rests, entries = collections.defaultdict(list), collections.defaultdict(list), {}
    for records in batches:
        for bucket, data in pieces_of(records, plan.seed, plan.bits):
            buckets[bucket].append(data)
    cuts = Cuts({b: sum(map(count_in, data)) for b, data in buckets.items()}, plan.shard_records)
    for bucket, data in buckets.items():
        for found in cut_bucket(plan, cuts, bucket, data):
            if isinstance(found, Written):
                entries[found.number] = found.entry
            else:
                rests[found.number].append((found.place, found.data))
    for number, data in rests.items():
        entries |= [join_shard(plan, cuts, number, data)]
    return entries


def opened(folder, entries):
    shards = tuple(Shard(**entries[n]) for n in range(len(entries)))
    (folder / "manifest.json").write_text(Manifest("v2", "", "2024", shards).to_json())
    return open_shards(folder, check=True)


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in folder.glob("shard-*")}


@settings(max_examples=40)  # each writes and reads files
@given(
    side=st.integers(0, 9), tiles=st.integers(1, 3), size=st.integers(1, 60), bits=st.integers(0, 5),
    seed=st.integers(0, 9), data=st.data(),
)  # fmt: skip
def test_nothing_is_lost_nothing_comes_twice_and_all_shards_but_the_last_are_equal(
    tmp_path_factory, side, tiles, size, bits, seed, data
):
    folder = tmp_path_factory.mktemp("set")
    batches = [records_at(tile, side) for tile in TILES[:tiles]]
    whole = joined(batches)
    # However the records come: cut anywhere, in any order.
    order = data.draw(st.permutations(range(len(whole))))
    cut = data.draw(st.integers(0, len(whole)))
    parts = [chosen(whole, np.array(p, np.int64)) for p in (order[:cut], order[cut:])]
    entries = by_hand(plan_of(folder, size, bits, seed), parts)
    assert sorted(entries) == list(range(-(-len(whole) // size)))
    if not len(whole):
        return
    assert [entries[n]["records"] for n in range(len(entries) - 1)] == [size] * (len(entries) - 1)
    assert 1 <= entries[len(entries) - 1]["records"] <= size
    found = opened(folder, entries)
    records = found.records(np.arange(len(found)))
    assert sorted(names_of(records)) == sorted(names_of(whole))
    there = {name: i for i, name in enumerate(names_of(whole))}
    same = chosen(whole, np.array([there[name] for name in names_of(records)]))
    for name in (*PIXELS, "s2_offsets", "s1_offsets", "s2", "s2_doy", "s1", "s1_orbit", "s1_doy"):
        np.testing.assert_array_equal(getattr(records, name), getattr(same, name))


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_the_same_records_in_other_pieces_give_the_same_bytes(tmp_path, monkeypatch, bits):
    batches = [records_at(tile, 12) for tile in TILES]
    first, second = tmp_path / "a", tmp_path / "b"
    by_hand(plan_of(first, 37, bits), batches)
    halves = [chosen(b, np.arange(len(b))[k::2]) for k in (1, 0) for b in batches[::-1]]
    monkeypatch.setattr(shuffle, "PIECE_RECORDS", 5)
    by_hand(plan_of(second, 37, bits), halves)
    assert bytes_of(first) == bytes_of(second) and len(bytes_of(first)) == 12


def test_another_seed_gives_another_order(tmp_path):
    batches = [records_at(TILES[0], 9)]
    for seed in (0, 1):
        by_hand(plan_of(tmp_path / str(seed), 81, seed=seed), batches)
    assert bytes_of(tmp_path / "0") != bytes_of(tmp_path / "1")


def test_a_records_place_is_the_hash_of_its_tile_row_and_column_alone():
    records = joined([records_at(tile, 4, first=2**15) for tile in TILES])
    for i, (tile, row, col) in enumerate(names_of(records)):
        key = key_of("shuffle", 5, tile.decode())
        wanted = hashed(np.full(1, key), np.array([(row << 32) + col], np.uint64))[0]
        assert hashed_of(records, 5)[i] == wanted == hashed_of(chosen(records, slice(i, i + 1)), 5)[0]
    assert len(set(hashed_of(records, 5).tolist())) == len(records)


@given(bits=st.integers(0, 8), seed=st.integers(0, 5))
def test_the_bucket_is_what_the_highest_bits_say_so_buckets_follow_each_other_as_hashes_do(bits, seed):
    records = joined([records_at(tile, 6) for tile in TILES])
    hashes = dict(zip(names_of(records), hashed_of(records, seed).tolist(), strict=True))
    found = list(pieces_of(records, seed, bits))
    for bucket, data in found:
        assert {hashes[name] >> (64 - bits) for name in names_of(from_bytes(data))} == {bucket}
    assert sum(count_in(data) for _, data in found) == len(records)


def test_records_of_one_hash_are_put_in_order_by_tile_row_and_column(monkeypatch):
    monkeypatch.setattr(shuffle, "hashes_of", lambda tile, *_: np.zeros(len(tile), np.uint64))
    records = joined([records_at(tile, 3) for tile in TILES])
    mixed = chosen(records, np.random.default_rng(0).permutation(len(records)))
    heads = rows_in([to_bytes(mixed)]).heads
    assert names_of(chosen(mixed, order_of(heads, 0))) == sorted(names_of(records))


def test_neighbours_in_the_order_come_from_one_tile_no_more_often_than_chance(tmp_path):
    counts = {b"33TWL": 50, b"01CCV": 40, b"60KXF": 30}
    whole = joined([records_at(tile, side) for tile, side in counts.items()])
    found = opened(tmp_path, by_hand(plan_of(tmp_path, 256, bits=4), [whole]))
    tiles = found.records(np.arange(len(found))).tile
    n = len(whole)
    share = np.array([side * side for side in counts.values()]) / n
    chance = float((share**2).sum())
    # The spread of a mean of n - 1 trials; neighbours share a record, which changes it by little.
    sd = (chance * (1 - chance) / (n - 1)) ** 0.5
    assert abs(float((tiles[1:] == tiles[:-1]).mean()) - chance) < 5 * sd
    # And neighbours on the ground stand no nearer to each other in the order than any two records.
    place = {name: i for i, name in enumerate(names_of(found.records(np.arange(n))))}
    gaps = [abs(place[t, r, c] - place[t, r, c + 1]) for t, r, c in place if (t, r, c + 1) in place]
    expected, spread = n / 3, n / 18**0.5  # of the distance of two uniform places
    assert abs(np.mean(gaps) - expected) < 5 * spread / len(gaps) ** 0.5 * 2  # a record is in two gaps


def test_a_batch_has_as_many_tiles_as_drawing_from_all_would_give(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{z:02d}{a}AA".encode() for z in range(1, 61) for a in "CDEFGH"]
    records = records_at(b"", 60)
    which = np.sort(rng.integers(0, len(names), len(records)))  # tile after tile, as they are sampled
    records = Records(**{**vars(records), "tile": np.array(names, "S5")[which]})
    found = opened(tmp_path, by_hand(plan_of(tmp_path, 500, bits=3), [records]))
    tiles = found.records(np.arange(len(found))).tile
    seen = [len(set(tiles[a : a + 64].tolist())) for a in range(0, len(tiles) - 63, 64)]
    drawn = [len(set(rng.choice(which, 64, replace=False).tolist())) for _ in range(500)]
    assert abs(np.mean(seen) - np.mean(drawn)) < 5 * np.std(drawn) / len(seen) ** 0.5


@given(counts=st.dictionaries(st.integers(0, 40), st.integers(1, 99), max_size=20), size=st.integers(1, 50))
def test_cuts_number_every_shard_once_and_place_every_rest_behind_the_one_before(counts, size):
    cuts = Cuts(counts, size)
    numbers, place = [], 0
    for bucket in sorted(counts):
        numbers += [cuts.first_shard(bucket) + n for n in range(counts[bucket] // size)]
        assert cuts.rest_begins(bucket) == place
        place += counts[bucket] % size
    assert numbers == list(range(cuts.first_joined))
    assert cuts.shards == cuts.first_joined + -(-place // size) == -(-sum(counts.values()) // size)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_there_are_as_many_buckets_as_keep_each_to_its_size_and_not_twice_as_many(expected, bucket):
    bits = min(bits_for(expected, bucket), 20) if expected / bucket <= 2**20 else None
    if bits is None:
        with pytest.raises(BadInput, match="--bucket-mb"):
            bits_for(expected, bucket)
    else:
        assert expected <= bucket << bits and (bits == 0 or expected > bucket << (bits - 1))


def test_a_bucket_far_larger_than_expected_is_refused_in_words(tmp_path):
    pieces = [data for _, data in pieces_of(records_at(TILES[0], 20), 0, 0)]
    size = sum(map(len, pieces))
    assert len(bucket_of(pieces, plan_of(tmp_path, bucket_bytes=size // 4 + 1)).heads) == 400
    with pytest.raises(BadInput, match=r"more than 4 times .* smaller --bucket-mb"):
        bucket_of(pieces, plan_of(tmp_path, bucket_bytes=size // 5))


def through_beam(plan, batches, flags=()):
    found = plan.out + ".entries"
    with beam.Pipeline(options=PipelineOptions([
        "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner", *flags
    ])) as pipeline:  # fmt: skip
        _ = (
            pipeline
            | beam.Create(batches)
            | beam.Reshuffle()
            | beam.FlatMap(pieces_of, plan.seed, plan.bits)
            | GlobalShuffle(plan)
            | beam.Map(json.dumps)
            | beam.io.WriteToText(found, shard_name_template="")
        )
    lines = Path(found).read_text().splitlines()
    return {n: json.loads(entry) for n, entry in map(json.loads, lines)}


@pytest.mark.parametrize("batches", [1, 7])
def test_the_transform_gives_what_the_functions_give(tmp_path, batches):
    whole = joined([records_at(tile, 12) for tile in TILES])
    plan, wanted = plan_of(tmp_path / "beam", 37), plan_of(tmp_path / "hand", 37)
    parts = [chosen(whole, np.arange(len(whole))[k::batches]) for k in range(batches)]
    assert through_beam(plan, parts) == by_hand(wanted, [whole])
    assert bytes_of(tmp_path / "beam") == bytes_of(tmp_path / "hand")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_give_the_same_bytes(tmp_path, workers):
    whole = joined([records_at(tile, 12) for tile in TILES])
    plan, wanted = plan_of(tmp_path / "beam", 37), plan_of(tmp_path / "hand", 37)
    parts = [chosen(whole, np.arange(len(whole))[k::5]) for k in range(5)]
    flags = ("--direct_running_mode=multi_processing", f"--direct_num_workers={workers}")
    assert through_beam(plan, parts, flags) == by_hand(wanted, [whole])
    assert bytes_of(tmp_path / "beam") == bytes_of(tmp_path / "hand")


def test_no_records_make_no_shards(tmp_path):
    assert through_beam(plan_of(tmp_path / "s"), [records_at(TILES[0], 0)]) == {}


def test_a_rest_never_reaches_into_the_next_shard(tmp_path):
    plan = plan_of(tmp_path, 7, bits=0)
    data = [d for _, d in pieces_of(records_at(TILES[0], 2), 0, 0)]
    found = list(cut_bucket(plan, Cuts({0: 4, -1: 5}, 7), 0, data))  # five of another bucket lie before
    assert [(type(f), f.number, f.place, count_in(f.data)) for f in found] == [(Rest, 0, 5, 2), (Rest, 1, 7, 2)]
