"""A worker process as portable runners start one: what Beam's boot program does, without staging anything.

`tessera-beam-worker --id ID --provision_endpoint H:P ..` is one worker; `tessera-beam-worker --pool PORT` waits for
runners that ask for workers (environment external).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc as provision_grpc
from apache_beam.portability.api import endpoints_pb2
from google.protobuf import json_format, text_format

CALL_S = 60.0  # for the one question that a worker asks before it starts


def ask(endpoint: str, worker: str) -> Any:
    """What the runner provides for a worker: options and addresses (ProvisionInfo of the Fn API)."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = provision_grpc.ProvisionServiceStub(channel)
        request = provision.GetProvisionInfoRequest()
        return stub.GetProvisionInfo(request, timeout=CALL_S, metadata=(("worker_id", worker),)).info


def environment_of(worker: str, info: Any, given: argparse.Namespace) -> dict[str, str]:
    """The variables by which Beam's worker knows where to connect (apache_beam/runners/worker/sdk_worker_main.py)."""

    def place(named: str, known: Any) -> str:
        found = known if known.url else endpoints_pb2.ApiServiceDescriptor(url=named)
        return str(text_format.MessageToString(found)) if found.url else ""

    options = json_format.MessageToDict(info.pipeline_options)
    return {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json.dumps(options),
        "LOGGING_API_SERVICE_DESCRIPTOR": place(given.logging_endpoint, info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": place(given.control_endpoint, info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "SEMI_PERSISTENT_DIRECTORY": "",
    }


def pool(port: int) -> None:
    """Starts workers of this very program whenever a runner asks, until it is stopped."""
    from apache_beam.runners.worker import worker_pool_main

    program = str(Path(sys.argv[0]).absolute())
    worker_pool_main.main([f"--service_port={port}", f"--container_executable={program}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=0, help="port to wait on for runners that want workers")
    parser.add_argument("--id", default="")
    for name in ("provision", "logging", "control", "artifact"):
        parser.add_argument(f"--{name}_endpoint", default="")
    given, _ = parser.parse_known_args(argv)
    if given.pool:
        pool(given.pool)
        return 0
    worker = given.id.strip("'")  # Prism hands over the quotes too (facts, checked 2.1.3)
    if not worker or not given.provision_endpoint.strip("'"):
        parser.error("a runner starts this program, with --id and --provision_endpoint; --pool PORT waits for one")
    os.environ.update(environment_of(worker, ask(given.provision_endpoint.strip("'"), worker), given))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
