"""How far a run is, from what its blocks leave on the store."""

import io

import pytest
import rich.console

from pipeline.progress import Progress, Watch
from transforms.storage import open_store

real = rich.console.Console


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def ended(store, done, failed):
    for n in range(done):
        store.replace(f"_runs/r/blocks/{n}.json", b"{}")
    for n in range(failed):
        store.replace(f"_runs/r/failed/{n}.json", b"{}")


def test_a_line_tells_blocks_that_ended_and_those_that_failed(store):
    progress = Progress(store, "r", 9, print, bar=False)
    assert progress.line(15) == "   15 s  0 of 9 blocks, 0 failed"
    ended(store, 4, 1)
    assert progress.line(123.4) == "  123 s  4 of 9 blocks, 1 failed"
    assert progress.shown() == (4, "blocks, 1 failed")


def test_a_terminal_gets_a_bar_with_the_state_at_the_end_of_the_block(store, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(rich.console, "Console", lambda **_: real(file=shown, force_terminal=True, width=120))
    with Progress(store, "r", 9, print, bar=True):
        ended(store, 9, 0)
    assert "blocks" in shown.getvalue() and "9/9" in shown.getvalue() and "failed" not in shown.getvalue()


def test_an_error_in_the_block_ends_the_thread_and_comes_out(store):
    progress = Progress(store, "r", 9, print, bar=False)
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert not progress._thread.is_alive()


def test_a_log_gets_a_line_when_one_is_due_and_none_after_the_end(monkeypatch):
    monkeypatch.setattr("pipeline.progress.LINE_S", 0)
    said = []

    class Once(Watch):
        def line(self, seconds):
            self._over.set()
            return f"{seconds >= 0}"

        def shown(self):
            raise AssertionError("a log has no bar")

    with Once(1, said.append, bar=False) as watch:
        watch._thread.join()
    assert said == ["True"]
