"""Flink: a cluster, or one embedded in its job server, with our image as worker pool beside each TaskManager."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import ClassVar

from apache_beam.options.pipeline_options import FlinkRunnerOptions

from model.errors import BadInput
from pipeline.engines.base import Job, check_at_least, setting
from pipeline.engines.portable import Environment

EMBEDDED = ("[local]", "[auto]")  # masters that run inside the job server (Beam's flink_runner.py)
VERSIONS: tuple[str, ...] = tuple(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS)
# Batch on 1.x is the long proven translator (facts, beam 2.3); Beam's own default is the newest.
VERSION = "1.20"


@dataclasses.dataclass(frozen=True)
class Flink(Environment):
    """A Flink that runs the portable graph. Its restarts are not relied on: the next run does what is missing."""

    name: ClassVar[str] = "flink"
    environment: str = setting("external", "where workers run: external (a pool), docker, process or loopback")
    master: str = setting("", "HOST:PORT of the cluster's REST address, or [local] inside the job server", needed=True)
    flink_version: str = setting(VERSION, f"version of the cluster: {', '.join(VERSIONS)}")
    job_server_jar: str = setting("", "path of beam-runners-flink-<version>-job-server, of our version of Beam")
    uber_jar: bool = setting(True, "submit one jar over REST, without a job server process here; never for [local]")
    parallelism: int = setting(1, "task slots that the job takes")
    workers_per_task_manager: int = setting(1, "worker processes of a TaskManager; one a card")

    @property
    def embedded(self) -> bool:
        return self.master in EMBEDDED

    @property
    def elsewhere(self) -> bool:
        return not self.embedded

    def check(self, job: Job) -> None:
        if self.flink_version not in VERSIONS:
            raise BadInput(
                f"engine flink: flink-version = {self.flink_version}: this Beam has {', '.join(VERSIONS)}; jar, "
                "cluster and this setting must be of one version"
            )
        check_at_least(self, 1, "parallelism", "workers_per_task_manager")
        if self.embedded:
            if self.environment == "external" and not self.worker_pool:
                raise BadInput(
                    "engine flink: master [local] with environment external needs worker-pool, or take loopback"
                )
        else:
            if not re.fullmatch(r"(https?://)?[A-Za-z0-9._-]+:\d{1,5}/?", self.master):
                raise BadInput(f"engine flink: master = {self.master!r}: HOST:PORT of the REST address, or [local]")
            if self.environment == "loopback":
                raise BadInput(
                    "engine flink: environment loopback runs the workers in this process, which a cluster does not "
                    "reach: take external, with our image as worker pool (deploy/flink)"
                )
        if self.environment == "docker" and not self.embedded:
            raise BadInput("engine flink: environment docker needs Docker on every TaskManager: take external")
        if self.job_server_jar and not Path(self.job_server_jar).is_file():
            raise BadInput(f"engine flink: job-server-jar = {self.job_server_jar}: there is no such file")
        if not self.job_server_jar:
            raise BadInput(
                "engine flink: job-server-jar is missing: Beam would fetch it over the network in the middle of a "
                f"run. Get beam-runners-flink-{self.flink_version}-job-server of Beam's version from Maven Central"
            )
        if (version := re.search(r"flink-(\d+\.\d+)", Path(self.job_server_jar).name)) and version[
            1
        ] != self.flink_version:
            raise BadInput(
                f"engine flink: {Path(self.job_server_jar).name} is for Flink {version[1]}, and flink-version is "
                f"{self.flink_version}: take a pair"
            )
        if (self.embedded or not self.uber_jar) and shutil.which("java") is None:
            raise BadInput("engine flink: there is no java in PATH, which the job server needs (17 is fine)")
        super().check(job)

    def flags(self, job: Job) -> list[str]:
        flags = [
            "--runner=FlinkRunner",
            f"--flink_master={self.master}",
            f"--flink_version={self.flink_version}",
            f"--flink_job_server_jar={self.job_server_jar}",
            f"--parallelism={self.parallelism}",
            f"--sdk_worker_parallelism={self.workers_per_task_manager}",
            f"--job_name={job.name}",
            *self.environment_flags(),
        ]
        return [*flags, "--flink_submit_uber_jar"] if self.uber_jar and not self.embedded else flags

    def starts(self) -> str:
        where = "inside a job server on this machine" if self.embedded else f"at {self.master}"
        return (
            f"a job on Flink {self.flink_version} {where}, parallelism {self.parallelism}, workers: {self.environment}"
        )

    def link(self, job_id: str) -> str:
        if self.embedded:
            return ""
        base = self.master if "://" in self.master else f"http://{self.master}"
        return f"{base.rstrip('/')}/#/job/running"
