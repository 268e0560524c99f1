"""A run of RLVR for `accelerate launch`: three steps on the bandit, the weights stored at the end.

FOLDER ALGORITHM [resume] [die-at=STEP]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ra3gym.agents.rlvr import RLVRStep, train
from tests.agents.rlvr.bandits import QUICK, TASKS, tiny, writes_an_a

torch.set_num_threads(1)
folder, name, *options = sys.argv[1:]
resume = "resume" in options
die_at = next((int(option.removeprefix("die-at=")) for option in options if option.startswith("die-at=")), 0)


def on_step(step: RLVRStep) -> None:
    if step.step == die_at and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)


config = replace(QUICK, steps=3, checkpoint_every=1, tasks_per_step=4)
result = train(
    tiny(kv_heads=1),
    TASKS,
    algorithm=name,
    config=config,
    reward=writes_an_a,
    seed=2,
    folder=Path(folder),
    resume=resume,
    on_step=on_step,
)
print("finished", result.finished, [round(step.reward, 6) for step in result.history])
