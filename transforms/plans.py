"""Plans: what a run wants of a product, a tile and a block, small enough to travel with every element."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

from transforms.grid import TILE_PX, Block, blocks_of
from transforms.receipts import Desk
from transforms.regions import Clip

# Raised only when a release can change a pixel of an embedding; a part of every revision.
PIXEL_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, as every worker must know it.

    Attributes:
      run: name of the run, its folder under `_runs/`.
      out: the output folder or URL.
      period: name of the period.
      model_name, model_sha256: the model; it lies at `_inputs/<sha256>.onnx`.
      inventory: digest; it lies at `_inputs/<digest>.parquet`.
      product: digest of the product record.
      tiles: digest of the list of tiles at `_inputs/<digest>.tiles.json`, "" for all tiles of the inventory.
      region: digest of the region at `_inputs/<digest>.region.geojson`, "" for whole tiles.
      block_px, micro_batch_px, provider: how blocks are made; a mismatch redoes unfinished blocks.
      threads: of the session, 0 for all cores. readers: files read at once, per process.
      memory_bytes: what a block may take of a worker.
      max_failures: failed blocks after which no further one is begun; 0 for no limit.
      force: also redo what is published.
      preview: name of the preview's colours at `_inputs/<name>.preview.json`.
      version: of the software.
      overlap: who owns pixels that lie in two tiles: "full", every tile its own. A part of the product too.
      overviews: whether embeddings and scales are published with overviews.
      licence: of the embeddings, for the collection; "" leaves what stands there.
      blocks_at_once: that a worker process works on; each may take `memory_bytes`.
    """

    run: str
    out: str
    period: str
    model_name: str
    model_sha256: str
    inventory: str
    product: str
    tiles: str
    region: str
    block_px: int
    micro_batch_px: int
    provider: str
    threads: int
    readers: int
    memory_bytes: int
    max_failures: int
    force: bool
    preview: str
    version: str
    overlap: str = "full"
    overviews: bool = False
    licence: str = ""
    blocks_at_once: int = 1

    @property
    def blocks_made_with(self) -> dict[str, Any]:
        """What a block's result depends on beyond its tile's revision."""
        return {
            "block_px": self.block_px,
            "micro_batch_px": self.micro_batch_px,
            "provider": self.provider,
            "preview": self.preview,
        }

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)


@dataclasses.dataclass(frozen=True, order=True)
class BlockTask:
    """A block to be made: the element that is shuffled.

    Attributes:
      block: the window.
      revision: of its tile. clip: digest of the tile's clip, "" for the whole tile.
    """

    block: Block
    revision: str
    clip: str


def digest_of(record: Any) -> str:
    """sha256 of a JSON record, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def revision_of(product: str, tile: str, period: str, scenes: str, clip: str) -> str:
    """A tile's identity: product, tile, period, scenes with their decisions, clip and PIXEL_VERSION."""
    return digest_of(
        {
            "product": product,
            "tile": tile,
            "period": period,
            "scenes": scenes,
            "clip": clip,
            "pixel_version": PIXEL_VERSION,
        }
    )


def desk_of(plan: Plan, task: BlockTask) -> Desk:
    """Where a task's receipt, attempts and fragments lie."""
    made_with = digest_of(plan.blocks_made_with)[:8]
    return Desk(f"_work/{plan.period}/{task.block.tile}/{task.revision[:8]}/{made_with}")


@functools.lru_cache(maxsize=64)  # asked for after every block; a clip's mask of a whole tile takes seconds
def tasks_of(tile: str, revision: str, clip: Clip | None, block_px: int) -> tuple[BlockTask, ...]:
    """The blocks of a tile that hold at least one wanted pixel, row by row."""
    blocks = list(blocks_of(tile, block_px))
    if clip is not None:
        whole = clip.mask(tile, 0, 0, TILE_PX, TILE_PX)
        blocks = [b for b in blocks if whole[b.row_px : b.row_px + b.height_px, b.col_px : b.col_px + b.width_px].any()]
    return tuple(BlockTask(b, revision, clip.digest if clip else "") for b in blocks)
