"""Dataflow: Google's managed runner, with our image on workers that may carry a card."""

import dataclasses
import importlib.util
import re
from typing import Any, ClassVar

from model.errors import BadInput
from pipeline.engines.base import NOTHING_STAGED, Engine, Job, check_at_least, nearest, setting
from pipeline.engines.beam_options import check_beam_args
from pipeline.engines.images import check_image

# Card, as the service calls it -> series of machines that carry it (Compute Engine, GPU platforms).
CARDS = {
    "nvidia-l4": ("g2-standard",),
    "nvidia-tesla-a100": ("a2-highgpu",),
    "nvidia-a100-80gb": ("a2-ultragpu",),
    "nvidia-h100-80gb": ("a3-highgpu",),
    "nvidia-tesla-t4": ("n1-standard", "n1-highmem", "n1-custom"),
}
# GB of memory a virtual CPU, by series (Compute Engine, machine families); G2 has 4 GB, custom ones differ.
GB_A_CPU = {
    "n1-standard": 3.75, "n1-highmem": 6.5, "n2-standard": 4.0, "n2-highmem": 8.0, "n2d-standard": 4.0,
    "n2d-highmem": 8.0, "e2-standard": 4.0, "e2-highmem": 8.0, "c3-standard": 4.0, "c3-highmem": 8.0,
    "g2-standard": 4.0,
}  # fmt: skip
GB_A_CARD = {"a2-highgpu": 85.0, "a2-ultragpu": 170.0, "a3-highgpu": 234.0}  # machines named by their number of cards
SYSTEM_GB = 2.0  # what the operating system and the runner's own process take of a worker


def memory_gb(machine: str) -> float | None:
    """Memory of a machine type, None for one that this release does not know."""
    series, _, size = machine.rpartition("-")
    if series in GB_A_CPU and size.isdigit():
        return GB_A_CPU[series] * int(size)
    if series in GB_A_CARD and re.fullmatch(r"\d+g", size):
        return GB_A_CARD[series] * int(size[:-1])
    return None


