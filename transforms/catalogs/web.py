"""The web as catalogues without a STAC API ask it: tries that wait, and no query string in any log."""

import logging
import re

import urllib3
from urllib3.util.retry import Retry

# Retry-After is obeyed; waits between tries add up to half a minute. A silent server is asked twice, not seven times.
RETRY = Retry(
    total=6, read=1, redirect=False, backoff_factor=0.5, backoff_jitter=0.5, backoff_max=30, raise_on_status=False,
    status_forcelist=(429, 500, 502, 503, 504),
)  # fmt: skip
CONNECT_S = 10.0
_LOGGER = "urllib3.connectionpool"  # it writes the address of every request, and signatures stand in their queries


class _NoQueries(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]*", "", record.getMessage()), ()
        return True


_NO_QUERIES = _NoQueries()


def pool(read_s: float) -> urllib3.PoolManager:
    """Connections that are tried again, and given up after `read_s` seconds without a byte."""
    logging.getLogger(_LOGGER).addFilter(_NO_QUERIES)
    return urllib3.PoolManager(retries=RETRY, timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s))
