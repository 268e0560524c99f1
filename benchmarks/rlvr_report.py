"""The report of `rlvr.py`: medians and ratios, a check that both systems did the same work, tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rlvr_cases import Case
from rlvr_systems import Row
from rlvr_trl import Setting

OURS = "ra3gym"
"""Our system's name."""

_FIGURES = ("seconds", "cpu_seconds", "samples_per_second", "tokens_per_second", "tokens", "grad_norm")


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(case: Case, settings: dict[str, Setting], steps: Sequence[Row]) -> Row:
    """Return spreads over the measured steps; `ratio` is a peer's seconds over ours in the same step."""
    by_system: dict[str, dict[int, Row]] = {name: {} for name in (OURS, *settings)}
    for row in steps:
        if row["step"] >= 1:
            rates = {f"{unit}_per_second": row[key] / row["seconds"] for unit, key in _UNITS}
            by_system[row["system"]][row["step"]] = row | rates
    systems = []
    for name, rows in by_system.items():
        entry: Row = {"system": name, "setting": asdict(settings[name]) if name in settings else None}
        entry |= {figure: spread(row[figure] for row in rows.values()) for figure in _FIGURES}
        entry["rows"] = sorted({row["rows"] for row in rows.values()})
        names = sorted({phase for row in rows.values() for phase in row["phases"]})
        entry["phases"] = {p: statistics.median(row["phases"].get(p, 0.0) for row in rows.values()) for p in names}
        entry |= _memory(list(rows.values()))
        if name != OURS:
            own = by_system[OURS]
            entry["ratio"] = spread(row["seconds"] / own[i]["seconds"] for i, row in rows.items())
            entry["cpu_ratio"] = spread(row["cpu_seconds"] / own[i]["cpu_seconds"] for i, row in rows.items())
        systems.append(entry)
    about = {name: value for name, value in asdict(case).items() if name not in ("model", "prompts")}
    return {"case": case.name, **about, "prompts_per_step": len(case.prompts[0]), "systems": systems}


_UNITS = (("samples", "rows"), ("tokens", "tokens"))


def _memory(rows: Sequence[Row]) -> Row:
    loaded, peaks = rows[0]["loaded_mb"], [row["peak_mb"] for row in rows]
    if loaded is None or None in peaks:
        return {"loaded_mb": None, "peak_mb": None, "above_loaded_mb": None}
    return {"loaded_mb": loaded, "peak_mb": max(peaks), "above_loaded_mb": max(peaks) - loaded}


def differences(summary: Row) -> list[str]:
    """Return signs that the systems did different work; with natural lengths the check is rough."""
    own, *peers = summary["systems"]
    found = []
    for peer in peers:
        where = f"{summary['case']}, {peer['system']}"
        if peer["rows"] != own["rows"]:
            found.append(f"{where}: {peer['rows']} completions a step, ours {own['rows']}")
        most = 1.0 if summary["full_length"] else 1.25
        for figure, bound in (("tokens", most), ("grad_norm", 2.0)):
            theirs, here = peer[figure]["median"], own[figure]["median"]
            if max(theirs, here) > bound * min(theirs, here):
                found.append(f"{where}: median {figure.replace('_', ' ')} {theirs:.4g}, ours {here:.4g}")
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print the tables, and the signs of different work."""
    table = Table(title="A step of RLVR: median over the steps (least–most)")
    columns = ("case", "system", "s", "times ours", "CPU s", "CPU times ours", "samples/s", "tokens/s", "peak MB")
    for column in columns:
        table.add_column(column)
    phases = Table(title="Its parts: median seconds")
    parts = ("generate", "reward and batch", "forward", "backward", "optimizer", "generate, reward", "train")
    for column in ("case", "system", *parts, "gradient norm", "tokens"):
        phases.add_column(column)
    for summary in found["summary"]:
        for entry in summary["systems"]:
            name = (summary["case"], entry["system"])
            table.add_row(
                *name,
                _text(entry["seconds"]),
                _text(entry["ratio"]) if "ratio" in entry else "",
                f"{entry['cpu_seconds']['median']:.3f}",
                f"{entry['cpu_ratio']['median']:.2f}" if "cpu_ratio" in entry else "",
                f"{entry['samples_per_second']['median']:.1f}",
                f"{entry['tokens_per_second']['median']:,.0f}",
                "" if entry["peak_mb"] is None else f"{entry['above_loaded_mb']:.0f} ({entry['peak_mb']:.0f} in all)",
            )
            seconds = (f"{entry['phases'][part]:.3f}" if part in entry["phases"] else "" for part in parts)
            phases.add_row(*name, *seconds, f"{entry['grad_norm']['median']:.3g}", f"{entry['tokens']['median']:.0f}")
            if entry["setting"] is not None:
                console.print(f"{', '.join(name)}: {Setting(**entry['setting'])}", markup=False, soft_wrap=True)
    console.print(table)
    console.print(phases)


def _text(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}–{values['max']:.2f})"
