"""`ra3gym doctor`: how this machine isolates the programs that are judged, and the versions to name in a bug report."""

from __future__ import annotations

import platform

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym import __version__
from ra3gym.verify.doctor import diagnose

_RESULTS = {True: ("ok", "green"), False: ("no", "bold red"), None: ("not needed", "dim")}


def print_diagnosis(console: Console) -> bool:
    """Print what was checked, what to do about each failed check, and the versions; return whether all is well."""
    diagnosis = diagnose()
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("check", "", "found, and the way out"):
        table.add_column(heading, overflow="fold")
    for check in diagnosis.checks:
        detail = Text(check.detail)
        if check.way_out:
            detail.append(f"\nway out: {check.way_out}", "yellow")
        table.add_row(check.name, Text(*_RESULTS[check.ok]), detail)
    console.print(table)
    for line in (_versions(), diagnosis.conclusion):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return diagnosis.ok


def _versions() -> str:
    """Return the versions of ra3gym, Python and torch, and the CUDA device."""
    ours = f"ra3gym {__version__}, Python {platform.python_version()}"
    try:
        import torch
    except (ImportError, OSError) as error:  # not installed, or its libraries do not load
        return f"{ours}, torch does not load: {error}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none found"
    return f"{ours}, torch {torch.__version__} (CUDA device: {device})"
