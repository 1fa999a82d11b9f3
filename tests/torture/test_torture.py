"""Torture in small: two rounds of kills, and a few of every other fault; the table itself."""

import dataclasses
import json
import random

import pytest

from transforms.disk_store import LocalStore
from transforms.failures import KILLED
from transforms.grid import Block
from transforms.receipts import DONE, FAILED, Desk, Receipt

from . import kills, mutants, poison, storms, twice
from .ground import make_ground
from .mutations import MUTATE
from .nursery import nursery
from .places import Bucket, Disk, gcs_double
from .run import torture
from .table import LOST, WRONG, Row, as_text, ok

SEED = 7


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("torture"))


@pytest.fixture(scope="module")
def runs(ground):
    with nursery(ground.folder / "logs") as found:
        yield found


@pytest.fixture(scope="module")
def courses(ground, runs):
    return kills.undisturbed(ground, runs)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "out")


@pytest.fixture
def row(request):
    """A row that must be without a fault at the end of the test."""
    found = Row(request.node.name)
    yield found
    assert found.tried and ok([found]), as_text([found], "what was found")


def test_after_kill_9_the_next_run_leaves_the_bytes_of_an_undisturbed_one(ground, runs, courses, disk, row):
    kills.kill_rounds(runs, ground, courses, disk, SEED, 1, row)


def test_a_kill_amid_the_joining_of_a_tile_on_gcs_is_mended_by_the_next_run(ground, runs, courses, row):
    with gcs_double() as double:
        kills.round_of(runs, courses["replace"], ground, Bucket(double), [kills.Kill("compose", 3, "amid")], row)


def test_two_workers_at_one_bundle_make_one_object_each_and_neither_fails(ground, runs, courses, disk, row):
    twice.one_bundle(runs, courses["embed"], ground, disk, row, "33TUL")


def test_requests_that_fail_or_get_lost_never_change_a_byte(ground, runs, courses, row):
    with gcs_double() as double:
        storms.gcs_storm(runs, courses["embed"], ground, Bucket(double), str(SEED), row)


@pytest.mark.parametrize("kind", sorted(mutants.KINDS.keys() - {"fragments"}))  # those are damaged in other tests too
def test_mutated_inputs_are_refused_in_words_or_read_as_what_they_are(ground, runs, courses, tmp_path, kind, row):
    mutants.mutate(runs, ground, tmp_path / kind, kind, SEED, 4, row)


@pytest.mark.slow
def test_poisoned_blocks_end_as_failed_receipts_and_the_rest_is_published(ground, runs, courses, disk, row):
    poison.poison(runs, ground, disk, row)
    poison.antidote(runs, ground, disk, row)


@pytest.mark.slow
def test_ten_rounds_of_everything(tmp_path):
    rows = torture(tmp_path / "all", SEED, 10, 20)
    assert ok(rows), as_text(rows, "ten rounds")


def test_one_fault_of_any_kind_is_a_table_that_is_not_ok():
    row = Row("a kind")
    row.add([], "first", repeated=2)
    assert ok([row])
    row.add([(LOST, "no item"), (WRONG, "a byte")], "second")
    assert not ok([row])
    text = as_text([row], "Title")
    assert "| a kind | 2 | 0 | 1 | 2 | 1 | 1 | 0 |" in text and "a kind, second: lost: no item" in text


def test_what_differs_is_called_missing_an_orphan_or_wrong():
    found = kills.differences({"a": b"1", "b": b"2"}, {"b": b"3", "c": b"4"})
    assert found == [(LOST, "missing: c"), (LOST, "orphans: a"), (WRONG, "other bytes: b")]


