"""Engines: what runs the graph, one class each, and the Beam options that make it do so."""

from collections.abc import Mapping
from typing import Any

from model.errors import BadInput
from pipeline.engines.base import Engine as Engine
from pipeline.engines.base import Job as Job
from pipeline.engines.base import nearest as nearest
from pipeline.engines.base import typed as typed
from pipeline.engines.dataflow import Dataflow as Dataflow
from pipeline.engines.flink import Flink as Flink
from pipeline.engines.local import Local as Local
from pipeline.engines.portable import Portable as Portable
from pipeline.engines.prism import Prism as Prism

ENGINES: dict[str, type[Engine]] = {e.name: e for e in (Local, Prism, Portable, Flink, Dataflow)}


def engine_of(runner: str, settings: Mapping[str, Any]) -> Engine:
    """The engine of that name with its settings; it is not checked against a job yet (`Engine.check`).

    Raises:
      BadInput: a runner that is not offered, or settings that it has not.
    """
    if runner not in ENGINES:
        # DirectRunner picks another runner from release to release; Dask loses results in silence (facts, checked 2.5).
        raise BadInput(f"--runner {runner}{nearest(runner, list(ENGINES))}: this release runs on {', '.join(ENGINES)}")
    return ENGINES[runner].from_settings(settings)
