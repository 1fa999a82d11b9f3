"""Encoding: d-pixels to codes, in micro-batches of one size, by one session per process."""

import collections
import dataclasses
import functools
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.modelfile import ModelFile
from model.profile import Profile
from model.quantise import NO_DATA
from transforms.dpixels import DPixels
from transforms.draws import Place, seeds_of
from transforms.samplers import ABSENT, sampler_of

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
# Pixels in every batch that a session sees. A batch's size changes its results in the last bits (facts, checked 1),
# so it belongs to the plan. On a CPU larger ones spill the activations out of the cache; a GPU needs them large.
MICRO_BATCH_PX = {CPU: 256, CUDA: 4096}
IN_FLIGHT = 3  # batches built ahead of the session
TURN_PX = 1024  # pixels whose series are turned from one plane a date to one row a pixel at once
PENDING_BYTES = 256 << 20  # token rows that wait for their batch to fill up; beyond it the largest group goes early


def provider_for(device: str, model: ModelFile | None = None) -> str:
    """The ONNX Runtime provider for `auto`, `cpu` or `cuda`; with a model, one that its file may run on.

    Raises:
      BadInput: onnxruntime is missing or there twice, or has not what was asked: never the CPU in place of CUDA; a file
        that was not made for the device.
    """
    if model is not None and device in PROVIDERS:
        check_pairing(model, PROVIDERS[device])  # first: no other onnxruntime would help
    provider = _provider(device)
    if model is not None:
        if device == "auto" and "cuda" not in model.variant.devices:
            return CPU
        check_pairing(model, provider)
    return provider


def check_pairing(model: ModelFile, provider: str) -> None:
    """Raises BadInput where a file was not made for a provider: CUDA would hand some of its nodes back to the CPU."""
    devices = model.variant.devices
    if provider in (PROVIDERS[d] for d in devices):
        return
    wanted = next(d for d, p in PROVIDERS.items() if p == provider)
    raise BadInput(
        f"{model.path} ({model.variant.precision}, recurrence {model.variant.recurrence}) is for "
        f"{' and '.join(devices)} alone, not {wanted}: give --device {devices[0]}, or make a file for {wanted} with "
        "`tessera-beam model import CKPT --family F --target any --out M.onnx`"
    )


def _provider(device: str) -> str:
    try:
        import onnxruntime
    except ImportError:
        raise BadInput("onnxruntime is not installed: pip install 'tessera-beam[cpu]' or 'tessera-beam[gpu]'") from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BadInput("onnxruntime is broken, often by both builds at once: uninstall onnxruntime and "
                       "onnxruntime-gpu, then install one of tessera-beam[cpu] and tessera-beam[gpu]")  # fmt: skip
    there = onnxruntime.get_available_providers()
    if device == "auto":
        return CUDA if CUDA in there else CPU
    if device not in PROVIDERS:
        raise BadInput(f"--device {device}: it must be auto, cpu or cuda")
    wanted = PROVIDERS[device]
    if wanted not in there:
        raise BadInput(f"--device {device}: this onnxruntime offers {', '.join(there)}; "
                       "install tessera-beam[gpu] in place of [cpu] on a machine with CUDA 13")  # fmt: skip
    return wanted


@functools.cache
def device_kind(provider: str) -> str:
    """What results may depend on: provider and instruction set, or card. Same kind, same bytes."""
    if provider == CUDA:
        try:
            ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            name = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
        except (OSError, subprocess.SubprocessError):
            name = "unknown card"
        return f"cuda {name.strip()}"
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        line = next((x for x in info.read_text().splitlines() if x.startswith(("flags", "Features"))), "")
        flags = set(line.partition(":")[2].split())
    # The sets by which ONNX Runtime's CPU kernels are chosen.
    known = ("avx", "avx2", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "sve")
    return " ".join(["cpu", platform.machine(), *(f for f in known if f in flags)])


class Session:
    """An ONNX Runtime session on one provider, or an error: never another provider in its place."""

    def __init__(self, model_path: str, provider: str, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: all cores
        options.log_severity_level = 3  # errors; warnings of the library mean nothing to an operator
        if provider == CUDA and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        self._session: Any = onnxruntime.InferenceSession(model_path, options, providers=[provider])
        got = self._session.get_providers()
        if got[0] != provider:
            raise BadInput(f"the model was to run on {provider}, but onnxruntime took {', '.join(got)}")

    def run(self, batch: "Tokens") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes (N, dims) and scale (N,) of a batch."""
        feed = {"s2": batch.s2, "s2_doy": batch.s2_doy, "s1": batch.s1, "s1_orbit": batch.s1_orbit,
                "s1_doy": batch.s1_doy}  # fmt: skip
        codes, scale = self._session.run(["codes", "scale"], feed)
        return codes, scale


def session_of(model: ModelFile, provider: str, threads: int = 0) -> Session:
    """A session over an opened model file; raises BadInput as `check_pairing` and `Session` do."""
    check_pairing(model, provider)
    return Session(str(model.path), provider, threads)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token rows of N pixels that share t2 and t1: the model's inputs (design, section 3), and where they belong.

    Attributes:
      where: (N,) index of each pixel in the flattened window. s2 .. s1_doy: the model's inputs.
    """

    where: NDArray[np.int64]
    s2: NDArray[np.uint16]
    s2_doy: NDArray[np.int16]
    s1: NDArray[np.int16]
    s1_orbit: NDArray[np.uint8]
    s1_doy: NDArray[np.int16]

    @property
    def key(self) -> tuple[int, int]:
        return self.s2.shape[1], self.s1.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.where, self.s2, self.s2_doy, self.s1, self.s1_orbit, self.s1_doy))

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Tokens":
        return Tokens(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


def _join(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return Tokens(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Tokens)))


