import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_server import Skipped
from hypothesis import given
from hypothesis import strategies as st

from transforms.throttle import (
    BEST_HALF_S,
    FIRST,
    SIZED_BYTES,
    SLOW_RUN,
    CarryingPool,
    Counters,
    Quarantine,
    Throttle,
    charged,
    share,
)  # fmt: skip


class Hand:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 100.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def throttle(**given):
    hand = Hand()
    counters = Counters()
    return Throttle(counters=counters, clock=hand.clock, sleep=hand.sleep, **given), hand, counters


def rounds(gate, n, act, host="h"):
    """n requests in flight together, then all of them ended by `act`."""
    turns = [gate.turn(host) for _ in range(n)]
    for began in [(t, t.__enter__()) for t in turns]:
        act(began[1])
        began[0].__exit__(None, None, None)


@given(st.integers(1, 100_000), st.integers(1, 1000), st.integers(1, 64))
def test_a_fleet_never_has_more_in_flight_than_its_sum_unless_each_has_one(workers, fleet, most):
    one = share(workers, fleet, most)
    assert 1 <= one <= most
    assert one == 1 or one * workers <= fleet


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="0 workers"):
        share(0)


def test_refusals_of_one_burst_halve_the_limit_once():
    gate, _, counters = throttle(most=64)
    rounds(gate, FIRST, lambda turn: turn.said_busy())
    assert gate.limit("h") == FIRST / 2
    rounds(gate, FIRST // 2, lambda turn: turn.said_busy())
    assert gate.limit("h") == FIRST / 4
    assert counters.read()["cuts"] == 2


def test_a_full_round_of_good_answers_adds_about_one():
    gate, _, _ = throttle(most=64)
    rounds(gate, FIRST, lambda turn: turn.brought(1000, 0.1))
    assert FIRST < gate.limit("h") <= FIRST + 1
    for _ in range(200):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.brought(1000, 0.1))
    assert 30 < gate.limit("h") <= 64


def test_a_limit_that_is_not_half_used_does_not_grow():
    gate, _, _ = throttle(most=64)
    for _ in range(100):
        rounds(gate, FIRST // 2 - 1, lambda turn: turn.brought(1000, 0.1))
    assert gate.limit("h") == FIRST


def test_errors_that_are_no_refusal_neither_raise_nor_lower_the_limit():
    gate, _, _ = throttle(most=64)
    rounds(gate, FIRST, lambda turn: turn.said_no())
    assert gate.limit("h") == FIRST


@given(st.lists(st.sampled_from(["busy", "good", "no"]), max_size=200), st.integers(1, 8), st.integers(8, 32))
def test_the_limit_stays_within_its_bounds_whatever_comes(answers, least, most):
    gate, _, _ = throttle(least=least, most=most)
    act = {
        "busy": lambda turn: turn.said_busy(),
        "good": lambda turn: turn.brought(10, 0.1),
        "no": lambda turn: turn.said_no(),
    }
    for answer in answers:
        rounds(gate, int(gate.limit("h")), act[answer])
        assert least <= gate.limit("h") <= most


def test_one_host_does_not_slow_another():
    gate, _, _ = throttle()
    rounds(gate, 1, lambda turn: turn.said_busy())
    assert gate.limit("other") == FIRST


def test_a_pause_holds_every_thread_and_is_counted():
    gate, hand, counters = throttle()
    rounds(gate, 1, lambda turn: turn.said_busy(pause_s=30))
    before = hand.now
    rounds(gate, 1, lambda turn: turn.brought(1, 0.1))
    assert hand.now - before == pytest.approx(30)
    assert counters.read()["throttled_s"] == pytest.approx(30)


def test_a_host_that_brings_a_fraction_of_its_recent_best_is_asked_for_less():
    gate, _, counters = throttle()
    rounds(gate, FIRST, lambda turn: turn.brought(SIZED_BYTES, 0.1))
    limit = gate.limit("h")
    for _ in range(SLOW_RUN):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.brought(SIZED_BYTES, 1.0))
    assert gate.limit("h") < limit
    assert counters.read()["cuts"] >= 1


def test_a_full_line_that_more_requests_share_is_no_slowness():
    """Each request gets a share of the same line: twice as many take twice as long, and nothing is wrong."""
    gate, _, counters = throttle(most=64)
    for _ in range(300):
        n = int(gate.limit("h"))
        rounds(gate, n, lambda turn, n=n: turn.brought(SIZED_BYTES, 0.01 * n))
    assert "cuts" not in counters.read()
    assert gate.limit("h") > 20


