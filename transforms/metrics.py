"""Metrics: the names of every counter that a run leaves with its engine, and what a block's receipt adds to them."""

from collections.abc import Mapping

from transforms.receipts import DONE, Receipt

NAMESPACE = (
    "tessera"  # of the counters. They show progress and count a bundle that runs twice twice: receipts are truth
)

TILES_TO_DO = "tiles_to_do"
TILES_PUBLISHED_BEFORE = "tiles_published_before"
TILES_PUBLISHED = "tiles_published"
TILES_SWEPT = "tiles_swept"  # published by the sweep: their publisher had died
BLOCKS_NOT_BEGUN = "blocks_not_begun"  # after a run was stopped or drained

# Counter -> what it counts; the page for operators (docs/operations.md) explains each.
NAMES: dict[str, str] = {
    TILES_TO_DO: "tiles with blocks to be made",
    TILES_PUBLISHED_BEFORE: "tiles that were published already",
    TILES_PUBLISHED: "tiles published by this run",
    TILES_SWEPT: "of them those that the sweep published",
    "blocks_done": "blocks that ended well",
    "blocks_failed": "blocks that ended with a failed receipt",
    BLOCKS_NOT_BEGUN: "blocks that were left out after the run was stopped or drained",
    "attempts": "attempts at blocks, first ones too",
    "pixels": "pixels of ended blocks",
    "pixels_embedded": "of them those with an embedding",
    "pixels_no_optical": "without a valid optical observation, so without an embedding",
    "pixels_no_radar": "embedded without a radar observation",
    "pixels_outside": "outside the region",
    "pixels_in_doubt": "embedded of blocks whose imagery is suspected to have drifted",
    "tokens": "rows that the encoder has seen",
    "encode_ms": "time that the encoder was at work: how busy the card is",
    "read_ms": "time that blocks' readers were at work, beside the encoder",
    "build_ms": "time that building d-pixels took, with handing them to the encoder",
    "write_ms": "time that compressing and writing fragments took",
    "block_ms": "time from a block's begin to its end",
    "requests": "requests to servers",
    "bytes": "bytes of bodies that came whole",
    "retries": "requests that were made again",
    "throttled_ms": "time that readers waited for a turn at a host",
    "fetch_ms": "time from wanting a range to having it, over all readers",
    **{f"failed_{cause}": f"blocks that failed for the cause {cause!r}" for cause in (
        "transient", "input", "killed", "hung", "memory", "disk", "store", "program")},
}  # fmt: skip

_COUNTS = {
    "pixels": "pixels",
    "embedded": "pixels_embedded",
    "no_optical": "pixels_no_optical",
    "no_radar": "pixels_no_radar",
    "outside": "pixels_outside",
    "drift": "pixels_in_doubt",
    "tokens": "tokens",
}
_TIMES = {"encode": "encode_ms", "read": "read_ms", "build": "build_ms", "write": "write_ms", "total": "block_ms"}


def amounts_of(receipt: Receipt) -> dict[str, int]:
    """What a block's end adds to the counters: name -> amount, without zeros.

    To be counted in `process` itself: what a thread of our own counts is lost without a word (facts, beam 1.9).
    """
    network: Mapping[str, float] = receipt.network
    found = {
        "blocks_done" if receipt.status == DONE else "blocks_failed": 1,
        "attempts": receipt.attempts,
        **({f"failed_{receipt.cause}": 1} if receipt.cause else {}),
        **{name: receipt.counts.get(key, 0) for key, name in _COUNTS.items()},
        **{name: round(1000 * receipt.timings_s.get(key, 0)) for key, name in _TIMES.items()},
        "requests": round(network.get("requests", 0)),
        "bytes": round(network.get("bytes", 0)),
        "retries": round(sum(n for name, n in network.items() if name.startswith("retries_"))),
        "throttled_ms": round(1000 * network.get("throttled_s", 0)),
        "fetch_ms": round(1000 * network.get("fetch_s", 0)),
    }
    return {name: amount for name, amount in found.items() if amount}
