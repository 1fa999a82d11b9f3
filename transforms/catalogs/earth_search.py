"""Earth Search: the names that both of its Sentinel-2 collections share."""

PROVIDER = "earth-search"
API_URL = "https://earth-search.aws.element84.com/v1"

# Keys of the COG assets. `sentinel-2-l2a` has a second set, `red-jp2` and so on, raw and requester-pays: never used.
KEYS = {
    "B04": "red", "B02": "blue", "B03": "green", "B08": "nir", "B8A": "nir08", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B11": "swir16", "B12": "swir22", "SCL": "scl",
}  # fmt: skip
