"""Memory: what a worker needs for a block, by one formula that `quote` prints and `embed` keeps to."""

import dataclasses

from model.errors import BadInput
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.drift import PIXEL_BYTES, SIDE
from transforms.encode import IN_FLIGHT, PENDING_BYTES

PROCESS_BYTES = 450 << 20  # interpreter, Beam, GDAL with its 256 MB cache half full, ONNX Runtime; measured when idle
BUILD_PX = 1 << 16  # pixels whose d-pixels and tokens exist at once

S2_NATIVE_BYTES = 4 * 2 + 6 * 2 / 4 + 1 / 4  # a scene's 10 m pixel: four 10 m bands, six 20 m bands, SCL
S2_BUILT_BYTES = 10 * 2 + 1
S1_BYTES = 2 * 2  # VV, VH int16
CENTRES_BYTES = 2 * 8  # x and y in another zone, float64, for each of two zones at the most
VALID_BYTES = 1  # a scene's mask while a strip is read
SAMPLE_BYTES = 2 * 8  # a time step of a pixel while it is sorted and chosen, int64
READ_BYTES = 4 + 4 + 4 + 2 * 2 + 1  # a pixel on its way through a reader: patch, on our grid, masked, scaled, valid
TOKEN_BYTES = 10 * 2 + 2 + 2 * 2 + 2 + 1  # the rows of one optical and one radar token
# A pixel while it is brought to 10 m: six 20 m bands in 32-bit numbers, five arrays of a quarter of the pixels; the ten
# bands of a day's second scene before they go into its first.
RESAMPLE_BYTES = 6 * 4 * 5 // 4 + 10 * 2


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a block is walked, and what that takes.

    Attributes:
      strip_px: rows read at once, a multiple of the COG tile or the whole block.
      build_px: rows whose d-pixels are built at once.
      parts_bytes: (what, bytes) of everything that is alive at the same time.
    """

    strip_px: int
    build_px: int
    parts_bytes: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        return sum(n for _, n in self.parts_bytes)


def rows_at_most(scenes: int) -> int:
    """Token rows that any sampler makes of a pixel with so many scenes: v1.0 always 40, the others bins of 8 to 256."""
    return min(256, max(40, -(-scenes // 8) * 8))


def _budget(
    block_px: int, strip_px: int, s2: int, s1: int, dims: int, readers: int, batch_px: int, widest: int
) -> Budget:
    build_px = max(1, min(strip_px, BUILD_PX // block_px))
    strip, build, block = strip_px * block_px, build_px * block_px, block_px * block_px
    strips = 2 if strip_px < block_px else 1  # the next strip is read while this one is encoded
    t2, t1 = rows_at_most(s2), rows_at_most(s1)
    tokens = t2 + t1
    # float32: six tensors of the widest layer, and the scores of four heads (v1.0-early has 8, but 40 rows alone)
    activations = 4 * (6 * tokens * widest + 4 * (t2**2 + t1**2))
    parts = (
        ("process", PROCESS_BYTES),
        ("output", block * (dims + 4 + 3 * 2 + 1)),
        ("fragments", block * (dims + 4)),  # compressed; counted as if nothing were gained
        ("drift guard", s2 * SIDE**2 * PIXEL_BYTES),
        ("native strips", int(strips * strip * (s2 * S2_NATIVE_BYTES + s1 * S1_BYTES))),
        ("reading", strip * (readers * READ_BYTES + 2 * CENTRES_BYTES + s2 * VALID_BYTES)),
        ("d-pixels", build * (s2 * S2_BUILT_BYTES + s1 * S1_BYTES + RESAMPLE_BYTES)),
        ("sampling", build * (s2 + s1) * SAMPLE_BYTES),
        ("tokens", build * tokens * TOKEN_BYTES // 2 + PENDING_BYTES),
        ("session", batch_px * (IN_FLIGHT + 1) * tokens * TOKEN_BYTES // 2 + batch_px * activations),
    )
    return Budget(strip_px, build_px, parts)


def budget_for(
    *,
    block_px: int,
    s2_scenes: int,
    s1_scenes: int,
    dims: int,
    readers: int,
    micro_batch_px: int,
    widest: int,
    limit_bytes: int,
) -> Budget:
    """The tallest strips that fit, for tall ones decode each of the catalogue's 1024 px blocks once.

    Args:
      s2_scenes, s1_scenes: of the tile, kept ones.
      widest: the encoder's widest layer, for the session's activations.

    Raises:
      BadInput: not even the lowest strip fits; the message gives the block size or the memory that would.
    """
    sizes = (block_px, s2_scenes, s1_scenes, dims, readers, micro_batch_px, widest)

    def of(strip_px: int) -> Budget:
        return _budget(block_px, strip_px, *sizes[1:])

    heights = [block_px, *(h for h in (1024, 512, 256, COG_TILE_PX) if h < block_px)]
    for strip_px in heights:
        if (budget := of(strip_px)).total_bytes <= limit_bytes:
            return budget
    need = of(heights[-1]).total_bytes
    raise BadInput(
        f"a block of {block_px} px with {s2_scenes} optical and {s1_scenes} radar scenes needs {need / 2**30:.1f} GiB "
        f"a worker, and {limit_bytes / 2**30:.1f} GiB are allowed: use a smaller --block or a larger --memory"
    )
