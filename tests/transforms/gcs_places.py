"""A folder in a bucket of the double, and what its errors may show, for the tests of gs://."""

import traceback

import gcs_double
import pytest

from transforms import gcs_store
from transforms.storage import StoreError


@pytest.fixture
def double(monkeypatch):
    with gcs_double.running("b") as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


@pytest.fixture
def store(double):
    return gcs_store.gcs_store("gs://b/out", patience_s=20.0)


def failure(kind, act):
    """The StoreError of an act, which shows no address and no person."""
    with pytest.raises(StoreError) as e:
        act()
    assert e.value.kind == kind
    shown, error = [repr(e.value)], e.value
    while error is not None:  # all that a traceback would tell
        shown += traceback.format_exception_only(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for secret in ("SECRET", "upload_id", "uploadType", "example.com", "alt=media", "http://", "https://"):
        assert secret not in "".join(shown)
    return str(e.value)


FIXTURES = double, store  # for a test file to take under these names
