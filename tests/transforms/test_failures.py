"""Every class of failure: its cause, its words, its cure, and when a run stops for it."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import failures
from transforms.failures import CAUSES, MANY, cure, failure_of, stop_reason
from transforms.read import ReadError
from transforms.storage import StoreError


def no(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ReadError("S", "B04", "the file ends early"), failures.INPUT),
        (ReadError("S", "B04", "404", "status", 404), failures.INPUT),
        (ReadError("S", "B04", "410", "status", 410), failures.INPUT),
        (ReadError("S", "B04", "another file by now", "changed"), failures.INPUT),
        (ReadError("S", "B04", "not of this provider", "refused"), failures.INPUT),
        (ReadError("S", "B04", "503", "status", 503), failures.TRANSIENT),
        (ReadError("S", "B04", "403 after a new token", "status", 403), failures.TRANSIENT),
        (ReadError("S", "B04", "connection reset", "reset"), failures.TRANSIENT),
        (ReadError("S", "B04", "no answer in 60 s", "timeout"), failures.TRANSIENT),
        (ReadError("S", "B04", "half an answer", "short"), failures.TRANSIENT),
        (MemoryError(), failures.MEMORY),
        (RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"), failures.MEMORY),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"), failures.MEMORY),
        (no(errno.ENOSPC), failures.DISK),
        (no(errno.EDQUOT), failures.DISK),
        (no(errno.EROFS), failures.DISK),
        (no(errno.EACCES), failures.DISK),
        (StoreError("refused", "403 on gs://b/o"), failures.STORE),
        (StoreError("busy", "503 for 10 minutes"), failures.STORE),
        (KeyError("x"), failures.PROGRAM),
        (no(errno.EIO), failures.PROGRAM),
        (FileNotFoundError("a/b"), failures.PROGRAM),
    ],
)
def test_the_cause_of_every_kind_of_error(error, cause):
    found = failure_of(error)
    assert found.cause == cause
    assert found.reason
    if isinstance(error, ReadError):
        assert (found.scene, found.band) == ("S", "B04")


def test_no_words_hold_a_signature():
    for error in (
        RuntimeError("GET https://h/x.tif?sv=1&sig=SECRET failed"),
        StoreError("refused", "https://h/o?upload_id=SECRET: 403"),
        OSError(errno.ENOSPC, "no room for https://h/x?sig=SECRET"),
    ):
        assert "SECRET" not in failure_of(error).reason


def test_every_cause_has_a_cure_and_a_broken_file_names_itself():
    assert len({cure(c) for c in CAUSES}) >= len(CAUSES) - 2
    assert all("tessera-beam embed" in cure(c) or "report" in cure(c) for c in CAUSES)
    assert "--drop S2A_X:B04 " in cure(failures.INPUT, "S2A_X", "B04")
    assert "--drop S2A_X " in cure(failures.INPUT, "S2A_X")
    assert "--drop" not in cure(failures.TRANSIENT, "S2A_X", "B04"), "a host that was down is no reason to lose a scene"


def test_a_run_stops_at_the_first_full_disk_or_refusing_store_and_says_why():
    assert "disk" in stop_reason({failures.DISK: 1}, 1000)
    assert "store" in stop_reason({failures.STORE: 1, failures.INPUT: 3}, 1000)


def test_a_run_stops_when_most_blocks_fail_for_one_cause_and_not_before():
    assert not stop_reason({}, 0)
    assert not stop_reason({failures.TRANSIENT: MANY - 1}, 0)
    assert f"{MANY} of {MANY + 3}" in stop_reason({failures.TRANSIENT: MANY}, 3)
    assert not stop_reason({failures.TRANSIENT: MANY}, MANY)
    assert not stop_reason({failures.TRANSIENT: MANY, failures.INPUT: 1}, 0), "two causes are no pattern"


@given(
    st.dictionaries(st.sampled_from(sorted(set(CAUSES) - failures.STOPPING)), st.integers(1, 100)), st.integers(0, 500)
)
def test_a_run_in_which_most_blocks_are_made_goes_on(failed, more):
    assert stop_reason(failed, sum(failed.values()) + more) == ""
