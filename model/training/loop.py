"""Loop: step after step from a shard set to a checkpoint, on one device or on many."""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.errors import NotProven
from model.losses.mix import Mixing, draw_mixing
from model.losses.rankme import rankme
from model.losses.reduce import rank, ranks, rows_of_ranks
from model.order import share_of
from model.shards import ShardSet
from model.training.branches import LOSS, Given, Objective, partners_of
from model.training.config import Config
from model.training.device import Device
from model.training.feed import Draw, Fed, Inputs, feed, made_ahead
from model.training.progress import Progress
from model.training.schedule import position, share_of_rate
from model.training.tables import Optimiser
from model.views import keys_of

STOPPED = "stopped.pt"  # what was there before a step that could not be done
LEAST_SCALE = 2.0**-24  # of fp16's gradients: forty steps skipped in a row from where it begins, 2**16
back: Callable[..., None] = torch.autograd.backward  # untyped in PyTorch


@dataclasses.dataclass
class Trained:
    """What a step changes.

    Attributes:
      objective: the module with all weights. wrapped: the same as it is called, under DDP where there are ranks and
        the batch is not in parts.
      optimiser: AdamW. scaler: of fp16's gradients; does nothing otherwise.
    """

    objective: Objective
    wrapped: nn.Module
    optimiser: torch.optim.AdamW
    scaler: torch.amp.GradScaler


def optimiser_of(module: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW whose weight decay is for matrices alone."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = settings.beta1, settings.beta2
    return torch.optim.AdamW(groups, lr=settings.rate, betas=betas, eps=settings.epsilon)


def prepared(objective: Objective, config: Config, device: Device) -> Trained:
    """What is trained, on its device. Every rank must have made the same weights."""
    objective.to(device.device)
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.precision == "fp16")
    whole = ranks() == 1 or config.run.micro_batch
    # Gradients that are the buckets' own memory: without it they would be there twice, a projector's as well.
    wrapped = (
        objective
        if whole
        else DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    )
    return Trained(objective, wrapped, optimiser_of(objective, config.optimiser), scaler)


def on_device(inputs: Inputs[Any], device: torch.device) -> Inputs[Tensor]:
    """Arrays as tensors on a device."""
    return Inputs(*(torch.from_numpy(a).to(device, non_blocking=True) for a in inputs))


def given_of(fed: Fed, config: Config, device: torch.device) -> Given:
    """A step's batch as the module takes it: on the device, with the rows to be mixed, and the keys of dropout."""
    seed, batch = config.run.seed, config.data.batch
    first, second = on_device(fed.first, device), on_device(fed.second, device)
    partner: Inputs[Tensor] | None = None
    mixing: Mixing | None = None
    if config.loss.mix_rule and not config.distil.teacher:
        mixing = draw_mixing(batch, seed, fed.step, config.loss.alpha, config.loss.beta)
        partner = partners_of(second, mixing, share_of(batch, rank(), ranks()))
    keys = np.stack([keys_of(fed.index, "dropout", seed, fed.epoch, branch) for branch in range(3)])
    return Given(first, second, partner, mixing, torch.from_numpy(keys.view(np.int64)).to(device))


