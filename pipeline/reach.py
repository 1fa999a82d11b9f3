"""Reach: whether an inventory's files could be asked for and decoded at all, known before work starts."""

import urllib.parse
from collections.abc import Sequence

from model.errors import BadInput
from transforms import inventory, jp2_decode
from transforms.catalogs.hrefs import is_remote, resolve
from transforms.catalogs.registry import BY_NAME
from transforms.fetching import FetchError
from transforms.http import refusal
from transforms.inventory import Inventory
from transforms.scenes import Scene
from transforms.signing import missing

LOOKED_AT = 3  # tiles: a source keeps its files on few hosts, and a planet's inventory has 18,400 tiles


def check_reach(inv: Inventory, tiles: Sequence[str]) -> None:
    """Looks at the hosts of a few tiles' files, the keys that they want, and the formats.

    Raises:
      BadInput: a file on a server that is no provider's and that the user has not named, or for which the environment
        has no keys; files that this installation cannot decode.
    """
    known: set[str] = set()
    filled = [t for t in tiles if t in inv.counts and inv.counts[t].rows]
    for tile in filled[:LOOKED_AT]:
        for scene in inventory.read_tile(inv.path, tile):
            for asset in scene.assets if scene.kept else ():
                href = resolve(inv.roots[scene.source], asset.href)
                host = urllib.parse.urlsplit(href).netloc if is_remote(href) else ""
                if not _is_decoded(scene, href):
                    raise BadInput(
                        f"tile {tile}, {scene.id} {asset.band}: this GDAL has no {jp2_decode.DRIVER} driver for "
                        "JPEG 2000 files; the rasterio wheels of PyPI have it"
                    )
                if not host or host in known:
                    continue
                known.add(host)
                if (why := _why_not(href)) is not None:
                    raise BadInput(f"tile {tile}, {scene.id} {asset.band}: {why}")


def _is_decoded(scene: Scene, href: str) -> bool:
    """Only by name, for the file's first bytes come later: a mirror of GeoTIFFs wants no other driver."""
    source = BY_NAME.get(scene.source)
    wants = source is not None and jp2_decode.DRIVER in source.drivers
    return not (wants and urllib.parse.urlsplit(href).path.lower().endswith(".jp2")) or jp2_decode.is_there()


def _why_not(href: str) -> str | None:
    try:
        return refusal(href) or missing(href)
    except FetchError as e:
        return e.reason
