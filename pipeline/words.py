"""Words: the results of verbs as a person reads them."""

from typing import Any

from pipeline.network import Network, network_of, told
from transforms.memory import Budget

NAMED = 20  # tiles that are told one by one; --json has them all
TILES = 200  # lines of `status`
WARNINGS = 10
WAITED_SHARE = 0.05  # of fetching, spent waiting for a turn: below that nobody needs to know


def inventory(r: dict[str, Any]) -> str:
    lines = [f"{r['inventory']}  period {r['period']}  digest {r['digest'][:12]}"]
    for tile, n in list(r["tiles"].items())[:NAMED]:
        lines.append(
            f"  {tile}  S2 {n['S2']:4d}  S1 ascending {n['S1 ascending']:3d}  descending {n['S1 descending']:3d}"
            f"  left out {n['dropped']}"
        )
    if len(r["tiles"]) > NAMED:
        lines.append(f"  and {len(r['tiles']) - NAMED} more tiles")
    if r["dropped"]:
        lines.append("  left out: " + ", ".join(f"{n} {why}" for why, n in r["dropped"].items()))
    if r["ignored"]:
        lines.append("  passed over: " + ", ".join(f"{n} {what}" for what, n in r["ignored"].items()))
    return "\n".join([*lines, *_coverage(r["coverage"])])


def _coverage(c: dict[str, Any]) -> list[str]:
    """Dates a tile, month by month, and the tiles with fewest."""
    lines = [f"  dates in {c['tiles']} tiles: median (fewest)", "           S2          S1 ascending  S1 descending"]
    for month, kinds in c["months"].items():
        cells = [f"{k['median']:g} ({k['fewest']})" for k in kinds.values()]
        none = kinds["S2"]["tiles_without"]
        more = f"no optical date in {none} of {c['tiles']}" if none else ""
        lines.append(f"  {month}  {cells[0]:10}  {cells[1]:12}  {cells[2]:12}  {more}".rstrip())
    for w in c["worst"]:
        empty = ", ".join(w["months_without_optical"])
        lines.append(
            f"  {w['tile']} has {w['optical_dates']} optical and {w['radar_dates']} radar dates"
            + (f"; without an optical one: {empty}" if empty else "")
        )
    return lines


def inventory_warnings(r: dict[str, Any]) -> list[str]:
    """The first of the warnings, and how many more there are."""
    said: list[str] = r["warnings"]
    if len(said) <= WARNINGS:
        return said
    c = r["coverage"]
    return [
        *said[:WARNINGS],
        f"and {len(said) - WARNINGS} more (--json has all): of {c['tiles']} tiles, {c['tiles_without_optical']} have "
        f"no optical scene, {c['tiles_without_radar']} no radar, {c['tiles_with_empty_months']} a month without "
        "optical dates",
    ]


def amended(r: dict[str, Any]) -> str:
    return "\n".join([f"{r['inventory']}  digest {r['digest'][:12]}", *(f"  {line}" for line in r["amended"])])


def dpixels(r: dict[str, Any]) -> str:
    return (
        f"{r['out']}: tile {r['tile']}, {r['s2_dates']} optical dates, {r['s1_ascending_dates']} ascending and "
        f"{r['s1_descending_dates']} descending passes, {r['valid_observations']:,} valid observations"
    )


def embedded_dpixels(r: dict[str, Any]) -> str:
    return (
        f"{r['embedded']:,} of {r['pixels']:,} pixels in {r['seconds']} s with {r['model']} on {r['device']}"
        f" ({r['no_optical']:,} without a valid optical observation)\n  {r['codes']}\n  {r['scales']}"
    )


