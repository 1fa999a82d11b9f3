"""The stale verb: tiles whose revision another inventory or model would change, why, and the cost of making them."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from model.modelfile import open_model
from pipeline.finish import published
from pipeline.planning import at_hand
from pipeline.quote import quote
from pipeline.status import opened
from transforms import inventory
from transforms.objects import local_file
from transforms.plans import digest_of, revision_of
from transforms.scene_rows import scenes_of
from transforms.scenes import Scene
from transforms.stac import item_path, product_record
from transforms.storage import Store

MODEL, SCENES, RELEASE, MISSING = "model", "scenes", "release", "missing"
TILES = 20  # lines of tiles that are shown


def differences(old: Sequence[Scene], new: Sequence[Scene]) -> dict[str, list[str]]:
    """Ids of scenes by what became of them: added, removed, changed. Where nothing of that, their order is another."""
    before, after = {(s.source, s.id): s for s in old}, {(s.source, s.id): s for s in new}
    return {
        "added": sorted(id_ for _, id_ in after.keys() - before.keys()),
        "removed": sorted(id_ for _, id_ in before.keys() - after.keys()),
        "changed": sorted(k[1] for k in before.keys() & after.keys() if before[k] != after[k]),
    }


def stale(out: str, inv_path: str, model_path: str = "", card: str = "L40S") -> dict[str, Any]:
    """Holds published tiles against an inventory of their period, and a model.

    Args:
      model_path: "" for the output's own model.

    Returns:
      `tiles`: {tile, why, and for scenes what was added, removed, changed}, of those that would be made again and of
      those of the inventory that are not published; `fresh`: how many would not; `beyond`: published tiles that the
      inventory has not; `quote`: of making them; `elsewhere`: whether they need another output, for another model.

    Raises:
      BadInput: `out` is no output folder; a file that is none.
    """
    store, product = opened(out)
    inv_path = at_hand(inv_path)
    inv = inventory.read_header(inv_path)
    own = local_file(store, f"_inputs/{product['model_sha256']}.onnx")
    model = open_model(at_hand(model_path) if model_path else own)
    wanted = product_record(model.name, model.sha256, model.profile, inv.overlap)
    rows: list[dict[str, Any]] = []
    fresh, there, beyond = 0, set[str](), []
    for item in published(store, product["model"]):
        properties = item["properties"]
        if properties["tessera:period"] != inv.period.name:
            continue
        tile = properties["tessera:tile"]
        there.add(tile)
        if tile not in inv.counts:
            beyond.append(tile)
        elif why := _why(store, properties, inv, inv_path, product, wanted):
            rows.append({"tile": tile, **why})
        else:
            fresh += 1
    rows += [{"tile": tile, "why": MISSING} for tile in inv.tiles if tile not in there]
    names = tuple(sorted(row["tile"] for row in rows))
    return {
        "out": out,
        "period": inv.period.name,
        "tiles": sorted(rows, key=lambda r: r["tile"]),
        "fresh": fresh,
        "beyond": sorted(beyond),
        "elsewhere": wanted != product,
        "quote": quote(inv_path, str(model.path), names, card=card) if names else None,
    }


def _why(
    store: Store,
    properties: Mapping[str, Any],
    inv: inventory.Inventory,
    inv_path: str,
    product: Mapping[str, Any],
    wanted: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Why a published tile would be made again; None for one that would not."""
    tile, period = properties["tessera:tile"], properties["tessera:period"]
    clip = properties.get("tessera:clip", {}).get("digest", "")
    scenes = inv.counts[tile].digest
    if properties["tessera:revision"] == revision_of(digest_of(wanted), tile, period, scenes, clip):
        return None
    if wanted != product:
        return {"why": MODEL}
    home = item_path(tile, period, str(product["model"])).rpartition("/")[0]
    name = f"{home}/{properties['tessera:revision'][:8]}/scenes.parquet"
    old = scenes_of(pq.read_table(io.BytesIO(store.get(name))))
    if inventory.tile_digest(old) == scenes:
        return {"why": RELEASE}  # PIXEL_VERSION, or another rule of what a revision is made of
    return {"why": SCENES, **differences(old, inventory.read_tile(inv_path, tile))}


def as_text(r: dict[str, Any]) -> str:
    """The result as a person reads it."""
    rows = r["tiles"]
    lines = [f"{r['out']}, {r['period']}: {r['fresh']:,} tiles are what they would be, {len(rows):,} are not"]
    for row in rows[:TILES]:
        words = {
            MODEL: "another model or profile",
            RELEASE: "made by a release whose pixels may differ",
            MISSING: "not published",
            SCENES: "; ".join(
                f"{len(row.get(k, []))} {k}" + (f" ({row[k][0]}{' ..' if len(row[k]) > 1 else ''})" if row[k] else "")
                for k in ("added", "removed", "changed") if row.get(k)
            ) or "scenes in another order",
        }  # fmt: skip
        lines.append(f"  {row['tile']}  {words[row['why']]}")
    if len(rows) > TILES:
        lines.append(f"  .. {len(rows) - TILES:,} more; --json has all, --out FILE writes their names")
    if r["beyond"]:
        lines.append(f"  the inventory has not {', '.join(r['beyond'][:5])}{' ..' if len(r['beyond']) > 5 else ''}")
    if r["quote"]:
        q = r["quote"]
        lines.append(f"to make them: {q['blocks']:,} blocks, {q['pixels']:,} pixels; `tessera-beam quote` says more")
    if r["elsewhere"] and rows:
        lines.append("another model is another product: give embed another --out")
    elif rows:
        lines.append("next: tessera-beam stale .. --out stale.txt, then tessera-beam embed .. --tiles @stale.txt")
    return "\n".join(lines)
