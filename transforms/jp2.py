"""JPEG 2000: where a tiled single-band JP2 keeps its tiles, from its first bytes, and a tile as a codestream alone."""

import dataclasses
import struct
from collections.abc import Mapping, Sequence

from transforms.jp2_parts import EOC, MAX_PARTS, SOD, SOT, SOT_BYTES, Part, Parts, plan, sot
from transforms.tiff import (
    GAP_BYTES,
    MAX_HEADER_BYTES,
    MAX_SIDE_PX,
    MAX_TILE_BYTES,
    Damaged,
    MoreNeeded,
    NotACog,
    Window,
)

SIGNATURE = bytes.fromhex("0000000c6a5020200d0a870a")  # ISO 15444-1 I.5.1: every JP2 begins with it

# ISO 15444-1, annex A. PPM holds the packet headers of all tiles in one place, PPT those of one tile; TLM, PLM, CRG and
# COM say nothing that a tile on its own needs.
SOC, SIZ, PPM, PPT, TLM, PLM, CRG, COM = 0xFF4F, 0xFF51, 0xFF60, 0xFF61, 0xFF55, 0xFF57, 0xFF63, 0xFF64
_LEFT_OUT = frozenset((TLM, PLM, CRG, COM))

# What GDAL is given to find the grid: header, GML and the degenerate GeoTIFFs of GeoJP2 and MSIG.
_BOXES = frozenset((b"jP  ", b"ftyp", b"jp2h", b"asoc", b"uuid"))
_SUPERBOXES = frozenset((b"jp2h", b"asoc", b"res "))
_GEO_UUIDS = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), bytes.fromhex("96a9f1f1dc98402da7aed68e34451809"))

