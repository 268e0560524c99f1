"""A run of RLVR for `accelerate launch`: three steps on the bandit, the weights stored at the end.

FOLDER ALGORITHM [resume] [die-at=STEP] [shards]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from ra3gym.agents.rlvr import RLVRStep, train
from tests.agents.rlvr.bandits import QUICK, TASKS, tiny, writes_an_a


def sharding_accelerator() -> Accelerator:
    """FSDP2 on CPUs: accelerate has the code for it, but chooses it on accelerators only."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def main(folder: str, name: str, *options: str) -> None:
    torch.set_num_threads(1)
    die_at = next((int(option.removeprefix("die-at=")) for option in options if option.startswith("die-at=")), 0)

    def on_step(step: RLVRStep) -> None:
        if step.step == die_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    accelerator = sharding_accelerator() if "shards" in options else Accelerator(cpu=True)
    result = train(
        tiny(kv_heads=1),
        TASKS,
        algorithm=name,
        config=replace(QUICK, steps=3, checkpoint_every=1, tasks_per_step=4),
        reward=writes_an_a,
        seed=2,
        folder=Path(folder),
        resume="resume" in options,
        on_step=on_step,
        accelerator=accelerator,
    )
    # One write: two processes share the stream.
    sys.stdout.write(f"finished {result.finished} {[round(step.reward, 6) for step in result.history]}\n")
    sys.stdout.flush()
    if "shards" in options:
        # DTensor's caches keep gloo's threads beyond the group's end, where they can abort the exit (pytorch#190489).
        os._exit(0)
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
