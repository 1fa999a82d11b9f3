import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.disk_store import LocalStore
from transforms.failures import KILLED
from transforms.fragments import RASTERS
from transforms.grid import Block
from transforms.receipts import ATTEMPTS, DONE, FAILED, Desk, Receipt, receipt_from_json
from transforms.statistics import NONE

RECEIPT = Receipt("33TWL", "2024", "ab" * 32, 0, 2048, 2048, 1024, DONE)
BLOCK = "r00000_c02048"
DESK = Desk("_work/2024/33TWL/abababab/01234567")


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path))


texts = st.text(max_size=20)
counts = st.dictionaries(texts, st.integers(0, 2**53), max_size=3)


@given(
    st.builds(
        Receipt, texts, texts, texts, st.integers(0), st.integers(0), st.integers(1), st.integers(1),
        st.sampled_from([DONE, FAILED]), texts, texts, texts,
        plan=st.dictionaries(texts, texts | st.integers(), max_size=3),
        counts=counts,
        parts=st.dictionaries(texts, st.dictionaries(texts, st.lists(st.integers(0), max_size=3)), max_size=3),
        timings_s=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
        statistics=st.sampled_from([{}, NONE.to_record()]),
        network=st.dictionaries(texts, st.integers(0) | st.floats(0, 1e9), max_size=3),
        drift=st.dictionaries(texts, st.lists(st.floats(-1e3, 1e5)), max_size=3),
        warnings=st.lists(texts, max_size=3),
        attempts=st.integers(1, ATTEMPTS),
    )
)  # fmt: skip
def test_a_receipt_is_read_as_it_was_written(receipt):
    assert receipt_from_json(receipt.to_json()) == receipt


def test_equal_receipts_are_equal_bytes_whatever_the_order_of_their_counts():
    one, two = (dataclasses.replace(RECEIPT, counts=c) for c in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one.to_json() == two.to_json()


def test_a_newer_version_is_refused_by_number():
    newer = json.loads(RECEIPT.to_json()) | {"version": 7, "mood": "fine"}
    with pytest.raises(BadInput, match="receipt version 7: this release reads 1 to 4; use a newer tessera-beam"):
        receipt_from_json(json.dumps(newer).encode())


def test_a_receipt_of_version_1_is_read_as_one_that_warns_of_nothing():
    fields = json.loads(RECEIPT.to_json())
    old = {k: v for k, v in fields.items() if k not in ("drift", "warnings")} | {"version": 1}
    assert receipt_from_json(json.dumps(old).encode()) == RECEIPT


def test_a_receipt_of_version_2_is_read_as_one_that_fetched_nothing():
    fields = json.loads(RECEIPT.to_json())
    old = {k: v for k, v in fields.items() if k != "network"} | {"version": 2}
    assert receipt_from_json(json.dumps(old).encode()) == RECEIPT


def test_a_receipt_of_version_3_is_read_as_one_without_statistics():
    fields = json.loads(RECEIPT.to_json())
    old = {k: v for k, v in fields.items() if k != "statistics"} | {"version": 3}
    assert receipt_from_json(json.dumps(old).encode()) == RECEIPT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (RECEIPT.to_json()[:-9], "not JSON"),
        (b"[]", "is none"),
        (b"{}", "is none"),
        (b'{"format": "tessera-beam/preview", "version": 1}', "is none"),
        (b'{"format": "tessera-beam/receipt"}', "version None"),
        (b'{"format": "tessera-beam/receipt", "version": 1}', "damaged.*tile"),
        (json.dumps(json.loads(RECEIPT.to_json()) | {"mood": 1}).encode(), "damaged.*mood"),
        (json.dumps(json.loads(RECEIPT.to_json()) | {"statistics": {"a": 1}}).encode(), "damaged.*statistics"),
    ],
)
def test_what_is_no_receipt_is_refused(data, words):
    # `made` in transforms/embed.py then makes the block again, rather than ending the run.
    with pytest.raises(BadInput, match=words):
        receipt_from_json(data)


def test_statuses_come_from_names_alone_and_done_outweighs_failed(store):
    for block, statuses in {"r0_c0": [DONE], "r0_c1": [FAILED], "r0_c2": [FAILED, DONE], "r0_c3": []}.items():
        for status in statuses:
            store.replace(DESK.receipt_name(block, status), b"not even JSON")
        store.replace(f"{DESK.folder}/{block}.embeddings.frag", b"")
        store.replace(f"{DESK.folder}/{block}.attempt1", b"")
    assert DESK.statuses(store) == {"r0_c0": DONE, "r0_c1": FAILED, "r0_c2": DONE}
    assert Desk("_work/2024/33TWL/abababab/other").statuses(store) == {}


def test_a_block_is_begun_as_often_as_a_worker_may_die_of_it_and_then_refused(store):
    begun = [DESK.begin(store, BLOCK) for _ in range(ATTEMPTS + 2)]
    assert begun == [*range(1, ATTEMPTS + 1), 0, 0]
    assert DESK.begin(store, "r00000_c04096") == 1  # each block has its own
    assert Desk("_work/2024/33TWL/abababab/other").begin(store, BLOCK) == 1  # and each plan


def marked(store, n, text):
    store.put_if_absent(f"{DESK.folder}/{BLOCK}.attempt{n}", text.encode())


def gone_pid():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_block_that_another_process_works_on_has_killed_nobody(store):
    # Two runs over one output: the parent of this process is alive for as long as the test.
    marked(store, 1, f"{socket.gethostname()} {os.getppid()}")
    assert [DESK.begin(store, BLOCK) for _ in range(ATTEMPTS + 1)] == [1] * (ATTEMPTS + 1)


