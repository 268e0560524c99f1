"""Ship a study's checkpoint in the package: `python tools/ship_embedded.py RUN`, the second half of
`make embedded`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import ra3gym.lm
from ra3gym.errors import RunFolderError
from ra3gym.experiments.report.results import load_result
from ra3gym.files import write_json
from ra3gym.runs.folder import RunFolder

TARGET = Path(ra3gym.lm.__file__).parent / "embedded"
PROVENANCE = "provenance.json"
_SEED, _ARM = 0, "ra3"


def sha256(file: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ship(folder: Path, target: Path = TARGET) -> None:
    """Copy the mid-trained RA3 model of a finished `embedded` run to `target`, with a record of how it was made."""
    run = RunFolder.open(folder, expect_study="embedded")
    checkpoint = run.path / "checkpoints" / f"seed-{_SEED}" / f"{_ARM}-midtrained"
    if not checkpoint.is_dir():
        raise RunFolderError(f"{run.path} is not finished: continue it with ra3gym run embedded --resume {run.path}")
    result = load_result(run, _SEED, _ARM)
    shutil.copytree(checkpoint, target, dirs_exist_ok=True)
    files = sorted(file for file in target.iterdir() if file.name != PROVENANCE)
    write_json(
        target / PROVENANCE,
        {
            "command": "make embedded",
            "config": run.config,
            "versions": run.manifest["versions"],
            "git": run.manifest["git"],
            "scores": {name: result.scores[name] for name in ("pass@1", "pass@8", "decisions", "tokens")},
            "sha256": {file.name: sha256(file) for file in files},
        },
    )
    print(f"{target}: " + json.dumps({file.name: file.stat().st_size for file in files}))


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
