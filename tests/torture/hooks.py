"""Hooks: faults that are planted into a run of the program, at chosen steps; they live in tests only."""

import contextlib
import errno
import functools
import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

# Steps, as a kill names them; the first seven are those of a block and its tile in their order.
READ, BUILD, ENCODE = "read", "build", "encode"
FRAGMENT, RECEIPT, COMPOSE, ITEM, CLEAN = "fragment", "receipt", "compose", "item", "clean"
STEPS = (READ, BUILD, ENCODE, FRAGMENT, RECEIPT, COMPOSE, ITEM, CLEAN, "attempt", "asset", "index", "inputs", "record")
WHENS = ("before", "amid", "after")

_here = threading.local()  # the step that this thread is in: verbs are made of other verbs
_lock = threading.Lock()
_counts: dict[str, int] = {}
_headers: dict[str, Any] = {}  # what makes the previews' headers gave, by its arguments
_spec: dict[str, Any] = {}


def step_of(verb: str, name: str) -> str:
    """The step that a verb of the store belongs to, by the name of its object."""
    top, last = name.partition("/")[0], name.rpartition("/")[2]
    if verb == "delete_all":
        return CLEAN
    if top == "_inputs":
        return "inputs"
    if top == "_runs":
        return "record"
    if verb == "join":
        return COMPOSE
    if top == "_work":
        if last.endswith(".frag"):
            return FRAGMENT
        return "attempt" if ".attempt" in last and verb != "delete" else RECEIPT
    if name.count("/") == 2:
        return ITEM
    return "asset" if "/" in name else "index"


def install(spec: dict[str, Any]) -> None:
    """Plants what `spec` asks for into this process. Keys:

    kill: {step, nth, when}: SIGKILL to the whole process group at the nth time of a step. trace: file that gets how
    often each step came. headers: file that gets what can be remembered. refuse: {nth, errno, for}: the nth write of
    the disk fails, and all later ones or so many. abort: part of a file's path at whose reading the process ends
    itself. memory, hang: part of a block's tile and name that never ends well. quick: no pauses between two tries.
    skew_s: what the clock of this process is ahead.
    """
    _spec.update(spec)
    if spec.get("kill") or spec.get("trace"):
        _watch_store()
        _watch_block()
    if spec.get("headers"):
        _keep_headers()
    if spec.get("abort"):
        _poison_file(spec["abort"])
    if spec.get("memory") or spec.get("hang"):
        _poison_block(spec.get("memory"), spec.get("hang"))
    if spec.get("refuse"):
        _refuse_writes(spec["refuse"])
    if spec.get("quick"):
        from transforms import gcs_calls

        gcs_calls.FIRST_PAUSE_S = 0.001
    if spec.get("skew_s"):
        _skew(spec["skew_s"])


def ended() -> None:
    """Called behind the program."""
    if _spec.get("trace"):
        Path(_spec["trace"]).write_text(json.dumps(_counts))
    if _spec.get("headers"):
        Path(_spec["headers"]).write_bytes(pickle.dumps(_headers))


def _keep_headers() -> None:
    from transforms import picture

    real = picture.pyramid_header

    def kept(*args: Any) -> Any:
        _headers[repr(args)] = real(*args)
        return _headers[repr(args)]

    picture.pyramid_header = kept


def _die() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    time.sleep(60)  # the signal comes; until then nothing more may happen


def _begin(step: str) -> str:
    """Counts a step. Returns when to die in it, "" for never."""
    with _lock:
        _counts[step] = _counts.get(step, 0) + 1
        kill = _spec.get("kill")
        if kill and kill["step"] == step and kill["nth"] == _counts[step]:
            return str(kill["when"])
    return ""


@contextlib.contextmanager
def _at(step: str) -> Any:
    if getattr(_here, "step", ""):
        yield  # within another verb
        return
    when = _begin(step)
    if when == "before":
        _die()
    _here.step, _here.dying = step, when == "amid"
    if when == "amid":
        _spec["dying"] = True  # also for threads that the verb hands its work to
    try:
        yield
    finally:
        _here.step, _here.dying = "", False
    if when in ("after", "amid"):  # amid something that has no middle
        _die()


def _amid(*_: Any) -> None:
    """A place within a step where it is half done."""
    if _spec.get("dying"):
        _die()


