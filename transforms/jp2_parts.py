"""Tile-parts: where a JPEG 2000 codestream keeps its tiles, from its own list or by going from one to the next."""

import dataclasses
import struct
import threading
from collections.abc import Callable, Collection, Sequence

from transforms.tiff import GAP_BYTES, MAX_RANGE_BYTES, Damaged, NotACog

SOT, SOD, EOC = 0xFF90, 0xFF93, 0xFFD9  # ISO 15444-1, annex A: begin of a tile-part, of its data, end of all
SOT_BYTES = 12
LEAST_PART_BYTES = SOT_BYTES + 2  # with its SOD and nothing behind it
MAX_PARTS = 16_384  # a Sentinel-2 band has 121 tiles of 1024 px in one part each

# Without TLM the tile-parts are found one after the other. Where they are small on average, one request brings the
# heads of many of them; of large ones (a 10 m band has 1 MB) it would bring pixels that nobody asked for.
SMALL_PART_BYTES = 64 << 10
HOP_BYTES = 256 << 10

Ask = Callable[[int, int], bytes]  # bytes [start, stop) of the file, all of them


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Part:
    """A tile-part: `size` bytes of the file from `start` on, the `number`-th of its tile."""

    start: int
    size: int
    tile: int
    number: int


class Parts:
    """Where a codestream's tile-parts lie: known at once by TLM, else as far as somebody had to go. Thread-safe."""

    def __init__(self, first: int, stop: int, tiles: int, listed: Sequence[tuple[int, int]] | None) -> None:
        """first: byte of the first SOT. stop: end of the codestream. listed: (tile, size) of each part by TLM.

        Raises:
          NotACog: a list that leads out of the codestream, or lacks a tile.
        """
        self.first, self.stop, self.tiles = first, stop, tiles
        self.listed = listed is not None
        self._lock = threading.Lock()
        self._parts: dict[int, list[Part]] = {}
        self._wanted: dict[int, int] = {}  # tile -> how many parts it has, where its parts say so
        self._at, self._count, self._ended = first, 0, False
        for tile, size in listed or ():
            if tile >= tiles or size < LEAST_PART_BYTES or self._at + size > stop:
                raise NotACog(f"tile {tile} leads out of the codestream by the file's own list (TLM)")
            self._add(tile, size)
        self.size_bytes = 320 * max(tiles, self._count)  # of memory, when all is known: measured
        if listed is not None:
            self._ended = True
            if len(self._parts) < tiles:
                raise NotACog(f"{tiles - len(self._parts)} of {tiles} tiles are not in the file's own list (TLM)")

    def of(self, tiles: Collection[int], ask: Ask) -> list[Part]:
        """All parts of these tiles, in the file's order; goes on through the file where they are not known.

        Raises:
          Damaged: the way through the file leads to something else than a tile-part, or a tile is not there.
        """
        with self._lock:
            while not self._ended and not all(self._is_whole(tile) for tile in tiles):
                at = self._at
                self._walk(at, ask(at, min(at + self._stride(), self.stop)))
                if self._at == at and not self._ended:
                    raise Damaged(f"the file ends at byte {at:,}, before its codestream does")
            missing = [tile for tile in tiles if not self._is_whole(tile)]
            if missing:
                raise Damaged(f"tile {missing[0]} is not in the file, or not all of it")
            return sorted(part for tile in tiles for part in self._parts[tile])

    def walk(self, at: int, data: bytes) -> None:
        """Takes the heads of tile-parts out of bytes that are there anyway; `at` is their place in the file."""
        with self._lock:
            if not self._ended:
                self._walk(at, data)

    def expected(self, tiles: Collection[int]) -> tuple[int, int, list[Part]]:
        """What `of` would take if unknown tile-parts are like the known ones: requests, their bytes, and its answer."""
        with self._lock:
            if self._ended or all(self._is_whole(tile) for tile in tiles):
                return 0, 0, sorted(part for tile in tiles for part in self._parts.get(tile, ()))
            mean = max((self._at - self.first) // max(self._count, 1), LEAST_PART_BYTES)
            left = max(max(tiles) + 1 - self._count, 1)
            hops = left if self._stride() == SOT_BYTES else -(-left * mean // HOP_BYTES)
            guessed = (Part(self._at + (t - self._count) * mean, mean, t, 0) for t in tiles if t not in self._parts)
            known = (part for tile in tiles for part in self._parts.get(tile, ()))
            return hops, hops * self._stride(), sorted([*known, *guessed])

    def _stride(self) -> int:
        return HOP_BYTES if self._at - self.first <= SMALL_PART_BYTES * self._count else SOT_BYTES

    def _is_whole(self, tile: int) -> bool:
        have = len(self._parts.get(tile, ()))
        return have > 0 and have == self._wanted.get(tile, have if self._ended else 0)

    def _add(self, tile: int, size: int) -> None:
        if self._count == MAX_PARTS:
            raise NotACog(f"more than {MAX_PARTS:,} tile-parts")
        parts = self._parts.setdefault(tile, [])
        parts.append(Part(self._at, size, tile, len(parts)))
        self._at += size
        self._count += 1

    def _walk(self, start: int, data: bytes) -> None:
        """Every tile-part whose head is whole in these bytes, which begin at or before the next one."""
        while not self._ended:
            left = self.stop - self._at
            head = data[self._at - start : self._at - start + SOT_BYTES]
            if len(head) < min(left, SOT_BYTES):
                return
            if left == 0 or head[:2] == struct.pack(">H", EOC):
                self._ended = True
            elif left < SOT_BYTES:
                raise Damaged(f"its codestream ends in the middle of a tile-part, at byte {self.stop:,}")
            else:
                self._take(*sot(head, self._at))

    def _take(self, tile: int, size: int, number: int, count: int) -> None:
        at = f"the tile-part at byte {self._at:,}"
        if size == 0:
            raise Damaged(f"{at} does not say its size; such files are not read")
        if size < LEAST_PART_BYTES or self._at + size > self.stop:
            raise Damaged(f"{at} leads out of the codestream, or holds nothing: {size:,} bytes")
        have = len(self._parts.get(tile, ()))
        if tile >= self.tiles or number != have or (count and number >= count):
            raise Damaged(f"{at} is part {number} of {count} of tile {tile}: no such part was to come")
        if count and self._wanted.setdefault(tile, count) != count:
            raise Damaged(f"{at} says of tile {tile} that it has {count} parts, another one {self._wanted[tile]}")
        self._add(tile, size)


def sot(head: bytes, at: int) -> tuple[int, int, int, int]:
    """Tile, size, number of the part and how many there are (0: not said), from a tile-part's first bytes."""
    marker, size, tile, part_bytes, number, count = struct.unpack(">HHHIBB", head)
    if (marker, size) != (SOT, 10):
        raise Damaged(f"no tile-part begins at byte {at:,}")
    return tile, part_bytes, number, count


@dataclasses.dataclass(frozen=True)
class Range:
    """Bytes [start, stop) of a file, and the tile-parts that they hold."""

    start: int
    stop: int
    parts: tuple[Part, ...]


def plan(parts: Sequence[Part], gap_bytes: int = GAP_BYTES) -> list[Range]:
    """The ranges that hold these parts, in the file's order, joined as `tiff.plan` joins tiles."""
    out: list[Range] = []
    for part in sorted(parts):
        last = out[-1] if out else None
        stop = part.start + part.size
        if last and part.start - last.stop <= gap_bytes and stop - last.start <= MAX_RANGE_BYTES:
            out[-1] = Range(last.start, stop, (*last.parts, part))
        else:
            out.append(Range(part.start, stop, (part,)))
    return out