def gradients(
    trained: Trained, given: Given, step: int, device: Device, micro: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Adds the gradient of a step's loss to every parameter's `grad`, scaled as the scaler says.

    A loss of a batch's statistics is not a mean over its parts: parts that pass by themselves give another loss. So
    where the rows pass the encoder in parts of `micro`, all of them pass once without a history, the loss of their
    embeddings gives these a gradient each, and with it each part passes again (Gao et al. 2021, arXiv 2101.06983). Its
    dropout is drawn by key, so both passes drop the same.

    Returns:
      the terms of the loss, and the first branch's embeddings of this rank's rows.
    """
    rows = len(given.first.s2)
    if not micro:
        with device.autocast():
            terms, z = trained.wrapped(given, step)
        back(trained.scaler.scale(terms[LOSS]))
        return terms, z
    parts = [given.part(slice(first, min(first + micro, rows))) for first in range(0, rows, micro)]
    objective = trained.objective
    with torch.no_grad(), device.autocast():
        made = [objective.embeddings(part) for part in parts]
    leaves = tuple(torch.cat(branch).requires_grad_() for branch in zip(*made, strict=True))
    with device.autocast():
        terms = objective.terms(leaves, given, step)
    back(trained.scaler.scale(terms[LOSS]))
    for n, part in enumerate(parts):
        with device.autocast():
            again = objective.embeddings(part)
        own = slice(n * micro, n * micro + len(part.first.s2))
        back(again, [leaf.grad[own] for leaf in leaves if leaf.grad is not None])
    mean_over_ranks(objective)
    return terms, leaves[0].detach()


def mean_over_ranks(module: nn.Module) -> None:
    """What DistributedDataParallel does on the way back, after it: it knows no batch in parts with one loss."""
    if ranks() == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks()


def may_recover(scaler: torch.amp.GradScaler) -> bool:
    """Whether a gradient that is not finite may be so for its scale alone: fp16, until the scale is out of reason."""
    return scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE


class Stopped(NotProven):
    """A training that cannot go on; what it had stands in a checkpoint."""


def update(trained: Trained, settings: Optimiser, rate: float) -> float:
    """One step of AdamW with the gradients that are there; they are gone then.

    Returns:
      the length of the gradient, before it was clipped. Not finite: nothing was changed.
    """
    for group in trained.optimiser.param_groups:
        group["lr"] = rate
    trained.scaler.unscale_(trained.optimiser)
    parameters = [p for p in trained.objective.parameters() if p.grad is not None]
    length = float(nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf))
    if math.isfinite(length) or trained.scaler.is_enabled():
        trained.scaler.step(trained.optimiser)  # fp16: skipped where a gradient is not finite, and the scale is lowered
        trained.scaler.update()
    trained.optimiser.zero_grad(set_to_none=True)
    return length


@dataclasses.dataclass
class Outcome:
    """How a loop ended.

    Attributes:
      step: the next one. last: the numbers of the last line of progress. complete: all steps are done.
    """

    step: int
    last: dict[str, float]
    complete: bool


def train(
    trained: Trained,
    shards: ShardSet,
    draw: Draw,
    config: Config,
    device: Device,
    steps: range,
    save: Callable[[int, str], None],
    progress: Progress | None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Does these steps.

    Args:
      steps: from the one to go on with to the end of the training.
      save: writes the checkpoint of a state in front of a step, under a name.
      progress: of rank 0; None on others.
      stop: asked behind every step; a training that it stops is saved.

    Raises:
      Stopped: the loss or its gradient is not finite; what was there before that step is saved as "stopped.pt", by the
        time that any rank raises.
      BadInput: a shard that is damaged or gone.
    """
    every, rates = config.run.log_every, config.optimiser.rate
    batches = feed(shards, draw, config.run.seed, config.data.batch, steps, rank(), ranks(), config.data.stored)
    last: dict[str, float] = {}
    clock, told = time.perf_counter(), steps.start
    with contextlib.closing(made_ahead(batches, config.run.ahead)) as items:
        for fed in items:
            step = fed.step
            given = given_of(fed, config, device.device)
            terms, z = gradients(trained, given, step, device, config.run.micro_batch)
            loss = terms[LOSS].item()
            rate = rates * share_of_rate(step, steps.stop, config.schedule)
            if not math.isfinite(loss):
                raise _stopped(step, "the loss", terms, save)
            length = update(trained, config.optimiser, rate)
            if not math.isfinite(length) and not may_recover(trained.scaler):
                raise _stopped(step, "the gradient", terms, save)
            done = step + 1
            if done % every == 0 or done == steps.stop:
                everyone = rows_of_ranks(z)
                now = time.perf_counter()
                epoch, seen = position(done, len(shards), config.data.batch)
                last = {
                    "step": done,
                    "steps": steps.stop,
                    "epoch": epoch,
                    "seen": seen,
                    **{name: term.item() for name, term in terms.items()},
                    "rate": rate,
                    "gradient": length,
                    "rankme": rankme(everyone),
                    "pixels_per_s": round((done - told) * config.data.batch / max(now - clock, 1e-9), 1),
                    "seconds": round(now - clock, 3),
                }
                if progress:
                    progress.tell(last)
                clock, told = now, done
            if done == steps.stop:
                break
            if stop():
                save(done, "last.pt")
                return Outcome(done, last, False)
            if done % config.run.save_every == 0:
                save(done, "last.pt")
    save(steps.stop, "last.pt")
    return Outcome(steps.stop, last, True)


def _stopped(step: int, what: str, terms: dict[str, Tensor], save: Callable[[int, str], None]) -> Stopped:
    """Saves what is there, and says why nothing follows."""
    save(step, STOPPED)
    if ranks() > 1:
        dist.barrier()  # torchrun ends every rank as soon as one has failed, the one that still writes too
    numbers = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
    return Stopped(
        f"step {step:,}: {what} is not finite ({numbers}). Nothing was changed by it: {STOPPED} has what was there "
        "before, last.pt, if there is one, the last good save. A lower rate, a longer warm-up or a clip may help"
    )


def digest_of(shards: ShardSet) -> str:
    """What a shard set holds, hexadecimal: the checksums of its shards in their order, wherever they lie."""
    entries = [[s.records, s.sha256] for s in shards.manifest.shards]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
