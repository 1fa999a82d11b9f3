"""Reach: whether the servers of an inventory's files would be asked at all, known before work starts."""

import urllib.parse
from collections.abc import Sequence

from model.errors import BadInput
from transforms import inventory
from transforms.catalogs.hrefs import is_remote, resolve
from transforms.http import refusal
from transforms.inventory import Inventory

LOOKED_AT = 3  # tiles: a source keeps its files on few hosts, and a planet's inventory has 18,400 tiles


def check_reach(inv: Inventory, tiles: Sequence[str]) -> None:
    """Looks at the hosts of a few tiles' files.

    Raises:
      BadInput: a file on a server that is no provider's and that the user has not named.
    """
    known: set[str] = set()
    filled = [t for t in tiles if t in inv.counts and inv.counts[t].rows]
    for tile in filled[:LOOKED_AT]:
        for scene in inventory.read_tile(inv.path, tile):
            for asset in scene.assets if scene.kept else ():
                href = resolve(inv.roots[scene.source], asset.href)
                host = urllib.parse.urlsplit(href).netloc if is_remote(href) else ""
                if not host or host in known:
                    continue
                known.add(host)
                if (why := refusal(href)) is not None:
                    raise BadInput(f"tile {tile}, {scene.id} {asset.band}: {why}")
