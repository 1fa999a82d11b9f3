"""A look at a job before it is submitted: its graph, its fused stages, its environments, the size of the request."""

from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipeline.engines.base import Engine, Job

_PAYLOADS = {
    "beam:env:external:v1": beam_runner_api_pb2.ExternalPayload,
    "beam:env:docker:v1": beam_runner_api_pb2.DockerPayload,
    "beam:env:process:v1": beam_runner_api_pb2.ProcessPayload,
}


def proto_of(engine: Engine, job: Job, graph: beam.PTransform) -> Any:
    """The job's portable pipeline as the engine would submit it; nothing is submitted, no network is used."""
    flags = [*engine.flags(job), *job.beam_args]
    if engine.name == "dataflow":
        # Beam's own dry run: as far as its request goes that needs neither credentials nor network.
        pipeline = beam.Pipeline(options=PipelineOptions([*flags, "--dry_run=True"]))
        _ = pipeline | graph
        return pipeline.run().job.proto_pipeline
    options = PipelineOptions(flags)
    pipeline = beam.Pipeline(runner=_Unrun(), options=options)
    _ = pipeline | graph
    if engine.name == "local":
        return pipeline.to_runner_api()
    return PortableRunner.get_proto_pipeline(pipeline, options)


class _Unrun(beam.runners.PipelineRunner):
    """A runner that is never asked to run: some of Beam's look for their servers as soon as a pipeline is made."""


def environments_of(proto: Any) -> list[dict[str, Any]]:
    """Environments that transforms run in: urn, where or what image, hints."""
    used = {t.environment_id for t in proto.components.transforms.values() if t.environment_id}
    found = []
    for name in sorted(used):
        environment = proto.components.environments[name]
        kind = _PAYLOADS.get(environment.urn)
        payload: Any = kind.FromString(environment.payload) if kind else None
        where = ""
        if environment.urn == "beam:env:external:v1":
            where = payload.endpoint.url
        elif environment.urn == "beam:env:docker:v1":
            where = payload.container_image
        elif environment.urn == "beam:env:process:v1":
            where = payload.command
        hints = {urn: value.decode() for urn, value in environment.resource_hints.items()}
        found.append({"name": name, "urn": environment.urn, "where": where, "hints": hints})
    return found


def stages_of(proto: Any) -> list[list[str]]:
    """Names of the transforms that are fused, stage by stage, as Beam's own greedy fuser does it."""
    _, stages = FnApiRunner().create_stages(proto)
    named = [[t.unique_name for t in stage.transforms if not t.spec.urn.startswith("beam:runner:")] for stage in stages]
    return [names for names in named if names]


def shuffles_of(proto: Any) -> list[str]:
    """Names of the steps behind which data goes over the wire to other workers."""
    found = []
    for transform in proto.components.transforms.values():
        if transform.spec.urn == "beam:transform:group_by_key:v1":
            found.append(transform.unique_name)
    return sorted(found)


def look(engine: Engine, job: Job, graph: beam.PTransform) -> dict[str, Any]:
    """What a dry run shows of a job: options, steps, stages, shuffles, environments, bytes of the request."""
    proto = proto_of(engine, job, graph)
    stages = stages_of(proto)
    return {
        "options": [*engine.flags(job), *job.beam_args],
        "starts": engine.starts(),
        "stages": stages,
        "shuffles": shuffles_of(proto),
        "environments": environments_of(proto),
        "request_bytes": proto.ByteSize(),
    }