@dataclasses.dataclass(frozen=True)
class Dataflow(Engine):
    """A job of the service: one worker process a machine, so that a card's memory holds one model.

    Nothing is staged and no session is saved: the image has everything that runs.
    """

    name: ClassVar[str] = "dataflow"
    remote: ClassVar[bool] = True
    start_min: ClassVar[float] = 60.0  # machines with cards are scarce: the service itself gives up after an hour
    patience_min: ClassVar[float] = 360.0

    project: str = setting("", "id of the Google Cloud project", needed=True)
    region: str = setting("", "region of the job: the one that OUT's bucket lies in", needed=True)
    temp: str = setting("", "gs://BUCKET/FOLDER for the service's own small files", needed=True)
    image: str = setting("", "container image of the workers", needed=True)
    machine: str = setting("g2-standard-8", "machine type of a worker")
    accelerator: str = setting("", f"card: {', '.join(CARDS)}; none for the CPU")
    accelerators: int = setting(1, "cards of a worker")
    threads: int = setting(2, "blocks that a worker works on at once: one is read while another one is encoded")
    disk_gb: int = setting(100, "disk of a worker: the image, and scratch")
    workers: int = setting(1, "workers at the start")
    max_workers: int = setting(10, "workers at most")
    service_account: str = setting("", "account that the workers act as")
    network: str = setting("", "VPC network")
    subnetwork: str = setting("", "subnetwork, regions/R/subnetworks/S")
    public_ips: bool = setting(
        False, "whether workers have addresses of their own; without, the network needs a way out"
    )
    labels: tuple[str, ...] = setting((), "key=value, for the bill")
    flexrs: bool = setting(False, "cheaper machines that start within six hours; none with cards")
    any_image: bool = setting(False, "vouch for an image whose tag does not say what is in it")
    machine_memory_gb: float = setting(0.0, "memory of a machine type that this release does not know")

    @property
    def blocks_at_once(self) -> int:
        return self.threads

    def check(self, job: Job) -> None:
        if importlib.util.find_spec("apitools") is None:
            raise BadInput(
                "--runner dataflow needs Beam's parts for Google Cloud: pip install 'tessera-beam[dataflow]'"
            )
        self._check_names()
        check_at_least(self, 1, "threads", "workers", "max_workers", "accelerators")
        if self.disk_gb < 30:
            raise BadInput(f"engine dataflow: disk-gb = {self.disk_gb}: the image alone takes 10 GB: give 30 or more")
        if self.workers > self.max_workers:
            raise BadInput(f"engine dataflow: workers = {self.workers} is more than max-workers = {self.max_workers}")
        if not job.out.startswith("gs://"):
            raise BadInput(f"--out {job.out}: the workers of Dataflow write to a bucket: give gs://BUCKET/FOLDER")
        self._check_card(job)
        check_image(self.name, self.image, job.device, self.any_image)
        self._check_memory(job)
        check_beam_args(job.beam_args, self.flags(job))

    def _check_names(self) -> None:
        """Names that Beam hands over unread; with a bad one it looks for a default bucket for minutes."""
        forms = {
            "project": (r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project id such as my-project-1"),
            "region": (r"[a-z]+-[a-z]+[0-9]+", "a region such as europe-west4, not a zone"),
            "temp": (r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]/.+", "gs://BUCKET/FOLDER, with a folder"),
            "service_account": (r"(|[^@\s]+@[^@\s]+\.[^@\s]+)", "an account's e-mail address"),
        }
        for name, (form, words) in forms.items():
            if not re.fullmatch(form, getattr(self, name)):
                raise BadInput(
                    f"engine dataflow: {name.replace('_', '-')} = {getattr(self, name)!r}: {words} is wanted"
                )
        for label in self.labels:
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}", label):
                raise BadInput(f"engine dataflow: label {label!r}: key=value in small letters is wanted")

    def _check_card(self, job: Job) -> None:
        if (job.device == "cuda") != bool(self.accelerator):
            raise BadInput(
                "engine dataflow: --device cuda needs accelerator, for example nvidia-l4 with machine g2-standard-8"
                if job.device == "cuda"
                else f"engine dataflow: --device cpu with accelerator = {self.accelerator}: a card that nobody uses"
            )
        if not self.accelerator:
            if self.machine.rpartition("-")[0] in {m for series in CARDS.values() for m in series if m[0] in "ga"}:
                raise BadInput(f"engine dataflow: machine {self.machine} carries a card, and --device is cpu")
            return
        if self.accelerator not in CARDS:
            raise BadInput(
                f"engine dataflow: accelerator = {self.accelerator!r}{nearest(self.accelerator, list(CARDS))}: the "
                f"service takes any text and then waits for it; known: {', '.join(CARDS)}"
            )
        if self.machine.rpartition("-")[0] not in CARDS[self.accelerator]:
            raise BadInput(
                f"engine dataflow: machine {self.machine} has no {self.accelerator}: "
                f"take one of {', '.join(f'{s}-N' for s in CARDS[self.accelerator])}"
            )
        if self.accelerators != 1:
            raise BadInput(
                f"engine dataflow: accelerators = {self.accelerators}: one process works with one card, so that more "
                "would stand idle: take more workers with one card each"
            )
        if self.flexrs:
            raise BadInput("engine dataflow: flexrs does not come with cards: leave one of flexrs and accelerator out")

    def _check_memory(self, job: Job) -> None:
        there = self.machine_memory_gb or memory_gb(self.machine)
        if there is None:
            raise BadInput(f"engine dataflow: machine {self.machine} is not known here: say machine-memory-gb = N too")
        wanted = self.threads * job.block_bytes / 1e9
        if wanted > there - SYSTEM_GB:
            raise BadInput(
                f"engine dataflow: {self.threads} threads of {job.block_bytes / 1e9:.1f} GB each take {wanted:.1f} GB, "
                f"and a {self.machine} has {there:.1f} GB, {SYSTEM_GB:.0f} of them the system's: take fewer threads, a "
                "smaller --block or --memory, or a larger machine"
            )

    def flags(self, job: Job) -> list[str]:
        optional: dict[str, Any] = {
            "service_account_email": self.service_account,
            "network": self.network,
            "subnetwork": self.subnetwork,
            "flexrs_goal": "COST_OPTIMIZED" if self.flexrs else "",
        }
        flags = [
            "--runner=DataflowRunner",
            f"--project={self.project}",
            f"--region={self.region}",
            f"--temp_location={self.temp}",
            f"--job_name={job.name}",
            f"--sdk_container_image={self.image}",
            "--sdk_location=container",  # nothing of Beam is staged: the image has it
            f"--machine_type={self.machine}",
            f"--disk_size_gb={self.disk_gb}",
            f"--num_workers={self.workers}",
            f"--max_num_workers={self.max_workers}",
            "--autoscaling_algorithm=THROUGHPUT_BASED",
            *NOTHING_STAGED,
            # One process a machine: each would load the model into the card again (facts, beam 3.2).
            "--experiments=no_use_multiple_sdk_containers",
            # The default differs between releases: never left to them (facts, beam 3.2).
            f"--number_of_worker_harness_threads={self.threads}",
            *(f"--{name}={value}" for name, value in optional.items() if value),
            *(f"--labels={label}" for label in self.labels),
        ]
        if not self.public_ips:
            flags.append("--no_use_public_ips")
        if self.accelerator:
            card = f"type:{self.accelerator};count:{self.accelerators};install-nvidia-driver"
            flags.append(f"--dataflow_service_options=worker_accelerator={card}")
        return flags

    def starts(self) -> str:
        card = f" with {self.accelerators} {self.accelerator}" if self.accelerator else ""
        return (
            f"a Dataflow job in {self.project}, {self.region}: {self.workers} to {self.max_workers} {self.machine}"
            f"{card}, {self.threads} blocks at once on each"
        )

    def link(self, job_id: str) -> str:
        return f"https://console.cloud.google.com/dataflow/jobs/{self.region}/{job_id}?project={self.project}"
