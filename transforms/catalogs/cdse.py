"""Copernicus Data Space: Sentinel-2 L2A as ESA's own JPEG 2000 files on S3, which only holders of keys may read."""

from model.profile import CDSE_L2A
from transforms.catalogs.source import S2_PIXEL_M, Item, Offset, Source, offset_by_baseline
from transforms.scenes import S2

PROVIDER = "cdse"
API_URL = "https://stac.dataspace.copernicus.eu/v1"  # searching needs no key; hrefs are s3://eodata/...


def _offset(_item: Item, baseline: str) -> Offset:
    """By baseline: the files are ESA's own. `raster:offset` says -0.1 for most and is not looked at."""
    return offset_by_baseline(baseline)


SOURCE = Source(
    name=CDSE_L2A,
    sensor=S2,
    collections=("sentinel-2-l2a",),
    keys={band: f"{band}_{pixel_m}m" for band, pixel_m in S2_PIXEL_M.items()},  # B04_10m; B04_20m is a resampled copy
    pixel_m=S2_PIXEL_M,
    offset=_offset,
    tile="grid:code",
    baseline="processing:version",
    generated="processing:datetime",
    datatake="eopf:datatake_id",
    drivers=("JP2OpenJPEG", "GTiff"),  # a private mirror may hold GeoTIFFs
    nodata=0,  # a JPEG 2000 file has no tag for it, and its zeros are no reflectance (ESA S2 PSD)
)
