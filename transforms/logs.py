"""Logs: one line an event, with tile and block in fields that a search finds; no pixel, no URL."""

import logging

from transforms.receipts import DONE, Receipt

LOGGER = logging.getLogger("tessera")  # workers of Beam send it to their runner from INFO on


def line(event: str, **fields: object) -> str:
    """`event key=value ..`, values with spaces in quotes (logfmt): read by people and by Cloud Logging alike."""

    def word(value: object) -> str:
        printable = "".join(c if c.isprintable() else " " for c in str(value))  # one line, whatever a file name holds
        text = printable.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"' if not text or any(c in text for c in ' "=\\') else text

    return " ".join([event, *(f"{k}={word(v)}" for k, v in fields.items())])


def block_ended(receipt: Receipt) -> None:
    """A block's end: INFO where it is done, WARNING where it failed."""
    if not LOGGER.isEnabledFor(logging.INFO if receipt.status == DONE else logging.WARNING):
        return  # a planet's lines that nobody reads would be made for nothing
    where = {"tile": receipt.tile, "block": f"{receipt.row_px}_{receipt.col_px}", "period": receipt.period}
    if receipt.status == DONE:
        seconds = receipt.timings_s.get("total", 0.0)
        pixels = receipt.counts.get("embedded", 0)
        LOGGER.info(line("block_done", **where, pixels=pixels, seconds=seconds, attempt=receipt.attempts))
    else:
        failed = {"cause": receipt.cause, "scene": receipt.scene, "band": receipt.band, "reason": receipt.reason}
        LOGGER.warning(line("block_failed", **where, attempt=receipt.attempts, **failed))


def tile_published(tile: str, period: str, revision: str, swept: bool) -> None:
    """A tile's publication; `swept` where its publisher had died."""
    LOGGER.info(line("tile_published", tile=tile, period=period, revision=revision[:8], swept=swept))