@pytest.mark.parametrize("kind", sorted(MUTATE))
def test_the_same_seed_is_the_same_mutant(kind):
    data = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + bytes(600) if kind == "tiffs" else b'{"a": [1, {"b": "x"}], "c": 2.5}'
    made = [[MUTATE[kind](data, random.Random(n)) for n in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len({mutant for _, mutant in made[0]}) > 20


RECEIPT = Receipt("33TWL", "2024", "ab" * 32, 0, 0, 256, 256, FAILED, cause=KILLED, run="first")
DESK = Desk("_work/2024/33TWL/abababab/01234567")


def test_a_block_that_ended_its_workers_stands_failed_until_its_run_has_come_to_its_end(tmp_path):
    store = LocalStore(str(tmp_path))
    assert DESK.standing(store, RECEIPT.block) is None
    DESK.write(store, RECEIPT.block, RECEIPT)
    assert DESK.standing(store, RECEIPT.block) == RECEIPT
    store.replace("_runs/first/run.json", b"{}")
    assert DESK.standing(store, RECEIPT.block) is None, "who asks once more gets another try"


@pytest.mark.parametrize("more", [{"cause": "input"}, {"run": ""}])
def test_other_failures_and_older_receipts_do_not_stand(tmp_path, more):
    store = LocalStore(str(tmp_path))
    DESK.write(store, RECEIPT.block, dataclasses.replace(RECEIPT, **more))
    assert DESK.standing(store, RECEIPT.block) is None


def part(**more):
    return {"sizes": [5, 0, 3, 0], "size_bytes": 8, "sha256": "a" * 64, "crc32c": "0" * 8} | more


def done(**more):
    parts = {key: part() for key in ("embeddings", "scales", "observations", "reasons", "preview")}
    given = {"status": DONE, "cause": "", "counts": {"embedded": 1, "no_optical": 0}, "parts": parts} | more
    return dataclasses.replace(RECEIPT, **given)


def test_a_receipt_is_of_its_own_block_and_revision_alone():
    block = Block("33TWL", 0, 0, 256, 256)
    assert done().is_of(block, "2024", "ab" * 32)
    assert not done().is_of(dataclasses.replace(block, col_px=256), "2024", "ab" * 32)
    assert not done().is_of(block, "2025", "ab" * 32)
    assert not done().is_of(block, "2024", "ac" * 32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": [5, 0, 3]},
        {"sizes": [5, 0, 3, True]},
        {"sizes": [9, -4, 3, 0]},
        {"size_bytes": 9},
        {"sha256": "../" * 21 + "a"},
        {"crc32c": None},
    ],
)
def test_parts_that_a_window_cannot_have_are_no_parts(wrong):
    parts = done().parts | {"scales": part(**wrong)}
    assert not done(parts=parts).is_of(Block("33TWL", 0, 0, 256, 256), "2024", "ab" * 32)


def test_a_receipt_says_nothing_once_any_word_of_it_is_another(tmp_path):
    from model.errors import BadInput
    from transforms.receipts import receipt_from_json

    fields = json.loads(done().to_json())
    fields["counts"]["embedded"] += 1
    with pytest.raises(BadInput, match="sha256"):
        receipt_from_json(json.dumps(fields).encode())


def test_the_first_run_s_empty_folder_is_nobody_else_s_files(tmp_path):
    """Another run has made `_inputs` for its first object, or died over it."""
    from pipeline.embed import check_product

    (tmp_path / "_inputs").mkdir()
    store = LocalStore(str(tmp_path))
    assert store.folders("") == []
    check_product(store, {"model": "m"})
    assert store.folders("") == ["_inputs"]


def test_a_local_file_whose_zlib_checksum_is_wrong_is_refused_as_a_remote_one_is(ground, tmp_path):
    """GDAL alone gives its pixels, for the length is right."""
    from transforms.grid import tile_of
    from transforms.inventory import read_header, read_tile
    from transforms.read import ReadError, read_for
    from transforms.remote import HEAD_BYTES
    from transforms.tiff import parse_header

    tile = "33TUL"
    scene = next(s for s in read_tile(ground.inv, tile) if s.kept and s.sensor == "S2")
    asset = scene.asset("B04")
    data = bytearray(((tmp_path / read_header(ground.inv).roots[scene.source]) / asset.href).read_bytes())
    header = parse_header(bytes(data[:HEAD_BYTES]), len(data))
    at = next((int(r), int(c)) for r, c in zip(*header.counts.nonzero(), strict=True))
    row, col = at[0] * header.tile_height_px, at[1] * header.tile_width_px
    data[int(header.offsets[at] + header.counts[at]) - 1] ^= 1  # the last byte of its adler32
    (tmp_path / "damaged.tif").write_bytes(data)
    asset = dataclasses.replace(asset, href="damaged.tif")
    with pytest.raises(ReadError, match="B04"):
        read_for(scene, asset, str(tmp_path), tile_of(tile), range(row, row + 8), range(col, col + 8))
