"""The demo on every engine of this machine: wall time, and whether the published bytes are those of the local run.

python bench/engines.py [--json] [--check] [--folder DIR]
Prism is named by PRISM, on the PATH or in build/bin (`make prism` builds it there).
"""

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from portable import prism_program, worker_pool, worker_program
from table import tell

from pipeline.demo.run import model_path

CHECK_FAILED = 4
PROGRAM = [sys.executable, "-c", "from pipeline.cli import main; main()"]
COLUMNS = ("engine", "seconds", "objects", "same_bytes")


def published(out: Path) -> dict[str, str]:
    """Name -> sha256 of everything that a run publishes: all but the folders with clocks in them."""
    names = (p for p in out.rglob("*") if p.is_file() and p.relative_to(out).parts[0] != "_runs")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


@contextlib.contextmanager
def settings_of(name: str, prism: str | None, folder: Path) -> Iterator[list[str] | None]:
    """Options of an engine, None where it is not here."""
    if name.startswith("local"):
        yield ["--workers", name.rpartition(" ")[2]]
        return
    if prism is None:
        yield None
        return
    kind = name.rpartition(" ")[2]
    chosen = ["--runner", "prism", "--set", f"prism={prism}", "--set", f"environment={kind}"]
    if kind == "external":
        with worker_pool(folder / "pool.log") as address:
            yield [*chosen, "--set", f"worker-pool={address}"]
        return
    yield chosen + (["--set", f"command={worker_program()}"] if kind == "process" else [])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    subprocess.run([*PROGRAM, "demo", str(folder / "demo")], check=True, stdout=subprocess.DEVNULL)
    wanted, rows = published(folder / "demo" / "out"), []
    prism = prism_program()
    for name in ("local, processes: 1", "local, processes: 2", "prism loopback", "prism external", "prism process"):
        out = folder / name.replace(" ", "-").replace(",", "").replace(":", "")
        with settings_of(name, prism, folder) as options:
            if options is None:
                rows.append({"engine": name, "seconds": "not measured: no prism here", "same_bytes": None})
                continue
            command = ["embed", str(folder / "demo/inventory.parquet"), "--model", model_path(), "--out", str(out)]
            begun = time.perf_counter()
            subprocess.run([*PROGRAM, *command, *options], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
            seconds = time.perf_counter() - begun
        found = published(out)
        rows.append({"engine": name, "seconds": seconds, "objects": len(found), "same_bytes": found == wanted})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 4 where bytes differ")
    parser.add_argument("--folder", type=Path, help="an empty one to leave everything in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tessera-engines-") as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows_of(folder)
    tell("engines", rows, COLUMNS, options.json)
    return CHECK_FAILED if options.check and any(r["same_bytes"] is False for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