def test_an_answer_that_is_slow_while_few_are_in_flight_is_no_slowness():
    gate, _, counters = throttle()
    rounds(gate, FIRST, lambda turn: turn.brought(SIZED_BYTES, 0.1))
    for _ in range(3 * SLOW_RUN):
        rounds(gate, 1, lambda turn: turn.brought(SIZED_BYTES, 10.0))
    assert "cuts" not in counters.read()


def test_a_host_that_was_cut_is_not_called_slow_for_having_fewer_requests():
    gate, _, counters = throttle(most=64)
    for _ in range(100):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.brought(SIZED_BYTES, 0.1))
    for _ in range(3):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.said_busy())
    before = gate.limit("h")
    for _ in range(20):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.brought(SIZED_BYTES, 0.1))
    assert counters.read()["cuts"] == 3
    assert gate.limit("h") > before


def test_what_a_host_could_do_long_ago_does_not_count():
    gate, hand, counters = throttle()
    rounds(gate, FIRST, lambda turn: turn.brought(SIZED_BYTES, 0.1))
    hand.sleep(10 * BEST_HALF_S)
    for _ in range(SLOW_RUN):
        rounds(gate, int(gate.limit("h")), lambda turn: turn.brought(SIZED_BYTES, 1.0))
    assert "cuts" not in counters.read()


def test_a_smaller_share_holds_from_then_on():
    gate, _, _ = throttle(most=64)
    gate.keep_to(2)
    assert gate.limit("h") == 2
    rounds(gate, 2, lambda turn: turn.brought(1, 0.1))
    assert gate.limit("h") == 2


def test_never_more_are_in_flight_than_the_limit_says():
    skipped = Skipped()
    gate = Throttle(most=5, counters=Counters(), clock=skipped.clock, sleep=skipped.sleep)
    lock, flying, most = threading.Lock(), 0, 0

    def work(busy):
        nonlocal flying, most
        for n in range(100):
            with gate.turn("h") as turn:
                with lock:
                    flying += 1
                    most = max(most, flying)
                if busy and n % 10 == 0:
                    turn.said_busy(0.01)
                else:
                    turn.brought(10, 0.1)
                with lock:
                    flying -= 1

    threads = [threading.Thread(target=work, args=(n == 0,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 1 <= most <= 5


def test_a_turn_that_ends_with_an_error_is_given_back():
    gate, _, _ = throttle(most=1)
    for _ in range(3):
        with pytest.raises(RuntimeError), gate.turn("h"):
            raise RuntimeError
    rounds(gate, 1, lambda turn: turn.brought(1, 0.1))


def test_quarantine_forgets_when_its_time_is_over_and_never_holds_more_than_its_most():
    hand = Hand()
    kept = Quarantine(hand.clock, most=2)
    kept.put("a", "status", "gone", 404, 60)
    assert kept.find("a").status == 404
    hand.sleep(61)
    assert kept.find("a") is None
    for name in "abc":
        kept.put(name, "status", "gone", 404, 60)
    assert [kept.find(name) is None for name in "abc"] == [True, False, False]
    kept.put("d", "status", "gone", 404, 0)
    assert kept.find("d") is None


# ---- on whose account


def test_work_is_charged_to_whoever_gave_it_though_threads_are_shared():
    process, accounts = Counters(), [Counters(), Counters()]
    met = threading.Barrier(4)

    def fetch(amount):
        met.wait()  # all four at once, in the threads of one pool
        process.add("bytes", amount)

    def block(pool, account, amount):
        with charged(account):
            tasks = [pool.submit(fetch, amount) for _ in range(2)]
            list(pool.map(process.add, ["requests"] * 3))
            for task in tasks:
                task.result()
        process.add("bytes", 1000)  # after its account was closed

    with CarryingPool(8) as pool, ThreadPoolExecutor(2) as blocks:
        for done in [blocks.submit(block, pool, a, n) for a, n in zip(accounts, (10, 7), strict=True)]:
            done.result()
    assert [a.read() for a in accounts] == [{"bytes": 20, "requests": 3}, {"bytes": 14, "requests": 3}]
    assert process.read() == {"bytes": 2034, "requests": 6}


def test_nothing_is_counted_twice_in_an_account_that_is_the_counters_own():
    counters, inner = Counters(), Counters()
    with charged(counters):
        counters.add("cuts")
        with charged(inner):
            counters.add("cuts")
        counters.add("cuts")
    assert counters.read() == {"cuts": 3} and inner.read() == {"cuts": 1}
