"""The programs of docs/rl-libraries.md run as they are printed, with fewer steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rl-libraries.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
LENGTHS = {"6_144": "1_024", "UPDATES = 64, 100": "UPDATES = 64, 12"}


def test_a_loop_of_ones_own_is_short() -> None:
    assert len(PROGRAMS) == 3
    assert len(PROGRAMS[-1].splitlines()) < 40


@pytest.mark.parametrize("program", PROGRAMS, ids=["stable-baselines3", "tianshou", "own loop"])
def test_programs_run(program: str, tmp_path: Path) -> None:
    """Each program ends by itself; the appended checks see that it learned something, from legal actions."""
    checks = "\nassert any(parameter.abs().sum() > 0 for parameter in learned.parameters())\n"
    for length, shorter in LENGTHS.items():
        program = program.replace(length, shorter)
    learned = {
        "maskable": "learned = maskable.policy.action_net\nlegal = vec_env.info['action_mask']\n"
        "assert legal[range(len(latents)), latents].all()\nassert ppo.num_timesteps == 1024",
        "sac": "learned = sac.policy.actor.actor.net.model.model[-1]\nstored = collector.buffer.sample_indices(0)\n"
        "assert len(stored) == 1024\nassert collector.buffer.obs.mask[stored, collector.buffer.act[stored]].all()",
        "baseline": "learned = net[-1]\nassert baseline",
    }
    (check,) = (text for name, text in learned.items() if re.search(rf"^.*\b{name}\b", program, flags=re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-c", program + check + checks], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
