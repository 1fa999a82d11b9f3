"""Dry run: what `embed` would do, with everything checked and nothing read or encoded."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from pipeline.embed import EmbedOptions, make_plan
from pipeline.engines import engine_of
from pipeline.words import memory as memory_words
from transforms.disk_store import LocalStore
from transforms.encode import device_kind
from transforms.storage import open_store
from transforms.tiles import plan_tile


def dry_run(inv_path: str, model_path: str, out: str, options: EmbedOptions) -> dict[str, Any]:
    """What `embed` would do: everything is checked, nothing is read or encoded.

    Raises:
      BadInput: as `embed`.
    """
    target = open_store(out)
    new = target.stat("_inputs/product.json") is None
    plan, budget, tiles = make_plan(inv_path, model_path, out, options)
    try:
        tasks = [plan_tile(plan, tile) for tile in tiles]
    finally:
        if new:  # a look must not claim the folder for a product
            target.delete_all("_inputs")
            target.sweep()
            if isinstance(target, LocalStore):
                with contextlib.suppress(OSError):  # it holds something else
                    Path(target.root).rmdir()
    return {
        "tiles": len(tiles),
        "tiles_to_do": sum(bool(t) for t in tasks),
        "tiles_published": sum(not t for t in tasks),
        "blocks": sum(len(t) for t in tasks),
        "device": device_kind(plan.provider),
        "memory": memory_words(budget, options.workers),
        "memory_per_worker_bytes": budget.total_bytes,
        "beam_options": engine_of(options.runner, options.workers).flags(options.beam_args),
        "plan": dataclasses.asdict(plan),
    }