# Limits: a Sentinel-2 band has 121 tiles of 1024 px in one part each, and 3 KB of boxes.
MAX_BOXES = 256
MAX_BOX_BYTES = 256 << 10  # of all boxes that GDAL is given
MAX_DEPTH = 8  # GML boxes of GDAL and ESA are three deep; GDAL follows them by recursion
MAX_MARKERS = 1024
MAX_TILES = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Codestream:
    """What the first bytes of a JP2 say of its one image.

    Attributes:
      height_px, width_px, tile_height_px, tile_width_px: sizes; the grid of tiles begins with the image.
      dtype: numpy name, as GDAL reads it: uint8 or uint16.
      siz: the SIZ segment. others: the main header's other segments that a tile needs to be decoded.
      boxes: those in front of the codestream that tell its grid.
      parts: where its tiles lie.
    """

    height_px: int
    width_px: int
    tile_height_px: int
    tile_width_px: int
    dtype: str
    siz: bytes
    others: bytes
    boxes: bytes
    parts: Parts

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def size_bytes(self) -> int:
        return 4096 + len(self.boxes) + len(self.others) + self.parts.size_bytes

    def tiles_of(self, window: Window) -> list[int]:
        """Numbers of the tiles that a window touches, row by row.

        Raises:
          ValueError: an empty window, or one that leaves the raster.
        """
        row, col, height, width = window
        if min(row, col) < 0 or min(height, width) < 1 or row + height > self.height_px or col + width > self.width_px:
            raise ValueError(f"{window} is not within {self.height_px} x {self.width_px} px")
        rows = range(row // self.tile_height_px, (row + height - 1) // self.tile_height_px + 1)
        cols = range(col // self.tile_width_px, (col + width - 1) // self.tile_width_px + 1)
        return [i * self.across + j for i in rows for j in cols]

    def box_of(self, tile: int) -> Window:
        """The pixels of a tile."""
        i, j = divmod(tile, self.across)
        row, col = i * self.tile_height_px, j * self.tile_width_px
        height, width = min(self.tile_height_px, self.height_px - row), min(self.tile_width_px, self.width_px - col)
        return Window(row, col, height, width)


def plan_reads(image: Codestream, window: Window, gap_bytes: int = GAP_BYTES) -> tuple[int, int, int]:
    """Requests, bytes that move, and bytes of them that hold wanted pixels, for a window of a file with this header.

    Exact where the tiles' places are known; where they have yet to be found, as if the others were like the known ones.

    Raises:
      ValueError: as `Codestream.tiles_of`.
    """
    tiles = image.tiles_of(window)
    hops, hop_bytes, parts = image.parts.expected(tiles)
    needed = 0.0
    for part in parts:
        row, col, height, width = image.box_of(part.tile)
        tall = min(row + height, window.row_px + window.height_px) - max(row, window.row_px)
        wide = min(col + width, window.col_px + window.width_px) - max(col, window.col_px)
        needed += part.size * tall * wide / (height * width)
    ranges = plan(parts, gap_bytes)
    return hops + len(ranges), hop_bytes + sum(r.stop - r.start for r in ranges), round(needed)


def is_jp2(start: bytes) -> bool:
    """Whether a file that begins so is a JP2."""
    return start.startswith(SIGNATURE)


def parse(start: bytes, total_bytes: int) -> Codestream:
    """The image of a JP2 of which `start` are the first bytes.

    Raises:
      MoreNeeded: `start` is too short, and with how many bytes to go on.
      NotACog: no JP2, one with several bands, signed or more than 16 bits, in one piece or with an offset grid, with
        packet headers apart (PPM), cut short, or with sizes that no such file has.
      Damaged: its first tile-part is none.
    """
    boxes, at, stop = _boxes(start, total_bytes)
    siz, others, listed, first = _main_header(start, total_bytes, at, stop)
    width, height, x0, y0, tile_width, tile_height, tile_x0, tile_y0, bands = struct.unpack_from(">8IH", siz, 6)
    if bands != 1 or len(siz) != 43:
        raise NotACog(f"the file has {bands} bands, one was expected")
    depth, dx, dy = siz[40:43]
    if depth >= 16 or (dx, dy) != (1, 1):  # the highest bit says "signed", the others one less than the bits
        raise NotACog(f"samples of kind {depth} and steps {dx}, {dy}: 1 to 16 bits without a sign were expected")
    dtype = "uint8" if depth < 8 else "uint16"
    if any((x0, y0, tile_x0, tile_y0)):
        raise NotACog("its image or its tiles do not begin at 0, 0")
    if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX and tile_height and tile_width):
        raise NotACog(f"a raster of {height:,} x {width:,} px in tiles of {tile_height:,} x {tile_width:,} px")
    held = min(tile_height, height) * min(tile_width, width) * (1 if dtype == "uint8" else 2)
    tiles = -(-height // tile_height) * -(-width // tile_width)
    if held > MAX_TILE_BYTES or tiles > MAX_TILES:
        raise NotACog(f"{tiles:,} tiles of {tile_height:,} x {tile_width:,} px: {held:,} bytes each")
    parts = Parts(first, stop, tiles, listed)
    parts.walk(first, start[first:])
    return Codestream(height, width, tile_height, tile_width, dtype, siz, others, boxes, parts)


def _within(start: bytes, total_bytes: int, at: int, size: int) -> bytes:
    stop = at + size
    if stop > total_bytes:
        raise NotACog(f"its header leads to byte {stop:,}, the file has {total_bytes:,}")
    if stop > MAX_HEADER_BYTES:
        raise NotACog(f"its header leads to byte {stop:,}: no image of Sentinel-2 has so much in front of its pixels")
    if stop > len(start):
        raise MoreNeeded(stop)
    return start[at:stop]


def _boxes(start: bytes, total_bytes: int) -> tuple[bytes, int, int]:
    """Boxes that tell the grid, and where the codestream begins and ends."""
    if not is_jp2(_within(start, total_bytes, 0, min(total_bytes, len(SIGNATURE)))):
        raise NotACog("it is no JP2")
    kept: list[bytes] = []
    at = 0
    for _ in range(MAX_BOXES):
        size, kind = struct.unpack(">I4s", _within(start, total_bytes, at, 8))
        head = 8
        if size == 1:  # its size is in eight bytes
            (size,) = struct.unpack(">Q", _within(start, total_bytes, at + 8, 8))
            head = 16
        elif size == 0:  # to the file's end
            size = total_bytes - at
        if size < head or at + size > total_bytes:
            raise NotACog(f"its box at byte {at:,} ends at {at + size:,}, the file has {total_bytes:,} bytes")
        if kind == b"jp2c":
            return b"".join(kept), at + head, at + size
        box = _within(start, total_bytes, at, size)
        if kind in _BOXES and (kind != b"uuid" or box[head : head + 16] in _GEO_UUIDS):
            _check_depth(box, MAX_DEPTH)
            kept.append(box)
            if sum(map(len, kept)) > MAX_BOX_BYTES:
                raise NotACog(f"more than {MAX_BOX_BYTES:,} bytes in front of its codestream")
        at += size
    raise NotACog(f"no codestream among its first {MAX_BOXES} boxes")


def _check_depth(boxes: bytes, depth: int) -> None:
    """Boxes in boxes are whole and not too deep."""
    at = 0
    while at < len(boxes):
        if len(boxes) - at < 8:
            raise NotACog("a box is cut short")
        size, kind = struct.unpack_from(">I4s", boxes, at)
        if size < 8 or at + size > len(boxes):  # eight bytes for a size, or none: no small box is written so
            raise NotACog(f"a box of {size:,} bytes in one that has {len(boxes) - at:,} left")
        if kind in _SUPERBOXES:
            if depth == 0:
                raise NotACog(f"boxes more than {MAX_DEPTH} deep")
            _check_depth(boxes[at + 8 : at + size], depth - 1)
        at += size


def _main_header(
    start: bytes, total_bytes: int, at: int, stop: int
) -> tuple[bytes, bytes, list[tuple[int, int]] | None, int]:
    """SIZ, the other segments that tiles need, the list of tile-parts where there is one, and the first one's place."""
    if stop - at < 4 or struct.unpack(">HH", _within(start, total_bytes, at, 4)) != (SOC, SIZ):
        raise NotACog("its codestream does not begin with SOC and SIZ")
    at += 2
    siz, others, lists = b"", list[bytes](), dict[int, bytes]()
    for _ in range(MAX_MARKERS):
        (marker,) = struct.unpack(">H", _within(start, total_bytes, at, 2))
        if marker == SOT:
            _within(start, total_bytes, at, SOT_BYTES)
            return siz, b"".join(others), _listed(lists), at
        (size,) = struct.unpack(">H", _within(start, total_bytes, at + 2, 2))
        if not SOC < marker < SOT or size < 2 or at + 2 + size > stop:
            raise NotACog(f"its main header holds {marker:04x} with {size} bytes")
        segment = _within(start, total_bytes, at, 2 + size)
        at += 2 + size
        if marker == SIZ:
            if siz or size < 41:
                raise NotACog("its sizes (SIZ) are given twice or cut short")
            siz = segment
        elif marker == PPM:
            raise NotACog("its packet headers lie apart (PPM); such files are not read")
        elif marker == TLM:
            if size < 4 or segment[4] in lists:
                raise NotACog("its list of tile-parts (TLM) is cut short or given twice")
            lists[segment[4]] = segment[5:]
        elif marker not in _LEFT_OUT:
            others.append(segment)
    raise NotACog(f"more than {MAX_MARKERS:,} segments in its main header")


def _listed(lists: Mapping[int, bytes]) -> list[tuple[int, int]] | None:
    """(tile, size) of every tile-part in order, None without a list (ISO 15444-1 A.7.1)."""
    if not lists:
        return None
    out: list[tuple[int, int]] = []
    for number in sorted(lists):
        kind, body = lists[number][0], lists[number][1:]
        index = {0: "", 1: "B", 2: "H"}.get(kind >> 4 & 3)
        if index is None or kind & ~0x70:
            raise NotACog(f"its list of tile-parts (TLM) is of an unknown kind, {kind:02x}")
        entry = struct.Struct(f">{index}{'I' if kind & 0x40 else 'H'}")
        if len(body) % entry.size or len(out) + len(body) // entry.size > MAX_PARTS:
            raise NotACog("its list of tile-parts (TLM) is cut short or too long")
        for values in entry.iter_unpack(body):
            out.append((values[0] if index else len(out), values[-1]))
    return out


def alone(image: Codestream, tile: int, parts: Sequence[tuple[Part, bytes]]) -> bytes:
    """One tile as a codestream of its own, at its own place on the reference grid, so that no wavelet changes phase.

    Args:
      parts: all parts of the tile in order, with their bytes.

    Raises:
      Damaged: a part is not the one that was to be at its place, or its packet headers lie apart (PPT).
    """
    row, col, height, width = image.box_of(tile)
    siz = bytearray(image.siz)
    struct.pack_into(">4I", siz, 6, col + width, row + height, col, row)
    struct.pack_into(">2I", siz, 30, col, row)
    out = [struct.pack(">H", SOC), bytes(siz), image.others]
    for part, data in parts:
        if len(data) != part.size or sot(data[:SOT_BYTES], part.start)[:3] != (tile, part.size, part.number):
            raise Damaged(f"the tile-part at byte {part.start:,} is not part {part.number} of tile {tile}")
        _check_part_header(data, part)
        out += [data[:4], struct.pack(">H", 0), data[6:]]
    return b"".join([*out, struct.pack(">H", EOC)])


def _check_part_header(data: bytes, part: Part) -> None:
    at = SOT_BYTES
    for _ in range(MAX_MARKERS):
        if len(data) - at < 2:
            break
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == SOD:
            return
        if marker == PPT:
            raise Damaged("its packet headers lie apart (PPT); such files are not read")
        if len(data) - at < 4 or not SOC < marker < SOD:
            break
        at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
    raise Damaged(f"the tile-part at byte {part.start:,} has no beginning of its data")
