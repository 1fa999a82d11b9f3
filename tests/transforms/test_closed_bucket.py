"""A bucket that lets in only who signs: keys, clocks and what is said where they are wrong."""

import contextlib
import datetime as dt

import pytest
from faulty_server import serve
from s3_server import KEY, SECRET, Bucket

from transforms import hosts, sigv4
from transforms.fetching import FetchError
from transforms.http import Fetcher

DATA = bytes(range(256)) * 8


@pytest.fixture
def opened(monkeypatch):
    """Serves a bucket and gives this process keys for it."""

    @contextlib.contextmanager
    def opened(clock=lambda: dt.datetime.now(dt.UTC), secret=SECRET):
        bucket = Bucket({"/eodata/a.jp2": DATA}, clock)
        with serve(bucket.server), hosts.allowed(bucket.server.place):
            monkeypatch.setenv(sigv4.ENDPOINT_VARIABLE, bucket.server.url)
            monkeypatch.setenv(sigv4.ID_VARIABLE, KEY)
            monkeypatch.setenv(sigv4.SECRET_VARIABLE, secret)
            yield bucket

    return opened


@pytest.mark.parametrize("hours", [0, 2, -30])
def test_a_machine_whose_clock_is_wrong_signs_by_the_server_s(opened, hours):
    with opened(lambda: dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)) as place:
        fetch = Fetcher()
        assert fetch("s3://eodata/a.jp2", 10, 20, None).data == DATA[10:20]
        assert fetch("s3://eodata/a.jp2", 20, 30, None).data == DATA[20:30]
    assert place.refused == (["RequestTimeTooSkewed"] if hours else [])  # once, not with every request


def test_a_wrong_key_is_an_error_that_names_its_variable_and_shows_nothing(opened):
    with opened(secret="another") as place, pytest.raises(FetchError) as error:
        Fetcher()("s3://eodata/a.jp2", 0, 10, None)
    assert error.value.status == 403
    assert sigv4.ID_VARIABLE in str(error.value)
    assert "another" not in str(error.value) and KEY not in str(error.value)
    assert len(place.refused) == 2, "signed anew once, and no more"
