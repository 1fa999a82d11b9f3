"""Engines: what runs the graph, and the Beam options that make it do so."""

import dataclasses
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import BadInput

# Named outright: Beam's DirectRunner picks another runner from release to release.
FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Local:
    """This machine: one process, or `workers` of them.

    One process runs one bundle at a time, so that reading and encoding overlap inside a block, not between blocks.
    Beam's `multi_threading` mode is not offered: it takes memory without bound from some thousand elements on.
    """

    workers: int = 1

    def flags(self, extra: Sequence[str] = ()) -> list[str]:
        """Beam's options as a command line has them."""
        mode = "in_memory" if self.workers == 1 else "multi_processing"
        return [
            f"--runner={FN_API_RUNNER}",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={self.workers}",
            "--default_sdk_harness_log_level=ERROR",  # of worker processes, whose chatter would cover the progress
            *extra,
        ]

    def options(self, extra: Sequence[str] = ()) -> PipelineOptions:
        return PipelineOptions(self.flags(extra))


def engine_of(runner: str, workers: int) -> Local:
    """The engine of that name.

    Raises:
      BadInput: a runner that is not offered, or a worker count under 1.
    """
    if workers < 1:
        raise BadInput(f"--workers {workers}: it must be 1 or more")
    if runner != "local":
        raise BadInput(f"--runner {runner}: this release runs on 'local' (--workers N for N processes)")
    return Local(workers)
