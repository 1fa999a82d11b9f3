"""What a bench says at its end: its rows as a table for people, or as one JSON object."""

import json
import sys
from collections.abc import Sequence
from typing import Any


def tell(name: str, rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool, **more: Any) -> None:
    """Writes rows to stdout: a table of some of their columns, or all of them under the bench's name.

    more: what the JSON object holds beside the rows.
    """
    if as_json:
        sys.stdout.write(json.dumps({**more, name: rows}) + "\n")
        return
    table = [tuple(columns), *([cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        sys.stdout.write("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() + "\n")


def cell(value: Any) -> str:
    """A number in four digits, or all before its point; nothing for None; words ("not measured: why") as they are."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str | bool) else f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
