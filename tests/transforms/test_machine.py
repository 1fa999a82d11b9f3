import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from pipeline.planning import EmbedOptions, make_plan
from transforms import embed
from transforms.machine import Machine, check_machine, machine
from transforms.memory import budget_for
from transforms.regions import region_from_bbox

GIB = 1 << 30
SIZES = {"s2_scenes": 70, "s1_scenes": 60, "dims": 128, "readers": 16, "micro_batch_px": 256, "widest": 1024}


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": f"MemTotal:  {8 * GIB // 1024} kB\nMemFree:  1 kB\n"}
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "gib", "what"),
    [
        ({}, 8, "this machine"),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": "max\n"}, 8, "this machine"),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": f"{3 * GIB}\n"}, 3, "the control group"),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/memory.max": f"{2 * GIB}\n"}, 2, "the control group"),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.high": f"{GIB}\n", f"{V2}/memory.max": "max"}, 1,
         "the control group"),
        ({"proc/self/cgroup": "4:memory:/x\n0::/\n", f"{V1}/x/memory.limit_in_bytes": f"{GIB}\n"}, 1,
         "the control group"),
        ({"proc/self/cgroup": "5:cpu,memory:/x\n", f"{V1}/x/memory.limit_in_bytes": "9223372036854771712\n"}, 8,
         "this machine"),
        # A container of version 1 sees the host's path, and its own group at the top.
        ({"proc/self/cgroup": "4:memory:/host/path\n", f"{V1}/memory.limit_in_bytes": f"{5 * GIB}\n"}, 5,
         "the control group"),
        ({"proc/self/cgroup": "3:cpuset:/x\n", f"{V1}/x/memory.limit_in_bytes": f"{GIB}\n"}, 8, "this machine"),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/memory.max": f"{64 * GIB}\n"}, 8, "this machine"),
    ],
)  # fmt: skip
def test_the_least_limit_around_the_process_counts(tmp_path, files, gib, what):
    put(tmp_path, MEMINFO | files)
    assert machine(tmp_path) == Machine(gib * GIB, what)


def test_where_nothing_says_so_nothing_is_known(tmp_path):
    assert machine(tmp_path) is None
    check_machine(budget_for(block_px=2048, **SIZES, limit_bytes=1 << 50), 100, None)


def test_this_machine_says_how_much_it_has():
    here = machine()
    assert here is not None and here.memory_bytes > 1 << 28


@given(st.sampled_from([512, 1024, 2048, 4096]), st.integers(1, 8), st.integers(1 << 28, 1 << 35))
def test_what_a_refusal_names_would_do(block_px, workers, memory_bytes):
    budget = budget_for(block_px=block_px, **SIZES, limit_bytes=1 << 50)
    here = Machine(memory_bytes, "this machine")
    try:
        check_machine(budget, workers, here)
    except BadInput as e:
        text = str(e)
    else:
        assert workers * budget.total_bytes <= memory_bytes
        return
    assert workers * budget.total_bytes > memory_bytes
    assert f"blocks of {block_px} px, and this machine has {memory_bytes / GIB:.1f} GiB" in text
    assert ("--workers" in text) == (workers > 1)
    if block := re.search(r"--block (\d+)", text):
        smaller = budget_for(block_px=int(block[1]), **SIZES, limit_bytes=memory_bytes // workers)
        check_machine(smaller, workers, here)
    if memory := re.search(r"--memory (\d+\.\d)", text):
        lower = budget_for(block_px=block_px, **SIZES, limit_bytes=int(float(memory[1]) * GIB))
        check_machine(lower, workers, here)


def test_a_worker_on_too_small_a_machine_refuses_to_start(world, tmp_path, monkeypatch):
    options = EmbedOptions(region=region_from_bbox(world.bbox), block_px=2048, tiles=("32TQR",))
    plan, budget, _ = make_plan(world.inv, world.model, str(tmp_path / "out"), options)
    for memory_bytes, starts in ((budget.total_bytes, True), (budget.total_bytes - 1, False)):
        monkeypatch.setattr("transforms.budgets.machine", lambda n=memory_bytes: Machine(n, "the control group"))
        if starts:
            embed.open_worker(plan).pool.shutdown()
        else:
            with pytest.raises(
                BadInput, match=r"1 worker needs .* blocks of 2048 px, and the control group has .*--block 1024"
            ):
                embed.open_worker(plan)
    least = dataclasses.replace(plan, block_px=1024)
    embed.open_worker(least).pool.shutdown()
