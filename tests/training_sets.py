"""Small shard sets and configs for tests of the training."""

import numpy as np

from model.records import Records
from model.shards import write_set
from model.training.config import config_of

COUNT = 70
CONFIG = """
[data]
shards = {shards!r}
batch = 14
[encoder]
name = "tiny"
width = 16
layers = 1
heads = 2
feed-forward = 20
hidden = 12
native-dims = 8
[views]
s2-length = 5
s1-length = 4
[projector]
widths = [12, 12]
[optimiser]
rate = 0.01
[schedule]
steps = 8
[run]
seed = 3
device = "cpu"
threads = 1
save-every = 3
log-every = 1
"""


def records_of(count=COUNT, seed=1, dates=9):
    """Pixels of two kinds, seasons apart, clouded and noisy; some have no radar."""
    random = np.random.RandomState(seed)
    t2, t1 = random.randint(3, dates, count), random.randint(0, dates, count)
    s2_offsets, s1_offsets = (np.concatenate([[0], np.cumsum(t)]).astype(np.int64) for t in (t2, t1))
    kind = np.arange(count) % 2
    days2, days1 = (np.concatenate([np.sort(random.randint(1, 367, n)) for n in t]).astype(np.int16) for t in (t2, t1))
    season = np.sin((days2 / 366 + kind.repeat(t2) / 2) * 2 * np.pi)[:, None]
    s2 = 2000 + 900 * season * np.linspace(-1, 1, 10) + random.normal(0, 120, (len(days2), 10))
    s1 = 5000 + 800 * kind.repeat(t1)[:, None] + random.normal(0, 300, (len(days1), 2))
    valid2 = random.random(len(days2)) < 0.8
    valid2[s2_offsets[:-1]] = True
    return Records(
        tile=np.array([b"32TQR", b"33TUL"])[kind], row_px=np.arange(count, dtype=np.int32),
        col_px=np.zeros(count, np.int32), lon=np.full(count, 12.0), lat=np.full(count, 45.0),
        land=np.ones(count, np.float32), s2_offsets=s2_offsets, s1_offsets=s1_offsets, s2=s2.astype(np.uint16),
        s2_valid=valid2, s2_doy=days2, s1=s1.astype(np.int16), s1_valid=np.ones(len(days1), bool),
        s1_orbit=random.randint(0, 2, len(days1)).astype(np.uint8), s1_doy=days1,
    )  # fmt: skip


def small_set(folder, count=COUNT, profile="v2", **more):
    return write_set(
        folder, [records_of(count)], profile_name=profile, period="2024", origin={"made": "by a test"},
        shard_records=32, **more,
    )  # fmt: skip


def config_for(shards, *overrides):
    return config_of(CONFIG.format(shards=str(shards)), "test", overrides)


def stepped(shards, *overrides, steps=range(1), dtype="float64"):
    """Steps of a training on this rank without a file: the terms, gradients and embeddings of each, weights at the end.

    {"steps": [(terms, {parameter: gradient}, z)], "weights": {parameter: value}}
    """
    import torch

    from model.losses.reduce import rank, ranks
    from model.shards import open_shards
    from model.training.device import Device
    from model.training.feed import feed
    from model.training.loop import given_of, gradients, prepared, update
    from model.training.run import build, profile_of

    config = config_for(shards, *overrides)
    opened = open_shards(shards)
    device = Device(torch.device("cpu"), config.optimiser.precision)
    built = build(config, profile_of(config, opened), config.schedule.steps)
    built.objective.to(getattr(torch, dtype))
    trained = prepared(built.objective, config, device)
    seen = []
    for fed in feed(opened, built.draw, config.run.seed, config.data.batch, steps, rank(), ranks()):
        given = given_of(fed, config, device.device)
        terms, z = gradients(trained, given, fed.step, device, config.run.micro_batch)
        named = built.objective.named_parameters()
        grads = {name: p.grad.clone() for name, p in named if p.grad is not None}
        seen.append(({name: t.detach() for name, t in terms.items()}, grads, z))
        update(trained, config.optimiser, config.optimiser.rate)
    return {"steps": seen, "weights": {n: p.detach().clone() for n, p in built.objective.named_parameters()}}
