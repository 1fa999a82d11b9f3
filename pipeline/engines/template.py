"""The flex template of Dataflow: its parameters, and what its launcher starts."""

import dataclasses
import inspect
import json
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

import typer
from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import BadInput
from pipeline import console
from pipeline.engines import Dataflow
from pipeline.engines.base import Job, typed
from pipeline.engines.beam_options import known_options
from pipeline.exits import ended
from pipeline.job_config import JOB

# Options of `embed` that a launch has not: it waits for nothing, so it cannot go from wave to wave.
NOT_OFFERED = ("wait", "waves")
# Names that are taken: --region is the service's.
OTHER_NAMES = {"region": "region_file", "image": "sdk_container_image"}
NEEDED = ("inventory", "model", "out", "device")  # `auto` is refused where the workers are elsewhere
# What the launcher says by options of Beam's own (gcloud dataflow flex-template run --help) -> our setting of it.
LAUNCHER = {
    "project": "project",
    "region": "region",
    "temp_location": "temp",
    "sdk_container_image": "image",
    "machine_type": "machine",
    "num_workers": "workers",
    "max_num_workers": "max_workers",
    "disk_size_gb": "disk_gb",
    "number_of_worker_harness_threads": "threads",
    "service_account_email": "service_account",
    "network": "network",
    "subnetwork": "subnetwork",
    "use_public_ips": "public_ips",
    "flexrs_goal": "flexrs",
}
_FORMS: dict[Any, str] = {int: r"\d+", float: r"\d+(\.\d+)?", bool: "true|false", str: ".+", tuple[str, ...]: ".+"}
# Closer forms than those of the types: the service refuses a launch that does not match, before a machine starts.
_CLOSER = {
    "inventory": r"gs://[a-z0-9._-]+/.+",
    "model": r"gs://[a-z0-9._-]+/.+\.onnx",
    "out": r"gs://[a-z0-9._-]+/.+",
    "region_file": r"gs://[a-z0-9._-]+/.+",
    "tiles": r"[0-9A-Z,]+|gs://[a-z0-9._-]+/.+",
    "device": "cpu|cuda",
}
# Help where that of the command line speaks of files beside the person who types.
_WORDS = {
    "inventory": "Inventory file in a bucket, from `inventory build`",
    "model": "Model file (.onnx) in a bucket, from `model import`",
    "out": "Folder in a bucket that the embeddings are published in",
    "tiles": "MGRS tiles: A,B,.. or gs://BUCKET/FILE with one a line; without, all of the inventory",
    "region_file": "GeoJSON file in a bucket: polygons of the region",
    "device": "Device of the workers: cpu or cuda",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of the template.

    Attributes:
      name: as the launcher hands it over. option: of `embed`, "" for a setting of the engine. setting: its field, ""
        for an option. kind: its type. words: help. needed: whether a launch must have it. default: "" for none.
    """

    name: str
    option: str
    setting: str
    kind: Any
    words: str
    needed: bool
    default: str

    @property
    def form(self) -> str:
        """Regular expression that the whole value must match."""
        return f"^({_CLOSER.get(self.name, _FORMS[self.kind])})$"


def parameters() -> list[Parameter]:
    """Parameters of the template: the options of `embed`, then the engine's settings that its launcher does not say."""
    from pipeline.cli_embed import embed

    hints = typing.get_type_hints(embed, include_extras=True)
    defaults = inspect.signature(embed).parameters
    found = []
    for option, kind in JOB.items():
        if option in NOT_OFFERED:
            continue
        argument = {"inventory": "inv"}.get(option, option.replace("-", "_"))
        told = next(m for m in typing.get_args(hints[argument])[1:] if isinstance(m, typer.models.ParameterInfo))
        name = OTHER_NAMES.get(option, argument if option != "inventory" else option)
        needed = option in NEEDED
        default = "" if needed else _text(defaults[argument].default)
        words = _WORDS.get(name, (told.help or "").rstrip("."))
        found.append(Parameter(name, option, "", kind, words, needed, default))
    said = {setting for option, setting in LAUNCHER.items() if setting not in ("image", "threads", "disk_gb")}
    for field in dataclasses.fields(Dataflow):
        if field.name in {*said, "labels"}:  # labels: --additional-user-labels of the launcher
            continue
        needed = bool(field.metadata.get("needed"))
        words = field.metadata["words"]
        name = OTHER_NAMES.get(field.name, field.name)
        found.append(Parameter(name, "", field.name, field.type, words, needed, "" if needed else _text(field.default)))
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value in ("", ()) else str(value)


def metadata() -> dict[str, Any]:
    """What deploy/dataflow/metadata.json holds (TemplateMetadata of Dataflow's REST API, v1b3)."""
    listed = []
    for p in parameters():
        words = p.words[0].upper() + p.words[1:]
        listed.append(
            {
                "name": p.name,
                "label": words.partition(":")[0].partition(";")[0],
                "helpText": f"{words}. Default: {p.default}." if p.default else f"{words}.",
                "isOptional": not p.needed,
                "regexes": [p.form],
            }
        )
    return {
        "name": "tessera-beam embed",
        "description": "TESSERA pixel embeddings of an inventory: int8 Cloud-Optimized GeoTIFFs with STAC items.",
        "parameters": listed,
    }


@dataclasses.dataclass(frozen=True)
class Launched(Dataflow):
    """A job that the template's launcher starts: under its name, with what it says to Beam besides."""

    job_name: str = ""
    launcher: tuple[str, ...] = ()

    def flags(self, job: Job) -> list[str]:
        own = [f for f in super().flags(job) if not (self.job_name and f.startswith("--job_name="))]
        return [*own, *([f"--job_name={self.job_name}"] if self.job_name else []), *self.launcher]


def launched(argv: Sequence[str]) -> tuple[dict[str, Any], Launched]:
    """What a launch says: options of `embed`, and the engine.

    Args:
      argv: `--name=value` of the template's parameters, among options of Beam's own.

    Raises:
      BadInput: a value of another type, a missing parameter, an option that neither we nor Beam know.
    """
    offered = {p.name: p for p in parameters()}
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rest = []
    for text in argv:
        name, equals, value = text.removeprefix("--").partition("=")
        if not (text.startswith("--") and name in offered and name not in LAUNCHER):
            rest.append(text)
            continue
        if not equals:
            raise BadInput(f"parameter {name} of the template: --{name}=VALUE is wanted")
        parameter = offered[name]
        found = typed(value, parameter.kind, f"parameter {name} of the template")
        if parameter.option:
            options[parameter.option] = found
        else:
            settings[parameter.setting] = found
    if missing := [n for n in NEEDED if not options.get(n)]:
        raise BadInput(f"parameter {', '.join(missing)} of the template: missing")
    said, passed = _of_launcher(rest)
    engine = Dataflow.from_settings(settings | {k: v for k, v in said.items() if k != "job_name"})
    fields = {f.name: getattr(engine, f.name) for f in dataclasses.fields(engine)}
    return options, Launched(**fields, job_name=said.get("job_name", ""), launcher=passed)


def _of_launcher(rest: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options of Beam's own: those that are settings of the engine, and the others as they stand.

    Raises:
      BadInput: one that Beam does not know, and would drop with a log line.
    """
    known = set(known_options())
    for text in rest:
        if text.startswith("--") and text.removeprefix("--").partition("=")[0] not in known:
            raise BadInput(f"{text.partition('=')[0]}: neither a parameter of the template nor an option of Beam")
    try:
        given = PipelineOptions(list(rest)).get_all_options(drop_default=True)
    except SystemExit:
        raise BadInput("Beam's options: one of them has no value that Beam takes") from None
    settings: dict[str, Any] = {s: given[o] for o, s in LAUNCHER.items() if o in given}
    if "flexrs_goal" in given:
        settings["flexrs"] = given["flexrs_goal"] == "COST_OPTIMIZED"
    if "job_name" in given:
        settings["job_name"] = given["job_name"]
    ours = {*LAUNCHER, "job_name", "runner", "sdk_location", "autoscaling_algorithm"}
    # One action may have several names (--worker_machine_type); what it sets is asked, not how it is spelt.
    passed = tuple(t for t in rest if not set(PipelineOptions([t]).get_all_options(drop_default=True)) & ours)
    return settings, passed


def launch(argv: Sequence[str]) -> dict[str, Any]:
    """Builds the job of a launch and hands it over; nothing is waited for.

    Returns:
      As `pipeline.embed.submitted`.

    Raises:
      BadInput: as `launched` and `embed`.
    """
    from pipeline.cli_options import region_of
    from pipeline.embed import embed
    from pipeline.planning import EmbedOptions, at_hand
    from transforms.regions import names_from_list

    options, engine = launched(argv)
    if options.get("overlap", "full") != "full":
        raise BadInput(f"parameter overlap = {options['overlap']}: this release knows 'full'")
    region = at_hand(options["region"]) if options.get("region") else ""
    tiles = options.get("tiles", "")
    if tiles.startswith("gs://"):
        tiles = f"@{at_hand(tiles)}"
    plain = EmbedOptions()
    said = EmbedOptions(
        tiles=tuple(names_from_list(tiles)) if tiles else (),
        region=region_of(region, options.get("bbox", "")),
        device=options["device"],
        block_px=options.get("block", plain.block_px),
        memory_gib=options.get("memory", plain.memory_gib),
        engine=engine,
        wait=False,
        max_failures=options.get("max-failures", 0),
        force=options.get("force", False),
        overviews=options.get("overviews", False),
        licence=options.get("licence", ""),
    )
    words = shlex.join([f"--{k}={v}" for k, v in options.items()])
    return embed(options["inventory"], options["model"], options["out"], said, f"template {words}", console.say, False)


def main(argv: Sequence[str] | None = None) -> int:
    """What the launcher starts. It ends as soon as the job is handed over, as the service wants it."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given == ["--metadata"]:
        console.show(metadata(), False, lambda found: json.dumps(found, indent=1))
        return console.OK
    return ended(lambda args, **_: console.show(launch(args), True, str), given)


if __name__ == "__main__":
    sys.exit(main())
