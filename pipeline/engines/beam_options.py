"""Beam's own options: those that a user adds after `--`, held against what Beam knows."""

import argparse
import contextlib
import functools
import io
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import BadInput
from pipeline.engines.base import nearest

# Options of the Flink job server's own, which Beam's Python takes without knowing them
# (FlinkPipelineOptions.java, release 2.77).
FLINK_SERVER = (
    "auto_balance_write_files_sharding_enabled",
    "checkpointing_interval",
    "checkpoint_timeout_millis",
    "execution_retry_delay",
    "externalized_checkpoints_enabled",
    "fail_on_checkpointing_errors",
    "finish_bundle_before_checkpointing",
    "force_slot_sharing_group",
    "max_bundle_size",
    "max_bundle_time_mills",
    "min_pause_between_checkpoints",
    "number_of_execution_retries",
    "num_concurrent_checkpoints",
    "object_reuse",
    "operator_chaining",
    "re_iterable_group_by_key_result",
    "retain_externalized_checkpoints_on_cancellation",
    "savepoint_path",
    "state_backend",
    "state_backend_storage_path",
)


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, add_help=False, conflict_handler="resolve", exit_on_error=False
    )
    for kind in PipelineOptions.__subclasses__():
        if add := kind.__dict__.get("_add_argparse_args"):
            with contextlib.suppress(argparse.ArgumentError):
                add.__func__(kind, parser)
    return parser


def known_options() -> list[str]:
    """Names of every option that this Beam knows, without their hyphens."""
    return sorted(s.removeprefix("--") for a in _parser()._actions for s in a.option_strings if s.startswith("--"))


def check_beam_args(args: Sequence[str], ours: Sequence[str], also: Sequence[str] = ()) -> None:
    """Options after `--`, held against Beam's own list: Beam drops an option that it does not know with a log line.

    Args:
      ours: flags that the engine gives itself. also: names that the engine's own server knows.

    Raises:
      BadInput: an option that nobody knows, one that the engine sets, or a value that Beam refuses.
    """
    names = [a.removeprefix("--").partition("=")[0] for a in args if a.startswith("--")]
    taken = {f.removeprefix("--").partition("=")[0] for f in ours} - {"experiments", "dataflow_service_options"}
    known = {*known_options(), *also}
    for name in names:
        if name == "worker_accelerator":
            raise BadInput(
                "--worker_accelerator is not an option of Beam, which drops it without a word: "
                "give --set accelerator=nvidia-l4 (engine dataflow)"
            )
        if name not in known:
            raise BadInput(f"--{name}: Beam knows no such option and would drop it{nearest(name, sorted(known))}")
        if name in taken:
            raise BadInput(f"--{name} is what the engine itself says: use its settings (--set, [engine] in --config)")
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            _parser().parse_known_args([a for a in args if a.removeprefix("--").partition("=")[0] not in also])
    except (argparse.ArgumentError, SystemExit) as e:
        words = str(e) if isinstance(e, argparse.ArgumentError) else said.getvalue().strip().rpartition("error: ")[2]
        raise BadInput(f"Beam's options: {words}") from None
    loose = [a for i, a in enumerate(args) if not a.startswith("--") and (not i or not args[i - 1].startswith("--"))]
    if loose:
        raise BadInput(f"{loose[0]!r} after -- is no option of Beam")