def embedded(r: dict[str, Any]) -> str:
    t = r["totals"]
    rate = f", {t['pixels'] / r['seconds']:,.0f} px/s" if t["pixels"] and r["seconds"] else ""
    lines = [
        f"{t['tiles_published']} of {t['tiles']} tiles published, {t['blocks_done']} blocks done now, "
        f"{t['blocks_skipped']} were there before, {t['blocks_failed']} failed{causes(t.get('failed_by_cause'))}",
        f"{t['pixels']:,} pixels embedded in {r['seconds']:,} s{rate}",
    ]
    if t["blocks_done"] and not t["pixels"] and not t["blocks_failed"]:
        lines.append("  no pixel of the region had a valid optical observation: is the region where the scenes are?")
    if t["blocks_in_doubt"]:
        lines.append(
            f"  {t['blocks_in_doubt']} blocks look as if an offset of 1000 DN had been missed: "
            f"tessera-beam status {r['out']}"
        )
    if (net := network_of(r["network"])) is not None:
        lines += network(net)
    if r.get("stopped"):
        lines.append(f"  no further block was begun: {r['stopped']}")
    for f in r["failures"]:
        lines.append(failure(f))
    if t["blocks_failed"] > len(r["failures"]):
        lines.append(f"  and {t['blocks_failed'] - len(r['failures'])} more: tessera-beam status {r['out']}")
    return "\n".join([*lines, f"in {r['out']}"])


def network(n: Network) -> list[str]:
    """What fetching took; the second line only where something went wrong or was waited for."""
    lines = [f"  from servers: {n.requests:,} requests, {n.moved_bytes / 1e9:,.2f} GB"]
    trouble = [f"{what} {told(kinds)}" for what, kinds in (("retries", n.retries), ("given up", n.failures)) if kinds]
    if n.throttled_share >= WAITED_SHARE:
        trouble.append(f"{n.throttled_share:.0%} of the time for it was waiting for a turn at a busy host")
    return [*lines, f"    {'; '.join(trouble)}"] if trouble else lines


def cleaned(r: dict[str, Any]) -> str:
    verb = "would remove" if r["dry_run"] else "removed"
    lines = [f"{r['out']}: {verb} {r['objects']:,} objects, {r['bytes'] / 1e9:,.3f} GB"]
    lines += [f"  {f['folder']}: {f['bytes'] / 1e6:,.1f} MB, {f['why']}" for f in r["folders"][:NAMED]]
    if len(r["folders"]) > NAMED:
        lines.append(f"  and {len(r['folders']) - NAMED:,} more folders")
    if r["kept_young"]:
        lines.append(f"  {r['kept_young']:,} folders are not old enough yet")
    return "\n".join(lines)


def causes(counted: dict[str, int] | None) -> str:
    """Failed blocks by cause, in brackets; "" for none."""
    return f" ({', '.join(f'{n} {cause}' for cause, n in counted.items())})" if counted else ""


def failure(f: dict[str, Any]) -> str:
    what = " ".join(x for x in (f["scene"], f["band"]) if x)
    where = f"tile {f['tile']}, block at row {f['row_px']}, col {f['col_px']}"
    return f"  failed: {where}: {what + ': ' if what else ''}{f['reason']}\n    next: {f['command']}"


def dry_run(r: dict[str, Any]) -> str:
    job, there = r["job"], r["tiles_published"]
    said = "the output was not looked at" if there is None else f"{there} are published already"
    lines = [
        f"would do {r['blocks']:,} blocks of {r['tiles_to_do']:,} tiles ({said}), on {r['device']}",
        r["memory"],
        f"would start: {job['starts']}",
        *(["waves:", *(f"  {name}  {n:,} tiles" for name, n in r["waves"].items())] if r["waves"] else []),
        "Beam's options:",
        *(f"  {option}" for option in r["beam_options"]),
        f"stages ({len(job['shuffles'])} shuffles, request of {job['request_bytes'] / 1000:,.0f} kB):",
        *(f"  {n}  {', '.join(_steps(stage))}" for n, stage in enumerate(job["stages"], 1)),
        "environments:",
        *(f"  {e['urn']} {e['where']} {e['hints'] or ''}".rstrip() for e in job["environments"]),
    ]
    return "\n".join(lines)


def submitted(r: dict[str, Any]) -> str:
    return (
        f"job {r['job']} runs on {r['runner']} {r['link']}".rstrip()
        + f"\nsee tessera-beam status {r['out']}; tessera-beam drain {r['out']} has it begin no further block"
    )


