"""Searching: what `--catalog` may be given, and the items of tiles in a period."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.api import api_catalog
from transforms.catalogs.cmr import cmr_catalog
from transforms.catalogs.files import FileCatalog
from transforms.catalogs.geoparquet import SUFFIXES, ParquetCatalog, parquet_files
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.items import Found
from transforms.catalogs.registry import BY_NAME, PROVIDERS, check_provider
from transforms.periods import Period


class Catalog(Protocol):
    """A place that items come from.

    Attributes:
      text: as the user gave it. root: folder or URL prefix of its relative hrefs.
      ignored: what was passed over because no source fits it, with counts.
    """

    text: str
    root: str
    ignored: dict[str, int]

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]: ...

    def span(self) -> str: ...


def open_catalog(text: str, provider: str | None = None) -> Catalog:
    """The catalogue that a text names: a provider, a source (collection@provider), a URL, a folder or a file.

    Files are STAC items or lists of them, CMR granules, or stac-geoparquet; folders hold any one of these.

    Args:
      provider: whose description the items follow, where they do not tell (`--as`).

    Raises:
      BadInput: no such catalogue or provider, or what the catalogue's own reader refuses.
    """
    check_provider(provider)
    if is_remote(text) and text.partition("?")[0].lower().endswith(SUFFIXES):
        raise BadInput(f"catalogue {text.partition('?')[0]}: Parquet is read from disk; download it and give its path")
    if (cmr := cmr_catalog(text, provider)) is not None:
        return cmr
    if (api := api_catalog(text, provider)) is not None:
        return api
    path = Path(text)
    if path.is_dir() or path.is_file():
        if files := parquet_files(path):
            return ParquetCatalog(text, path, files, provider)
        return FileCatalog(text, path, provider)
    if path.name != text or path.suffix:
        raise BadInput(f"catalogue {text}: no such folder or file")
    raise BadInput(
        f"catalogue {text}: no such folder, file or provider; "
        f"give a URL, a path, a provider ({', '.join(PROVIDERS)}) or one of its sources ({', '.join(BY_NAME)})"
    )


def items_of(catalog: Catalog, tiles: Sequence[grid.Tile], period: Period) -> Iterator[tuple[grid.Tile, Found]]:
    """Yields the items of each tile, tile by tile; radar items may stand under several tiles."""
    for tile in tiles:
        for found in catalog.items(tile, period):
            yield tile, found