@pytest.mark.parametrize(
    "whose",
    [
        lambda: f"{socket.gethostname()} {gone_pid()}",
        lambda: f"some-other-host {os.getppid()}",  # of which nothing can be known
        lambda: f"{socket.gethostname()} {os.getpid()}",  # what this process left undone
        lambda: "",
    ],
    ids=["a dead process", "another machine", "itself", "nobody"],
)
def test_a_block_that_nobody_works_on_any_more_counts_its_attempts(store, whose):
    marked(store, 1, whose())
    assert [DESK.begin(store, BLOCK) for _ in range(ATTEMPTS)] == [2, 0]


def test_an_attempt_that_was_taken_back_does_not_count(store):
    DESK.withdraw(store, BLOCK, DESK.begin(store, BLOCK))
    assert DESK.begin(store, BLOCK) == 1
    DESK.withdraw(store, BLOCK, DESK.begin(store, BLOCK))
    assert [DESK.begin(store, BLOCK) for _ in range(ATTEMPTS)] == [2, 0]


@pytest.mark.parametrize("status", [DONE, FAILED])
def test_a_receipt_clears_the_attempts_before_it(store, status):
    for _ in range(ATTEMPTS):
        DESK.begin(store, BLOCK)
    DESK.begin(store, "r00000_c04096")
    DESK.write(store, BLOCK, dataclasses.replace(RECEIPT, status=status))
    assert [DESK.begin(store, BLOCK) for _ in range(ATTEMPTS + 1)] == [*range(1, ATTEMPTS + 1), 0]
    assert DESK.begin(store, "r00000_c04096") == 2


def test_a_block_that_is_done_has_its_earlier_failure_removed(store):
    failed = dataclasses.replace(RECEIPT, status=FAILED, reason="gone", scene="S2A_X", band="B05")
    DESK.write(store, BLOCK, failed)
    assert DESK.read(store, BLOCK, FAILED) == failed
    DESK.write(store, BLOCK, RECEIPT)
    assert store.names(DESK.folder) == [DESK.receipt_name(BLOCK, DONE)]
    assert DESK.read(store, BLOCK, DONE) == RECEIPT


def test_a_failure_after_the_block_was_done_leaves_it_done(store):
    DESK.write(store, BLOCK, RECEIPT)
    DESK.write(store, BLOCK, dataclasses.replace(RECEIPT, status=FAILED))
    assert DESK.statuses(store) == {BLOCK: DONE}


def test_a_receipt_that_is_not_there_is_not_found(store):
    with pytest.raises(FileNotFoundError):
        DESK.read(store, BLOCK, DONE)


KILLED_BLOCK = dataclasses.replace(RECEIPT, status=FAILED, cause=KILLED, run="first")


def test_a_block_that_ended_its_workers_stands_failed_until_its_run_has_come_to_its_end(store):
    assert DESK.standing(store, BLOCK) is None
    DESK.write(store, BLOCK, KILLED_BLOCK)
    assert DESK.standing(store, BLOCK) == KILLED_BLOCK
    store.replace("_runs/first/run.json", b"{}")
    assert DESK.standing(store, BLOCK) is None, "who asks once more gets another try"


@pytest.mark.parametrize("more", [{"cause": "input"}, {"run": ""}])
def test_other_failures_and_older_receipts_do_not_stand(store, more):
    DESK.write(store, BLOCK, dataclasses.replace(KILLED_BLOCK, **more))
    assert DESK.standing(store, BLOCK) is None


SMALL = Block("33TWL", 0, 0, 256, 256)


def part(**more):
    return {"sizes": [5, 0, 3, 0], "size_bytes": 8, "sha256": "a" * 64, "crc32c": "0" * 8} | more


def done(**more):
    parts = {key: part() for key in RASTERS}
    given = {"counts": {"embedded": 1, "no_optical": 0}, "parts": parts} | more
    return Receipt("33TWL", "2024", "ab" * 32, 0, 0, 256, 256, DONE, **given)


def test_a_receipt_is_of_its_own_block_and_revision_alone():
    assert done().is_of(SMALL, "2024", "ab" * 32)
    assert not done().is_of(dataclasses.replace(SMALL, col_px=256), "2024", "ab" * 32)
    assert not done().is_of(SMALL, "2025", "ab" * 32)
    assert not done().is_of(SMALL, "2024", "ac" * 32)


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
    assert not done(parts=parts).is_of(SMALL, "2024", "ab" * 32)


def test_a_receipt_says_nothing_once_any_word_of_it_is_another():
    fields = json.loads(done().to_json())
    fields["counts"]["embedded"] += 1
    with pytest.raises(BadInput, match="sha256"):
        receipt_from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "../../outside"}, "its status is '../../outside'"),
        ({"counts": {"no_radar": "/etc/passwd"}}, "counts are not all whole numbers"),
        ({"counts": {"pixels": -1}}, "counts are not all whole numbers"),
        ({"counts": {"pixels": 1 << 80}}, "counts are not all whole numbers"),
        ({"timings_s": {"read": "long"}}, "times are not all numbers"),
        ({"network": {"bytes": None}}, "times are not all numbers"),
    ],
)
def test_a_receipt_whose_seal_is_right_and_whose_words_are_not_is_refused(change, words):
    with pytest.raises(BadInput, match=words):
        receipt_from_json(dataclasses.replace(RECEIPT, **change).to_json())