def observation_counts(pixels: DPixels) -> NDArray[np.uint16]:
    """(H, W, 3) valid observations: S2, S1 ascending, S1 descending. Radar is there where VV or VH is not zero."""
    valid = (pixels.masks.view(bool), _observed(pixels.sar_ascending), _observed(pixels.sar_descending))
    return np.stack([_count(v) for v in valid], axis=-1)


def _observed(sar: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(T, H, W) whether VV or VH (T, H, W, 2) is not zero: both are looked at as one number."""
    observed: NDArray[np.bool_] = np.ascontiguousarray(sar).view(np.int32)[..., 0] != 0
    return observed


def _count(valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """How many are True along the first axis; in bytes, as long as they cannot overflow."""
    width = np.uint8 if len(valid) < 256 else np.uint16
    counts: NDArray[np.uint16] = valid.view(np.uint8).sum(0, dtype=width).astype(np.uint16)
    return counts


def tokens_of(pixels: DPixels, wanted: NDArray[np.bool_], profile: Profile, place: Place) -> Iterator[Tokens]:
    """Samples the wanted pixels of a window and groups them by (t2, t1).

    Args:
      wanted: (H, W); each of these pixels must have a valid optical observation.
      place: of the window, by which a sampler draws.

    Yields:
      Tokens, groups in ascending order of (t2, t1), pixels of a group in row-major order.

    Raises:
      BadInput: a profile whose rules about token rows contradict each other.
    """
    sampler = sampler_of(profile)
    where = np.flatnonzero(wanted)
    if not len(where):
        return
    sar = np.concatenate([pixels.sar_ascending, pixels.sar_descending])  # ascending first: order is part of the rule
    sar_doy = np.concatenate([pixels.sar_ascending_doy, pixels.sar_descending_doy])
    orbit = np.repeat(np.array([0, 1], np.uint8), [len(pixels.sar_ascending_doy), len(pixels.sar_descending_doy)])
    valid2 = _series_of(pixels.masks.view(bool), where)  # (N, T2)
    valid1 = _series_of(_observed(sar), where)  # (N, T1)
    # A hash a pixel, some per cent of the work: made for samplers too that do not draw.
    y, x = np.divmod(where, wanted.shape[1])
    seeds2, seeds1 = (seeds_of(profile.name, place, sensor, y, x) for sensor in ("s2", "s1"))
    t2, t1 = sampler.length(valid2.sum(1)), sampler.length(valid1.sum(1))
    key = t2 * 1024 + t1
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        at = where[group]
        rows2 = sampler.rows(valid2[group], int(t2[group[0]]), seeds2[group])
        rows1 = sampler.rows(valid1[group], int(t1[group[0]]), seeds1[group])
        yield Tokens(
            at,
            _taken(pixels.bands, rows2, at),
            _taken(pixels.doys, rows2).astype(np.int16),
            _taken(sar, rows1, at),
            _taken(orbit, rows1),
            _taken(sar_doy, rows1),
        )


def _series_of(valid: NDArray[np.bool_], where: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, T) of the pixels `where` of (T, H, W)."""
    flat = valid.reshape(len(valid), math.prod(valid.shape[1:]))
    out = np.empty((len(where), len(valid)), bool)
    whole = len(where) == flat.shape[1]
    for start in range(0, len(where), TURN_PX):  # what is turned at once stays in the cache
        part = slice(start, start + TURN_PX)
        out[part] = (flat[:, part] if whole else flat[:, where[part]]).T
    return out


def _taken(series: NDArray[Any], rows: NDArray[np.int64], at: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """What a series (T, ..) holds at time steps (N, L); absent rows are 0.

    Day 0 marks a row as absent: the model gives it zeros after standardisation.

    Args:
      at: (N,) pixels in the flattened window of a series (T, H, W, ..); None for one that all pixels share.
    """
    absent = rows[:, 0] == ABSENT  # the rows of a pixel are absent together
    inner = series.shape[1:] if at is None else series.shape[3:]
    if absent.all():  # of any time step, or of all: there may be none
        return np.zeros((*rows.shape, *inner), series.dtype)
    if at is None:
        taken: NDArray[Any] = series.take(rows, mode="clip")  # ABSENT takes the first step, to be overwritten
    else:
        size = series.shape[1] * series.shape[2]
        # One flat index a row: a pixel's ten bands lie side by side and are copied as one piece.
        flat = rows * size
        flat += at[:, None]
        taken = series.reshape(-1, *inner).take(flat, axis=0, mode="clip")
    taken[absent] = 0
    return taken


class WindowEncoder:
    """Encodes a window bit by bit: takes d-pixels of some rows, returns the whole window's codes at the end.

    The session runs on a thread of its own while the caller reads and builds the next rows; nothing outlives the
    `with` block. Every batch has `micro_batch_px` pixels: the last one of a group is filled up with its first pixel.
    `place` is where the window lies: samplers that draw do so by it.

    Attributes:
      codes: (H, W, dims) int8, -128 where nothing was encoded. scale: (H, W) float32, NaN there.
      batches, tokens, encode_s: work done so far.
    """

    def __init__(
        self, session: Session, profile: Profile, place: Place, height_px: int, width_px: int, micro_batch_px: int
    ) -> None:
        self._session, self._profile, self._place, self._batch_px = session, profile, place, micro_batch_px
        self._width = width_px
        self._codes: NDArray[np.int8] | None = None
        self.scale = np.full((height_px, width_px), np.nan, np.float32)
        self.batches = self.tokens = 0
        self.encode_s = 0.0
        self._waiting: dict[tuple[int, int], list[Tokens]] = {}
        self._running: collections.deque[tuple[NDArray[np.int64], Future[Any]]] = collections.deque()

    @property
    def codes(self) -> NDArray[np.int8]:
        if self._codes is None:  # half a GB for a block of 2048 px, and most blocks of an ocean hold nothing
            self._codes = np.full((*self.scale.shape, self._profile.dims), NO_DATA, np.int8)
        return self._codes

    @property
    def empty(self) -> bool:
        """Whether nothing has been encoded."""
        return self._codes is None

    def __enter__(self) -> "WindowEncoder":
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, pixels: DPixels, wanted: NDArray[np.bool_], row: int = 0, col: int = 0) -> None:
        """Takes d-pixels whose first one lies at (row, col) of the window."""
        here = dataclasses.replace(self._place, row_px=self._place.row_px + row, col_px=self._place.col_px + col)
        for tokens in tokens_of(pixels, wanted, self._profile, here):
            y, x = np.divmod(tokens.where, wanted.shape[1])
            moved = dataclasses.replace(tokens, where=(y + row) * self._width + x + col)
            self._waiting.setdefault(tokens.key, []).append(moved)
            if sum(len(t) for t in self._waiting[tokens.key]) >= self._batch_px:
                self._emit(tokens.key, flush=False)
        while sum(t.nbytes for group in self._waiting.values() for t in group) > PENDING_BYTES:
            self._emit(max(self._waiting, key=lambda k: sum(t.nbytes for t in self._waiting[k])), flush=True)

    def finish(self) -> None:
        """Encodes what is left. `codes` and `scale` are whole after it."""
        for key in sorted(self._waiting):
            self._emit(key, flush=True)
        while self._running:
            self._collect()

    def _emit(self, key: tuple[int, int], flush: bool) -> None:
        rows = _join(self._waiting.pop(key))
        B = self._batch_px
        whole = len(rows) if flush else len(rows) // B * B
        for start in range(0, whole, B):
            batch = rows[start : min(start + B, whole)]
            where = batch.where
            if len(batch) < B:
                batch = batch[np.where(np.arange(B) < len(batch), np.arange(B), 0)]
            while len(self._running) >= IN_FLIGHT:
                self._collect()
            self._running.append((where, self._thread.submit(self._run, batch)))
            self.batches += 1
            self.tokens += len(where) * sum(key)
        if whole < len(rows):
            # A copy: a slice would keep the whole group's rows alive.
            self._waiting[key] = [rows[np.arange(whole, len(rows))]]

    def _run(self, batch: Tokens) -> tuple[NDArray[np.int8], NDArray[np.float32], float]:
        begun = time.perf_counter()
        codes, scale = self._session.run(batch)
        return codes, scale, time.perf_counter() - begun

    def _collect(self) -> None:
        where, future = self._running.popleft()
        codes, scale, seconds = future.result()
        self.encode_s += seconds
        self.codes.reshape(-1, self.codes.shape[-1])[where] = codes[: len(where)]
        self.scale.reshape(-1)[where] = scale[: len(where)]


def encode_window(
    session: Session,
    profile: Profile,
    place: Place,
    pixels: DPixels,
    wanted: NDArray[np.bool_] | None,
    micro_batch_px: int,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (H, W, dims) int8 and scale (H, W) float32 of a window held in memory.

    Pixels without a valid optical observation, and those that are not wanted, get -128 and NaN.
    """
    seen = np.asarray(pixels.masks.any(0))
    chosen = seen if wanted is None else wanted & seen
    H, W = chosen.shape
    with WindowEncoder(session, profile, place, H, W, micro_batch_px) as encoder:
        encoder.add(pixels, chosen)
        encoder.finish()
    return encoder.codes, encoder.scale


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