def _watch_store() -> None:
    from transforms import disk_store
    from transforms.gcs_store import GcsStore

    for store in (disk_store.LocalStore, GcsStore):
        for verb in ("put_if_absent", "replace", "replace_if", "join", "delete", "delete_all"):
            _wrap_verb(store, verb)
        _wrap_writer(store)
    _before(disk_store, "_settle")
    _before(disk_store, "_copied")
    _wrap_unlink()
    _wrap_requests()


def _wrap_verb(store: type, verb: str) -> None:
    real = getattr(store, verb)

    @functools.wraps(real)
    def wrapped(self: Any, name: str, *args: Any, **more: Any) -> Any:
        with _at(step_of(verb, name)):
            return real(self, name, *args, **more)

    setattr(store, verb, wrapped)


def _wrap_writer(store: type) -> None:
    real = store.writer

    @contextlib.contextmanager
    def wrapped(self: Any, name: str) -> Any:
        with _at(step_of("writer", name)), real(self, name) as f:
            yield f

    store.writer = wrapped


def _before(module: Any, name: str) -> None:
    real = getattr(module, name)

    @functools.wraps(real)
    def wrapped(*args: Any) -> Any:
        _amid()
        return real(*args)

    setattr(module, name, wrapped)


def _wrap_unlink() -> None:
    """Amid the removal of a folder: one file of it is gone."""
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        real(self, missing_ok)
        if getattr(_here, "step", "") == CLEAN:
            _amid()

    Path.unlink = unlink  # type: ignore[method-assign]


def _wrap_requests() -> None:
    """Amid a verb of a bucket: its first request has been carried out, and nobody has read the answer."""
    from requests.adapters import HTTPAdapter

    real = HTTPAdapter.send

    def send(self: Any, *args: Any, **more: Any) -> Any:
        answer = real(self, *args, **more)
        _amid()
        return answer

    HTTPAdapter.send = send  # type: ignore[method-assign]


def _watch_block() -> None:
    from transforms import dpixels, embed, encode

    for step, module, name in ((READ, embed, "read_stack"), (BUILD, embed, "build")):
        _wrap_call(step, module, name)
    _wrap_call(ENCODE, encode.Session, "run")
    real = dpixels._read_bands  # amid the reading of a strip: some of its files are read

    def read_bands(*args: Any) -> Any:
        result = real(*args)
        if _spec.get("kill", {}).get("step") == READ:
            _amid()
        return result

    dpixels._read_bands = read_bands


def _wrap_call(step: str, owner: Any, name: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **more: Any) -> Any:
        with _at(step):
            return real(*args, **more)

    setattr(owner, name, wrapped)


def _poison_file(part: str) -> None:
    """Whoever opens the file dies, as of a fault in a library."""
    from transforms import read

    for name in ("_local", "_ranged"):
        real = getattr(read, name, None)
        if real is None:
            continue

        def poisoned(scene: Any, asset: Any, path: str, *args: Any, _real: Any = real, **more: Any) -> Any:
            if part in path:
                os.abort()
            return _real(scene, asset, path, *args, **more)

        setattr(read, name, poisoned)


def _poison_block(memory: str | None, hang: str | None) -> None:
    """A block whose building always takes more memory than there is, and one that never comes to an end."""
    from transforms import embed

    real = embed.embed_window

    def poisoned(worker: Any, tile: Any, block: Any, *args: Any, **more: Any) -> Any:
        name = f"{block.tile} {block.name}"
        if memory and memory in name:
            raise MemoryError("Unable to allocate 512. GiB for an array")
        if hang and hang in name:
            threading.Event().wait()
        return real(worker, tile, block, *args, **more)

    embed.embed_window = poisoned


def _refuse_writes(refuse: dict[str, Any]) -> None:
    """A disk that is full from the nth write on, at whatever it is: opening, writing, settling or copying."""
    from transforms import disk_store

    left, lasts = [int(refuse["nth"])], int(refuse.get("for", 0))
    error = getattr(errno, refuse.get("errno", "ENOSPC"))

    def spend(*_: Any) -> None:
        with _lock:
            left[0] -= 1
            if left[0] < 0 and (not lasts or left[0] >= -lasts):
                raise OSError(error, os.strerror(error))

    def checked(real: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            spend()
            return real(*args, **more)

        return wrapped

    for name in ("_settle", "_copied", "_settle_folder"):
        setattr(disk_store, name, checked(getattr(disk_store, name)))
    disk_store.LocalStore._part = checked(disk_store.LocalStore._part)


def _skew(seconds: float) -> None:
    """This machine's clock is wrong."""
    real = time.time
    time.time = lambda: real() + seconds
