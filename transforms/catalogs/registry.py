"""The registry: every source this release reads, and which of them an item belongs to."""

from model.errors import BadInput
from transforms.catalogs import cdse, earth_search, earth_search_c1, earth_search_l2a, opera, planetary_computer
from transforms.catalogs.source import Item, Source

# In order of preference where two sources hold the same product: metadata that tell the truth come first.
SOURCES = (
    earth_search_c1.SOURCE,
    earth_search_l2a.SOURCE,
    planetary_computer.OPTICAL,
    cdse.SOURCE,
    planetary_computer.RADAR,
    opera.SOURCE,
)
BY_NAME = {source.name: source for source in SOURCES}
RANK = {source.name: n for n, source in enumerate(SOURCES)}
API_URLS = {module.PROVIDER: module.API_URL for module in (earth_search, planetary_computer, cdse)}  # STAC APIs
PROVIDERS = (*API_URLS, opera.PROVIDER)


def check_provider(provider: str | None) -> None:
    """Raises BadInput where `provider` is neither None nor one of `PROVIDERS`."""
    if provider is not None and provider not in PROVIDERS:
        raise BadInput(f"--as {provider}: this release knows {', '.join(PROVIDERS)}")


def source_of(item: Item, provider: str | None = None) -> Source | None:
    """The source whose description an item follows, or None for a collection that is none of ours.

    Without a provider the item's asset keys must tell: Earth Search has `red` and so on, Planetary Computer `B04`,
    Copernicus Data Space `B04_10m`.

    Raises:
      BadInput: no provider is given and the assets fit several sources of that collection, or none.
    """
    collection = item.get("collection")
    named = [s for s in SOURCES if collection in s.collections]
    if provider is not None:
        return next((s for s in named if s.provider == provider), None)
    if not named:
        return None
    assets = item.get("assets")
    keys = set(assets) if isinstance(assets, dict) else set()
    fitting = [s for s in named if keys & set(s.keys.values())]
    if len(fitting) == 1:
        return fitting[0]
    if len(named) == 1:
        return named[0]  # nobody else has such a collection; the assets it lacks are a matter of the scene
    which = " or ".join(s.provider for s in named)
    raise BadInput(
        f"item {item.get('id')}: collection {collection} may be that of {which}, and its assets do not tell; "
        f"say whose description it follows with {' or '.join(f'--as {s.provider}' for s in named)}"
    )
