"""The clean verb: what no item names any more, old enough that nobody can still be reading or making it."""

import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

from model.errors import BadInput
from pipeline.status import opened
from transforms.stac import item_path
from transforms.storage import Entry, Store

_AGE = re.compile(r"(\d+(?:\.\d+)?)(d|h|m|s)")
_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
LISTED = 1000  # folders that a result names one by one


def age_from_text(text: str) -> float:
    """Seconds of an age such as "7d", "12h", "30m".

    Raises:
      BadInput: another text.
    """
    found = _AGE.fullmatch(text.strip())
    if not found:
        raise BadInput(f"--older-than {text}: write a number and d, h, m or s, for example 7d")
    return float(found[1]) * _SECONDS[found[2]]


def clean(out: str, older_than_s: float, dry_run: bool = False, now: float | None = None) -> dict[str, Any]:
    """Removes replaced revisions, assets that no item names, and the work of revisions that are published or replaced.

    An object is old by the store's own clock. A folder goes as a whole, when the newest of its objects is old enough,
    and so is the item that took its place: who opened the older item just before that can still read on. Unfinished
    work of tiles that a run may still complete stays, however old.

    Args:
      older_than_s: seconds. now: seconds since 1970, the present where None is given.

    Returns:
      `folders` (name, bytes, why), `objects`, `bytes`, `kept_young` (folders that are not old enough).

    Raises:
      BadInput: not an output folder.
    """
    store, product = opened(out)
    limit = (time.time() if now is None else now) - older_than_s
    result: dict[str, Any] = {"out": out, "dry_run": dry_run, "objects": 0, "bytes": 0, "folders": [], "kept_young": 0}
    for folder, entries, why, changed_s in _unnamed(store, str(product["model"])):
        if max(changed_s, *(e.stat.changed_s for e in entries)) > limit:
            result["kept_young"] += 1
            continue
        result["objects"] += len(entries)
        result["bytes"] += (size := sum(e.stat.size_bytes for e in entries))
        if len(result["folders"]) < LISTED:
            result["folders"].append({"folder": folder, "bytes": size, "why": why})
        if not dry_run:
            store.delete_all(folder)
    if not dry_run:
        store.sweep()
    return result


def _unnamed(store: Store, model_name: str) -> Iterator[tuple[str, list[Entry], str, float]]:
    """Folders that nothing needs: name, objects, why, and when that came to be (by the item's last change)."""
    for period in [f for f in store.folders("") if not f.startswith("_")]:
        for tile, found in itertools.groupby(store.walk(period), lambda e: e.name.split("/")[1]):
            yield from _of_tile(store, period, tile, list(found), model_name)
    for period in store.folders("_work"):
        for tile, found in itertools.groupby(store.walk(period), lambda e: e.name.split("/")[2]):
            yield from _of_work(store, period.rpartition("/")[2], tile, list(found), model_name)


def _of_tile(
    store: Store, period: str, tile: str, found: list[Entry], model_name: str
) -> Iterator[tuple[str, list[Entry], str, float]]:
    folders = _grouped(found, 3)
    path = item_path(tile, period, model_name)
    own = next((e for e in found if e.name == path), None)
    if own is not None and len(folders) == 1:
        return  # nothing can be replaced: the item is not even opened
    named, _ = _item(store, path)
    for folder, entries in folders.items():
        if folder not in named:
            why = "replaced by another revision" if named else "no item was ever written for it"
            yield folder, entries, why, own.stat.changed_s if own else 0.0


def _of_work(
    store: Store, period: str, tile: str, found: list[Entry], model_name: str
) -> Iterator[tuple[str, list[Entry], str, float]]:
    path = item_path(tile, period, model_name)
    _, revision = _item(store, path)
    stat = store.stat(path)
    if stat is None:
        return  # unfinished: a run may go on with it
    for folder, entries in _grouped(found, 4).items():
        if folder.endswith(f"/{revision[:8]}"):
            yield folder, entries, "work of the revision that is published", stat.changed_s
        elif max(e.stat.changed_s for e in entries) < stat.changed_s:
            yield folder, entries, "unfinished work of a revision that another one has replaced", stat.changed_s


def _grouped(found: list[Entry], depth: int) -> dict[str, list[Entry]]:
    """Objects by the folder that their names' first `depth` parts are; those that lie higher are left out."""
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        parts = entry.name.split("/")
        if len(parts) > depth:
            groups.setdefault("/".join(parts[:depth]), []).append(entry)
    return groups


def _item(store: Store, path: str) -> tuple[set[str], str]:
    """The folders that an item's assets lie in, and its revision; nothing where there is no item.

    Raises:
      BadInput: the item cannot be read: what it names is not known, and nothing may be removed.
    """
    try:
        item = json.loads(store.get(path))
        hrefs = [str(a["href"]) for a in item["assets"].values()]
        revision = str(item["properties"]["tessera:revision"])
    except FileNotFoundError:
        return set(), ""
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{path} is no item of ours: nothing is removed before it is put right") from None
    home = path.rpartition("/")[0]
    return {f"{home}/{h.removeprefix('./').partition('/')[0]}" for h in hrefs}, revision
