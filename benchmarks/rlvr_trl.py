"""TRL's `GRPOTrainer` for `rlvr.py`, in all settings that may make its step faster on one machine.

Every setting does the same work as our step: on-policy, one update of all rows, no reference model, the token mean of
the clipped objective ("dapo"), AdamW, no logs, no checkpoints. Settings differ in autocast, the number of
rows of a forward pass, the cache, attention and recomputed activations. Left out:

- weights in bfloat16: an update of 1e-6 of a weight is far below their resolution, so nothing would be learned;
- `torch_compile`: on the CPU it makes decoding slower, and the trainer itself switches it off for generation;
- continuous batching: many times slower than `generate` on the CPU, and it leaves the weights in bfloat16;
- vLLM: another engine, on its own hardware.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rlvr_cases import BETAS, MAX_GRAD_NORM, Case, Pacer, Work, now, reward_of

from ra3gym import lm


@dataclass(frozen=True)
class Setting:
    """One setting of the trainer."""

    bf16: bool = True
    """Forward passes under bfloat16 autocast, those of `generate` too."""
    parts: int = 1
    """Forward and backward passes that the rows of a step are split into."""
    cache: str | None = None
    """`cache_implementation`; `None` for the dynamic one."""
    attention: str = "sdpa"
    """`attn_implementation`."""
    gradient_checkpointing: bool = False
    """The trainer's own default is true."""
    keep_freed_memory: bool = False
    """Not a setting of TRL: the C allocator reuses memory, as in our training commands."""

    def __str__(self) -> str:
        parts = [
            "bf16 autocast" if self.bf16 else "float32",
            f"{self.parts} parts" if self.parts > 1 else "whole batch",
            f"{self.cache or 'dynamic'} cache",
            self.attention,
        ]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += ["allocator"] if self.keep_freed_memory else []
        return ", ".join(parts)


CHOICES: dict[str, tuple[Any, ...]] = {
    "bf16": (True, False),
    "parts": (1, 2, 4, 8),
    "cache": (None, "static"),
    "attention": ("sdpa", "eager"),
    "gradient_checkpointing": (False, True),
}
"""The trainer's own choices, in the order in which they are tried."""


def trl(case: Case, pacer: Pacer, setting: Setting) -> None:
    """Train for the steps of `case`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    if setting.keep_freed_memory:
        lm.keep_freed_memory()
    lm.quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL and transformers disagree on names; not ours
    folder = lm.model.EMBEDDED if case.model == "embedded" else case.model
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=setting.attention).to(
        case.device
    )
    work = Work()

    class Timed(GRPOTrainer):
        """Records when each phase begins and ends; the trainer's work is unchanged."""

        def _generate(self, prompts: list[str]) -> Any:
            with work.phase("generate", case.device):
                found = super()._generate(prompts)
            completions = found[1]
            work.rows, work.tokens = len(completions), sum(map(len, completions))
            return found

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with work.phase("forward", case.device):
                return super().compute_loss(*args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with work.phase("training step", case.device):
                return super().training_step(*args, **kwargs)

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            with work.phase("inputs", case.device):
                return super()._prepare_inputs(generation_batch)

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            work.grad_norm = float(norm)
            return norm

    class Paced(TrainerCallback):
        """Waits for the script before each step."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pacer.ready()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            work.phases["optimizer began"] = now(case.device)

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            work.phases["optimizer"] = now(case.device) - work.phases.pop("optimizer began")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            phases = _apart(work.phases)
            pacer.done(Work(work.rows, work.tokens, work.grad_norm, phases))
            work.phases.clear()

    with tempfile.TemporaryDirectory() as output, reward_of(case, tokenizer) as reward:

        def rewarded(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
            return reward(prompts, completion_ids)

        trainer = Timed(
            model=model,
            reward_funcs=rewarded,
            args=GRPOConfig(**arguments(case, setting, output)),
            train_dataset=Dataset.from_dict({"prompt": [prompt for step in case.prompts for prompt in step]}),
            processing_class=tokenizer,
            callbacks=[Paced()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def arguments(case: Case, setting: Setting, output: str) -> dict[str, Any]:
    """Return the arguments of `GRPOConfig`."""
    return {
        # The work, the same for all.
        "num_generations": case.group_size,
        "max_completion_length": case.new_tokens,
        "generation_kwargs": {"min_new_tokens": case.new_tokens} if case.full_length else None,
        "temperature": 1.0,
        "beta": 0.0,
        "num_iterations": 1,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "learning_rate": case.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "max_steps": len(case.prompts),
        "shuffle_dataset": False,
        "seed": case.seed,
        "use_cpu": case.device == "cpu",
        # How it is done.
        "bf16": setting.bf16,
        "per_device_train_batch_size": case.rows // setting.parts,
        "gradient_accumulation_steps": setting.parts,  # one generation for all parts: `steps_per_generation` follows
        "cache_implementation": setting.cache,
        "gradient_checkpointing": setting.gradient_checkpointing,
        # Nothing beside it.
        "output_dir": output,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _apart(phases: Mapping[str, float]) -> dict[str, float]:
    """Return phases that do not overlap."""
    backward = phases["training step"] - phases["inputs"] - phases["forward"]
    separate = {name: phases[name] for name in ("generate", "forward", "optimizer")}
    return {**separate, "backward": backward, "reward and batch": phases["inputs"] - phases["generate"]}
