"""The parts of an upload that joins objects: which of them the store copies, and which bytes pass through us."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

MIB = 1 << 20


class Limits(NamedTuple):
    """What S3 asks of parts (user guide, "Amazon S3 multipart upload limits"), and what we choose within it.

    Attributes:
      least: bytes of every part but the last, 5 MiB.
      copied: most of a part that the store copies. 5 GiB are allowed; a tenth of it is answered within a read timeout.
      sent: bytes of a part that passes through this process, where there are enough; below twice of it.
      parts: most parts of an upload.
    """

    least: int = 5 * MIB
    copied: int = 512 * MIB
    sent: int = 8 * MIB
    parts: int = 10_000


S3 = Limits()


class Piece(NamedTuple):
    """Bytes `start` to `stop` of source number `source`, of the head where that is -1."""

    source: int
    start: int
    stop: int


class Part(NamedTuple):
    """One part of an upload: a piece that the store copies, or pieces that are sent in their order."""

    copied: bool
    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        return sum(p.stop - p.start for p in self.pieces)


class _Way(NamedTuple):
    """One way to have dealt with the sources up to one of them.

    Attributes:
      cost: bytes of sources that are sent by us, without what an open run still takes from its neighbours.
      run: bytes of the open run of sent bytes, `least` for that or more; -1: the last source is copied.
      spare: bytes at the end of the last copied source that may still be sent instead.
      before: the way up to the source before. front, tail: bytes of this source, and at the end of the last copied
        one before it, that are sent to fill the run between them.
    """

    cost: int
    run: int
    spare: int
    before: "_Way | None"
    front: int = 0
    tail: int = 0


def parts_of(head_bytes: int, sizes: Sequence[int], limits: Limits = S3) -> list[Part]:
    """The parts that make one object of `head_bytes` bytes at hand and then sources of `sizes` bytes, in their order.

    Every byte lies in one part, in order. As few bytes of sources as possible are sent; what is less than two
    parts of `sent` bytes altogether is sent whole, as one part.

    Args:
      head_bytes: 0 or more. sizes: each 1 or more; a tile has 120 of them with blocks of 1,024 px.

    Raises:
      ValueError: more than `limits.parts` parts.
    """
    small = head_bytes + sum(sizes) < 2 * limits.sent
    sent = [(0, s) for s in sizes] if small else _sent(head_bytes, sizes, limits)
    parts: list[Part] = []
    run = [Piece(-1, 0, head_bytes)] if head_bytes else []
    for n, (size, (front, tail)) in enumerate(zip(sizes, sent, strict=True)):
        if front:
            run.append(Piece(n, 0, front))
        if front + tail < size:
            parts += _cut(run, limits)
            parts += [Part(True, (Piece(n, a, b),)) for a, b in _even(front, size - tail, limits)]
            run = []
        if tail:
            run.append(Piece(n, size - tail, size))
    parts += _cut(run, limits)
    if len(parts) > limits.parts:
        raise ValueError(f"{len(parts)} parts are more than the {limits.parts} of an upload")
    return parts


def _sent(head_bytes: int, sizes: Sequence[int], limits: Limits) -> list[tuple[int, int]]:
    """Bytes at the front and the tail of every source that pass through us; front + tail = size for the whole of it."""
    least = limits.least
    first = _Way(0, min(head_bytes, least), 0, None) if head_bytes else _Way(0, -1, 0, None)
    ways = [first]
    for n, size in enumerate(sizes):
        last = n == len(sizes) - 1
        found = []
        for way in ways:
            if way.run < 0:
                found.append(_Way(way.cost + size, min(size, least), way.spare, way))
                if size >= least or last:
                    found.append(_Way(way.cost, -1, size - least, way))
                continue
            found.append(_Way(way.cost + size, min(way.run + size, least), way.spare, way))
            lack = least - way.run
            tail = min(lack, way.spare)
            front = lack - tail
            if size - front >= (1 if last else least):
                found.append(_Way(way.cost + lack, -1, size - front - least, way, front, tail))
        ways = _best(found, least)
    return _traced(min(ways, key=lambda w: w.cost), sizes)


def _best(ways: list[_Way], least: int) -> list[_Way]:
    """Without those that another one beats or equals in all that counts from here on."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda w: (w.cost, -w.run, -w.spare)):
        if not any(_as_good(k, way, least) for k in kept):
            kept.append(way)
    return kept


def _as_good(a: _Way, b: _Way, least: int) -> bool:
    """Whether `a`, which costs no more, can do whatever `b` can.

    More spare bytes than `least` help nobody, and a full run asks for nothing.
    """
    if (a.run < 0) != (b.run < 0):
        return False
    full = a.run >= least
    return a.run >= b.run and (full or min(a.spare, least) >= min(b.spare, least))


def _traced(end: _Way, sizes: Sequence[int]) -> list[tuple[int, int]]:
    sent = [(0, 0)] * len(sizes)
    tail, way = 0, end
    for n in range(len(sizes) - 1, -1, -1):
        assert way.before is not None
        if way.run < 0:
            sent[n] = (way.front, tail)
            tail = way.tail
        else:
            sent[n] = (sizes[n], 0)
        way = way.before
    return sent


def _even(start: int, stop: int, limits: Limits) -> list[tuple[int, int]]:
    """A range in as few parts as may be copied, of equal size but for a byte."""
    n = -(-(stop - start) // limits.copied)
    edges = [start + (stop - start) * k // n for k in range(n + 1)]
    return list(itertools.pairwise(edges))


def _cut(run: list[Piece], limits: Limits) -> list[Part]:
    """A run of pieces as parts of `sent` bytes and less than twice of it."""
    total = sum(p.stop - p.start for p in run)
    if not total:
        return []
    n = max(1, total // limits.sent)
    parts, pieces, at, edge = [], [], 0, 1
    for piece in run:
        start = piece.start
        while start < piece.stop:
            take = min(piece.stop - start, total * edge // n - at)
            pieces.append(Piece(piece.source, start, start + take))
            start, at = start + take, at + take
            if at == total * edge // n:
                parts.append(Part(False, tuple(pieces)))
                pieces, edge = [], edge + 1
    return parts
