"""Words: the results of verbs as a person reads them."""

from typing import Any


def inventory(r: dict[str, Any]) -> str:
    lines = [f"{r['inventory']}  period {r['period']}  digest {r['digest'][:12]}"]
    for tile, n in r["tiles"].items():
        lines.append(
            f"  {tile}  S2 {n['S2']:4d}  S1 ascending {n['S1 ascending']:3d}  descending {n['S1 descending']:3d}"
            f"  left out {n['dropped']}"
        )
    if r["dropped"]:
        lines.append("  left out: " + ", ".join(f"{n} {why}" for why, n in r["dropped"].items()))
    return "\n".join(lines)


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
        f"{t['blocks_skipped']} were there before, {t['blocks_failed']} failed",
        f"{t['pixels']:,} pixels embedded in {r['seconds']:,} s{rate}",
    ]
    for f in r["failures"]:
        lines.append(failure(f))
    if t["blocks_failed"] > len(r["failures"]):
        lines.append(f"  and {t['blocks_failed'] - len(r['failures'])} more: tessera-beam status {r['out']}")
    return "\n".join([*lines, f"in {r['out']}"])


def failure(f: dict[str, Any]) -> str:
    what = " ".join(x for x in (f["scene"], f["band"]) if x)
    where = f"tile {f['tile']}, block at row {f['row_px']}, col {f['col_px']}"
    return f"  failed: {where}: {what + ': ' if what else ''}{f['reason']}\n    next: {f['command']}"


def dry_run(r: dict[str, Any]) -> str:
    return (
        f"would do {r['blocks']} blocks of {r['tiles_to_do']} tiles ({r['tiles_published']} are published already), "
        f"on {r['device']}\n{r['memory']}\nBeam options: {' '.join(r['beam_options'])}"
    )


def status(r: dict[str, Any]) -> str:
    lines = [f"{r['out']}: {r['model']}, " + (", ".join(f"{n} {s}" for s, n in r["states"].items()) or "no run yet")]
    for t in r["tiles"]:
        more = f"{t['embedded']:,} pixels, revision {t['revision']}" if t["state"] == "published" else (
            f"{t['blocks_done']} blocks done, {t['blocks_failed']} failed"
        )  # fmt: skip
        lines.append(f"  {t['period']}  {t['tile']}  {t['state']:10}  {more}")
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
    lines = [f"{r['name']} ({r['path']}): {'passed' if r['ok'] else 'REFUSED'}"]
    for c in r["checks"]:
        lines.append(f"  {'ok    ' if c['ok'] else 'FAILED'}  {c['name']}: {c['measured']} (limit: {c['limit']})")
    return "\n".join(lines)


def demo(r: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{r['pixels']:,} pixels in {r['blocks']} blocks of {r['tiles']} tiles, {r['seconds']} s in all",
            f"  model      {r['model']} (random weights: the colours mean nothing)",
            *(f"  COG        {path}" for path in r["cogs"]),
            f"  report     {r['report']}",
            f"  verified   {r['checks']} checks, {r['failed_checks']} failed; {r['windows_recomputed']} windows redone",
            "next: your own region, in the README under that heading",
        ]
    )
