"""The watchdog, in processes of its own: what hangs is ended, what works is not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from transforms.watchdog import DEADLINE_S, VARIABLE, Watch, deadline_s, watched

ROOT = Path(__file__).parents[2]


def ran(body, limit_s):
    """Exit code and stderr of a process that does `body` under the watchdog."""
    script = f"""
import threading, time
from transforms.watchdog import watched
with watched("33TUL, block r00000_c00000", lambda: print("recorded", flush=True), {limit_s}) as watch:
{body}
print("went on", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    return done.returncode, done.stdout.split("\n"), done.stderr


def test_a_block_that_never_returns_ends_its_process_with_a_record_and_its_stacks():
    code, said, errors = ran("    threading.Event().wait()", 0.2)
    assert (code, said[0]) == (1, "recorded")
    assert "went on" not in said
    assert "33TUL, block r00000_c00000: nothing has happened for 0 s" in errors
    assert "MainThread" in errors or "most recent call first" in errors


def test_a_record_that_cannot_be_written_does_not_keep_it_alive():
    script = """
import threading
from transforms.watchdog import watched
with watched("x", lambda: 1 / 0, 0.1):
    threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "ZeroDivisionError" not in done.stderr


def test_signs_of_life_begin_the_count_anew(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(60.0)
    for _ in range(10):
        now[0] += 59.0
        assert watch.left_s() > 0
        watch.beat()
        assert watch.left_s() == 60.0
    now[0] += 60.0
    assert watch.left_s() <= 0


def test_an_error_passes_through_and_nothing_is_left_running():
    import threading

    before = threading.active_count()
    with pytest.raises(KeyError), watched("x", lambda: None, 100.0):
        raise KeyError
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("", DEADLINE_S), ("soon", DEADLINE_S), ("-1", DEADLINE_S)]
)
def test_the_deadline_comes_from_the_environment(monkeypatch, text, seconds):
    monkeypatch.setenv(VARIABLE, text)
    assert deadline_s() == seconds
