"""Budgets: what the blocks of a plan take of a worker's memory, and whether this machine has it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.modelfile import ModelFile
from transforms import inventory
from transforms.encode import CUDA
from transforms.machine import check_machine, machine
from transforms.memory import Budget, budget_for, native_bytes
from transforms.plans import Plan
from transforms.samplers import sampler_of
from transforms.scenes import S1, S2, Scene
from transforms.storage import open_store


def budget_with(
    model: ModelFile,
    *,
    block_px: int,
    s2_scenes: int,
    s1_scenes: int,
    readers: int,
    micro_batch_px: int,
    limit_bytes: int,
    on_card: bool = False,
) -> Budget:
    """As `budget_for`, with what it asks of the model."""
    bins = sampler_of(model.profile).bins
    return budget_for(
        block_px=block_px,
        s2_scenes=s2_scenes,
        s1_scenes=s1_scenes,
        dims=model.profile.dims,
        readers=readers,
        micro_batch_px=micro_batch_px,
        widest=max(model.encoder.feed_forward, 3 * model.encoder.width),
        limit_bytes=limit_bytes,
        model_bytes=model.path.stat().st_size,
        on_card=on_card,
        rows=(bins[0], bins[-1]),
    )


def budget_of(plan: Plan, model: ModelFile, scenes: Iterable[Scene]) -> Budget:
    """How a block of a tile with these scenes is walked. Raises BadInput when it does not fit the plan's memory."""
    kept = [s.sensor for s in scenes if s.kept]
    return budget_with(
        model,
        block_px=plan.block_px,
        s2_scenes=kept.count(S2),
        s1_scenes=kept.count(S1),
        readers=plan.readers,
        micro_batch_px=plan.micro_batch_px,
        limit_bytes=plan.memory_bytes,
        on_card=plan.provider == CUDA,
    )


def largest_tile(head: inventory.Inventory, names: Sequence[str]) -> str:
    """Of some tiles of an inventory the one with most to read: a worker's memory must be enough for it."""
    counts = (head.counts[name] for name in names)
    return max(counts, key=lambda n: (native_bytes(n.s2, n.s1_ascending + n.s1_descending), n.name)).name


def check_worker(plan: Plan, model: ModelFile, inventory_path: Path, head: inventory.Inventory) -> None:
    """Whether this machine has what one worker takes for the plan's largest tile.

    Raises:
      BadInput: it has not; the message names the block size that would fit.
    """
    tiles = json.loads(open_store(plan.out).get(f"_inputs/{plan.tiles}.tiles.json")) if plan.tiles else head.tiles
    scenes = inventory.read_tile(inventory_path, largest_tile(head, tiles))
    check_machine(budget_of(plan, model, scenes), plan.blocks_at_once, machine())