def drained(r: dict[str, Any]) -> str:
    return f"{r['out']}: run {r['run']} begins no further block; the next run does what is missing"


def _steps(stage: list[str]) -> list[str]:
    """Steps of a fused stage by the names that the graph gives them, each once."""
    return list(dict.fromkeys(name.removeprefix("EmbedTiles/").split("/")[0] for name in stage))


def status(r: dict[str, Any]) -> str:
    lines = [f"{r['out']}: {r['model']}, " + (", ".join(f"{n} {s}" for s, n in r["states"].items()) or "no run yet")]
    rows = r["tiles"]
    if len(rows) > TILES:  # of a planet those with which something is to be done
        rows = [t for t in rows if t["state"] != "published"][:TILES]
    for t in rows:
        more = f"{t['embedded']:,} pixels, revision {t['revision']}" if t["state"] == "published" else (
            f"{t['blocks_done']} blocks done, {t['blocks_failed']} failed"
        )  # fmt: skip
        lines.append(f"  {t['period']}  {t['tile']}  {t['state']:10}  {more}")
    if len(rows) < len(r["tiles"]):
        lines.append(
            f"  {len(rows)} of {len(r['tiles'])} tiles are shown, of those that are not published; --json has all"
        )
    if r["failures"]:
        lines.append(f"  {len(r['failures'])} blocks failed{causes(r.get('failed_by_cause'))}")
    for w in r["warnings"]:
        lines.append(f"  warning: tile {w['tile']}, block at row {w['row_px']}, col {w['col_px']}: {w['reason']}")
    return "\n".join([*lines, *(failure(f) for f in r["failures"])])


def verified(r: dict[str, Any]) -> str:
    if not r["tiles"]:
        return f"{r['out']}: nothing is published here yet"
    lines = [
        f"{r['tiles']} tiles, {r['checks']} checks, {r['failed']} failed"
        + (f", {r['windows_recomputed']} windows made again" if r["windows_recomputed"] else "")
    ]
    lines += [f"  failed: {f['tile']} {f['period']} {f['check']}: {f['detail']}" for f in r["findings"] if not f["ok"]]
    return "\n".join(lines)


def gated(r: dict[str, Any]) -> str:
    if "models" in r:
        passed = sum(m["ok"] for m in r["models"])
        return "\n".join([*map(gated, r["models"]), f"{passed} of {len(r['models'])} files passed"])
    if "refused" in r:
        return f"{r['path']}: REFUSED, {r['refused']}"
    lines = [f"{r['name']} ({r['path']}): {'passed' if r['ok'] else 'REFUSED'}"]
    for c in r["checks"]:
        lines.append(f"  {'ok    ' if c['ok'] else 'FAILED'}  {c['name']}: {c['measured']} (limit: {c['limit']})")
    return "\n".join(lines)


def _demo_map(made: dict[str, Any] | None) -> list[str]:
    if made is None:
        return []
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in made["right_of"].items())
    return [
        f"  map        {made['picture']} (left the truth, right from {made['labels']} labels)",
        f"             {made['right']:.0%} of the other pixels right: {kinds}",
    ]


def demo(r: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{r['pixels']:,} pixels in {r['blocks']} blocks of {r['tiles']} tiles, {r['seconds']} s in all",
            f"  model      {r['model']} (trained for minutes on such a planet: for this demo alone)",
            *(f"  COG        {path}" for path in r["cogs"]),
            f"  report     {r['report']}",
            *_demo_map(r["map"]),
            f"  verified   {r['checks']} checks, {r['failed_checks']} failed; {r['windows_recomputed']} windows redone",
            "next: your own region, in the README under that heading",
        ]
    )


def memory(budget: Budget, workers: int, blocks_at_once: int = 1) -> str:
    """The budget as a line."""
    parts = ", ".join(f"{name} {n / 2**20:,.0f}" for name, n in budget.parts_bytes)
    total = budget.total_bytes / 2**30
    each = "memory per worker" if blocks_at_once == 1 else f"memory of each of {blocks_at_once} blocks at once"
    return f"{each} at most {total:.2f} GiB x {workers} (MiB: {parts}); {budget.strips}"
