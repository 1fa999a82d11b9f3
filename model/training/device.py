"""Device: where a training runs, in which precision, on how many ranks; refused where something is not there."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from model.errors import BadInput
from model.heads import ProjectorMemory
from model.training.tables import Run

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a rank computes on.

    Attributes:
      device: of this rank. precision: of the matrix products, a key of `TYPES`.
    """

    device: torch.device
    precision: str

    @property
    def kind(self) -> str:
        """ "cpu" or the card's name, for records: bits are those of one kind of device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def autocast(self) -> torch.autocast:
        """The context in which modules are called."""
        half = self.precision != "fp32"
        return torch.autocast(self.device.type, TYPES[self.precision] if half else torch.bfloat16, enabled=half)


def device_of(run: Run, precision: str, local_rank: int = 0) -> Device:
    """The device that a config asks for.

    Raises:
      BadInput: no CUDA, no card for this rank, or a precision that the device does not have.
    """
    cuda = torch.cuda.is_available()
    if run.device == "cuda" and not cuda:
        built = "this PyTorch has no CUDA" if torch.version.cuda is None else "no card that PyTorch can use"
        raise BadInput(f"[run] device = 'cuda': {built}; take device = 'cpu', or a machine with one")
    if run.device == "cpu" or not cuda:
        if precision == "fp16":
            raise BadInput(
                "[optimiser] precision = 'fp16': a CPU has no float16 products worth having; take fp32 or bf16"
            )
        return Device(torch.device("cpu"), precision)
    if local_rank >= torch.cuda.device_count():
        raise BadInput(f"rank {local_rank} of this machine has no card: there are {torch.cuda.device_count()}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BadInput(
            f"[optimiser] precision = 'bf16': {torch.cuda.get_device_name(device)} has no bfloat16; take fp16 or fp32"
        )
    return Device(device, precision)


def prepare(run: Run, device: Device) -> None:
    """Sets the threads, and whether CUDA's kernels must give the same bits again."""
    if run.threads:
        torch.set_num_threads(run.threads)
    if device.device.type == "cuda" and run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: fixed workspaces, fixed order of sums
        torch.use_deterministic_algorithms(True)


def check_memory(memory: ProjectorMemory, device: Device) -> None:
    """Raises BadInput where the projector's training alone does not fit; what the encoder takes comes on top."""
    if device.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device.device)
    else:
        free = whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory.total > free:
        raise BadInput(
            f"[projector] widths: their training takes {memory.total / 2**30:.1f} GiB of each {device.kind}, which has "
            f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free; take narrower layers, a smaller batch, more ranks "
            "with [loss] split = true"
        )


def of_environment(name: str, otherwise: int) -> int:
    """A number that torchrun leaves in the environment.

    Raises:
      BadInput: it is none.
    """
    text = os.environ.get(name, str(otherwise))
    if not text.isdigit():
        raise BadInput(f"{name}={text}: torchrun sets it to a whole number")
    return int(text)


@contextlib.contextmanager
def ranks_of_environment(run: Run) -> Iterator[int]:
    """Joins the processes that torchrun has started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Yields:
      this rank's number on its machine; 0 for a process by itself. A group that is there already is left alone.

    Raises:
      BadInput: a number that is none, or RANK and WORLD_SIZE that contradict each other.
    """
    world, rank, local = (of_environment(n, o) for n, o in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if rank >= max(world, 1):
        raise BadInput(f"RANK={rank} of WORLD_SIZE={world}: it must be below")
    if world <= 1 or dist.is_initialized():
        yield local
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise BadInput(f"WORLD_SIZE={world} without {', '.join(missing)}: start the ranks with torchrun")
    on_cuda = run.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield local
    finally:
        dist.destroy_process_group()
