"""Blocks walked in the lowest strips, as a small memory would have it: what tests have would be read at once."""

import dataclasses

import pytest

from transforms import budgets
from transforms.cog import TILE_PX


def low_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of one row of COG tiles, built seven rows at a time, their tokens sent on early."""
    whole = budgets.budget_of
    monkeypatch.setattr("transforms.encode.PENDING_BYTES", 200_000)
    for module in ("transforms.embed", "pipeline.planning"):
        monkeypatch.setattr(
            f"{module}.budget_of", lambda *a: dataclasses.replace(whole(*a), strip_px=TILE_PX, build_px=7)
        )
