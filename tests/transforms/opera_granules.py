"""Records of OPERA's bursts as the archives have them, and their files."""

import json
import re

import numpy as np
import rasterio
from stac_items import TILE

from transforms.catalogs.items import record_of
from transforms.catalogs.search import open_catalog
from transforms.catalogs.selection import select
from transforms.periods import period_of

YEAR = period_of("2024")


def name_of(burst="T146-312000-IW2", taken="20240506T160713Z", made="20240507T010713Z", satellite="S1A"):
    return f"OPERA_L2_RTC-S1_{burst}_{taken}_{made}_{satellite}_30_v1.0"


def granule(name=None, folder="opera", start=None, **said):
    """A record as granules.json has it."""
    name = name or name_of()
    taken = re.search(r"_(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z_", name).groups()
    links = [
        {"href": f"{folder}/{name}_{kind}"} for kind in ("VV.tif", "VH.tif", "mask.tif", "BROWSE.png", "VV.tif.md5")
    ]
    return {"title": name, "time_start": start or "{}-{}-{}T{}:{}:{}.000Z".format(*taken), "links": links, **said}


def umm(name=None, folder="https://cumulus.asf.earthdatacloud.nasa.gov/OPERA", orbit="ASCENDING", points=None):
    """The same as granules.umm_json has it."""
    plain = granule(name, folder)
    files = [link["href"] for link in plain["links"]]
    corners = points or [(15.05, 45.98), (15.09, 45.98), (15.09, 46.01), (15.05, 46.01), (15.05, 45.98)]
    ring = {"Boundary": {"Points": [{"Longitude": x, "Latitude": y} for x, y in corners]}}
    return {
        "meta": {"concept-id": f"G{abs(hash(plain['title']))}-ASF"},
        "umm": {
            "GranuleUR": plain["title"],
            "TemporalExtent": {"RangeDateTime": {"BeginningDateTime": plain["time_start"]}},
            "SpatialExtent": {"HorizontalSpatialDomain": {"Geometry": {"GPolygons": [ring]}}},
            "RelatedUrls": [
                *({"Type": "GET DATA VIA DIRECT ACCESS", "URL": f"s3://opera/{f.rpartition('/')[2]}"} for f in files),
                *({"Type": "GET DATA", "URL": f} for f in files),
                {"Type": "USE SERVICE API", "URL": f"https://h/{plain['title']}_VV.tif"},
            ],
            "AdditionalAttributes": [{"Name": "ASCENDING_DESCENDING", "Values": [orbit]}] if orbit else [],
        },
    }


def write_tif(path, orbit="ASCENDING", epsg=32633, left=504_480, top=5_093_880, shape=(28, 45), **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.Affine(30, 0, left, 0, -30, top)
    with rasterio.open(
        path, "w", driver="COG", dtype="float32", count=1, height=shape[0], width=shape[1], crs=f"EPSG:{epsg}",
        transform=transform, nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(np.full((1, *shape), 0.1, np.float32))
        file.update_tags(**({"ORBIT_PASS_DIRECTION": orbit} if orbit else {}), **tags)
    return path


def on_disk(folder, *granules, **tif):
    """A list of granules beside their files."""
    for g in granules:
        for link in g["links"][:2]:
            write_tif(folder / link["href"], **tif)
    (folder / "granules.json").write_text(json.dumps({"feed": {"entry": list(granules)}}))
    return open_catalog(str(folder / "granules.json"), "opera")


def scenes(catalog, tile=TILE, period=YEAR):
    return select([r for f in catalog.items(tile, period) if (r := record_of(f, tile, catalog.root)) is not None])
