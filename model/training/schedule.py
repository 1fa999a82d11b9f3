"""Schedule: the learning rate of every step, and where in the data it stands."""

import math

from model.errors import BadInput
from model.training.tables import Schedule


def steps_of(schedule: Schedule, records: int, batch: int) -> int:
    """How many steps a training has over so many records.

    Raises:
      BadInput: fewer records than a batch, or epochs that make no whole step.
    """
    each = steps_per_epoch(records, batch)
    steps = schedule.steps or int(schedule.epochs * each)
    if not steps:
        raise BadInput(f"[schedule] epochs = {schedule.epochs:g}: of {records:,} records that is no step of {batch:,}")
    return steps


def steps_per_epoch(records: int, batch: int) -> int:
    """Whole batches in a pass over the records.

    Raises:
      BadInput: there is none.
    """
    if records < batch:
        raise BadInput(f"[data] batch = {batch:,}: the shard set has {records:,} records; make it smaller")
    return records // batch


def position(step: int, records: int, batch: int) -> tuple[int, int]:
    """Where a step stands: its epoch, and how many records all ranks together have seen of that before it."""
    epoch, within = divmod(step, steps_per_epoch(records, batch))
    return epoch, within * batch


def share_of_rate(step: int, steps: int, schedule: Schedule) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    The warm-up rises in equal parts and reaches 1 with its last step, so no step has a rate of 0; the way down is half
    a cosine that reaches the floor with the last step of all. A training gone on with needs no more than the number
    of its step.
    """
    up = round(schedule.warmup * steps)
    if step < up:
        return (step + 1) / up
    down = steps - up - round(schedule.plateau * steps)  # steps on the way down
    behind = step - (steps - down) + 1  # how many of these are done with this one
    if behind <= 0:
        return 1.0
    return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * behind / down)) / 2
