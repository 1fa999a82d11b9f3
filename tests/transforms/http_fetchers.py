"""A fetcher that skips its waits and the faulty server that it asks, for the tests of the HTTP layer."""

import random

import pytest
from faulty_server import Server, Skipped, serve

from transforms import hosts
from transforms.fetching import Version
from transforms.http import Fetcher, Retries
from transforms.throttle import Counters, Throttle
from transforms.wire import Patience

DATA = random.Random(1).randbytes(200_000)
VERSION = Version(len(DATA), '"1"')
HASTY = Patience(
    connect_s=1.0, first_s=0.4, stall_s=0.1, window_s=0.08, whole_s=2.0
)  # real seconds, for faults that stay silent
CALM = Patience()
SILENT = ("slow-drip", "slow-head", "stall")  # faults that only patience ends


def patience_for(fault):
    """In a hurry where the fault is silence: elsewhere a busy machine would be taken for one."""
    return HASTY if fault in SILENT else CALM


@pytest.fixture
def server():
    with serve(Server({"/a.tif": DATA})) as server, hosts.allowed(server.place):
        yield server


@pytest.fixture
def skipped():
    return Skipped()


def fetcher_of(skipped, least=1, signer=None, patience=CALM, allowed=hosts.current, **retries):
    counters = Counters()
    turns = Throttle(least=least, counters=counters, clock=skipped.clock, sleep=skipped.sleep)
    return Fetcher(
        Retries(**retries),
        patience,
        turns=turns,
        signer=signer,
        allowed=allowed,
        counters=counters,
        sleep=skipped.sleep,
        clock=skipped.clock,
    )


@pytest.fixture
def fetch(skipped):
    return fetcher_of(skipped)


FIXTURES = server, skipped, fetch  # for a test file to take under these names
