"""make torture: kills and faults by seed, a table of what became of them, and exit code 4 where anything was lost."""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import kills, mutants, poison, storms, twice
from .ground import KILLED_TILES, make_ground
from .nursery import nursery
from .places import Bucket, Disk, fake_gcs_server, gcs_double
from .table import Row, as_text, ok

CHECK_FAILED = 4  # as the program's own (design, section 5)
ALL = ("kills", "poison", "twice", "storms", "mutants")


def torture(folder: Path, seed: int, rounds: int, mutations: int, only: tuple[str, ...] = ALL) -> list[Row]:
    """The rows of the table.

    Args:
      folder: an empty one for all that is written. rounds: of kills on disk; other faults in proportion. mutations:
        inputs of each kind that are mutated. only: some of ALL.
    """
    rows: list[Row] = []

    def row(kind: str) -> Row:
        if rows:
            sys.stderr.write(f"{rows[-1].kind}: {rows[-1].survived} of {rows[-1].tried}\n")
        rows.append(Row(kind))
        return rows[-1]

    def times(share: float) -> range:
        return range(max(1, round(rounds * share)))

    ground = make_ground(folder)
    with nursery(folder / "logs") as runs, gcs_double() as double:
        courses = kills.undisturbed(ground, runs)
        disk, bucket = Disk(folder / "out"), Bucket(double)
        some = [courses["embed"], courses["replace"]]
        if "kills" in only:
            kills.kill_rounds(runs, ground, courses, disk, seed, rounds, row("kill -9, disk"))
            kills.kill_rounds(runs, ground, courses, bucket, seed, len(times(0.3)), row("kill -9, gs://"))
            with fake_gcs_server() as fake:
                served = row("kill -9, fake-gcs-server")
                if fake is None:
                    served.notes.append(f"{served.kind}: skipped, it is not here: make fake-gcs-server")
                else:
                    kills.kill_rounds(runs, ground, courses, fake, seed + 1, len(times(0.1)), served)
        if "poison" in only:
            poison.poison(runs, ground, disk, row("poison: a file, a block, a hang"))
            poison.antidote(runs, ground, disk, row("the same without the poison"))
        if "twice" in only:
            both = row("two runs of one plan")
            for n in times(0.1):
                for place in (disk, bucket):
                    twice.two_runs(runs, some[n % 2], ground, place, f"{seed} {n}", both)
            bundles = row("one bundle, two workers")
            for n in times(0.05):
                for place in (disk, bucket):
                    twice.one_bundle(runs, some[n % 2], ground, place, bundles, ",".join(KILLED_TILES))
        if "storms" in only:
            storm = row("disk: full, over quota, closed, broken")
            for n in times(0.2):
                storms.disk_storm(runs, some[n % 2], ground, disk, f"{seed} {n}", storm)
            storm = row("gs://: 5xx, lost, 412, cut, slow, late lists")
            for n in times(0.2):
                storms.gcs_storm(runs, some[n % 2], ground, bucket, f"{seed} {n}", storm)
            storms.calm(bucket)
            with storms.s3_road() as road:
                storm = row("s3://: 5xx, lost, cut, short")
                for n in times(0.1) if road else ():
                    storms.s3_storm(runs, some[n % 2], ground, storms.Moto(road), f"{seed} {n}", storm)
            storm = row("clocks that are wrong")
            for n in times(0.05):
                storms.skewed(runs, some[n % 2], ground, disk, f"{seed} {n}", storm)
        if "mutants" in only:
            for kind in mutants.KINDS:
                mutants.mutate(runs, ground, folder / "mutants" / kind, kind, seed, mutations, row(f"mutated {kind}"))
    return rows


@contextlib.contextmanager
def _folder(kept: str) -> Iterator[Path]:
    if kept:
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="tessera-torture-") as folder:
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10, help="kills on disk; other faults in proportion")
    parser.add_argument("--mutations", type=int, help="inputs of each kind that are mutated; 2 x rounds by default")
    parser.add_argument("--only", default=",".join(ALL), help="some of these")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    parser.add_argument("--keep", default="", help="an empty folder to leave everything in")
    a = parser.parse_args()
    began = time.monotonic()
    with _folder(a.keep) as folder:
        rows = torture(folder, a.seed, a.rounds, a.mutations or 2 * a.rounds, tuple(a.only.split(",")))
    text = as_text(rows, f"Torture with seed {a.seed}, {a.rounds} rounds ({time.monotonic() - began:,.0f} s)")
    if a.table:
        a.table.parent.mkdir(parents=True, exist_ok=True)
        a.table.write_text(text)
    sys.stdout.write(text)
    return 0 if ok(rows) else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
