"""What RLVR keeps in its run folder besides configuration and metrics, and how it continues from there.

folder/
    reference/                the model that KL is measured to, if there is one
    checkpoints/step-000020/  model/ (a Hugging Face folder) and state.pt (optimizer, value head)
    model/                    the trained model, at the end
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.lm import LoadedModel, load, save
from ra3gym.runs.folder import RunFolder

RUN_KIND = "rlvr"
"""The kind of RLVR's run folders."""


MAY_CHANGE = ("steps", "checkpoint_every", "keep_checkpoints", "tokens_per_forward")
"""Settings of `RLVRConfig` that a resumed run may change: what it has done stays the same under them."""


def check_extension(run: RunFolder, training: Mapping[str, Any], steps: int) -> None:
    """Check that a run can be continued up to another number of steps.

    Args:
        run: to be resumed.
        training: the settings that it was started with, `RLVRConfig` as a dict.
        steps: the new number of steps.

    Raises:
        ConfigError: fewer steps than are done, or a learning rate that depends on their number.
    """
    before, schedule = training.get("steps", steps), training.get("schedule", "constant")
    done = step_of(run.checkpoints[-1]) if run.checkpoints else 0
    if steps < done:
        raise ConfigError(f"steps={steps}: {run.path} has done {done} steps, give at least as many")
    if steps != before and schedule != "constant":
        raise ConfigError(
            f"steps={steps}: the learning rate of {run.path} falls to 0 over its {before} steps "
            f"(schedule={schedule!r}), so another number would change what it has done. Start a new run from its model"
        )


def open_run(
    folder: str | os.PathLike[str] | RunFolder,
    described: dict[str, Any],
    resume: bool,
    accelerator: Any,
    stack: ExitStack,
) -> RunFolder:
    """Return the run's folder, new or to be resumed; `stack` holds it unless the caller does."""
    if isinstance(folder, RunFolder):
        if accelerator.is_main_process:
            folder.pin(algorithm=described["algorithm"], tasks=described["tasks"])
        return folder
    path = Path(folder)
    with accelerator.main_process_first():  # the others open what the main process has made
        if not accelerator.is_main_process:
            return RunFolder.open(path, RUN_KIND)
        if resume:
            stored = RunFolder.open(path, RUN_KIND)
            check_extension(stored, stored.config.get("config", {}), described["config"]["steps"])
            run = RunFolder.resume(path, RUN_KIND, described, may_change=[f"config.{name}" for name in MAY_CHANGE])
        else:
            run = RunFolder.create_at(path, RUN_KIND, described)
        stack.enter_context(run.exclusive())
        if resume:
            run.record_resume()
    return run


def reference_model(loaded: LoadedModel, run: RunFolder | None, resume: bool, accelerator: Any) -> LoadedModel:
    """Return the model as it was at the start of the run, which KL is measured to."""
    if run is not None:
        stored = run.path / "reference"
        with accelerator.main_process_first():
            if resume and stored.is_dir():  # else the run was killed before its first step
                reference = load(stored)
                reference.model.to(accelerator.device)
                return reference
            if accelerator.is_main_process:
                save(loaded.model, loaded.tokenizer, stored)
    frozen = copy.deepcopy(loaded.model).requires_grad_(False).eval()
    return LoadedModel(frozen.to(accelerator.device), loaded.tokenizer)


def save_checkpoint(run: RunFolder, step: int, exported: LoadedModel, state: dict[str, Any], *, keep: int) -> None:
    """Write the checkpoint of a step; the newest `keep` stay."""
    with run.checkpoint(f"step-{step:06d}") as folder:
        save(exported.model, exported.tokenizer, folder / "model")
        torch.save(state, folder / "state.pt")
    run.keep_checkpoints(keep)


def past_steps(run: RunFolder, checkpoint: Path | None, accelerator: Any) -> list[RLVRStep]:
    """Return the steps up to the checkpoint. Later ones leave the log, as the run does them again.

    `RunFolderError` when the log ends before the checkpoint.
    """
    done = 0 if checkpoint is None else step_of(checkpoint)
    steps = [RLVRStep(**record) for record in run.metrics.records()[:done]]
    if len(steps) < done:
        raise RunFolderError(
            f"{run.metrics.path} has {len(steps)} steps, but {checkpoint} is of step {done}: restore it"
        )
    if accelerator.is_main_process:
        run.metrics.cut(done + 1)
    return steps


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def training_state(policy: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the whole state of optimizer and value head on the CPU, however the policy is wrapped.

    Every rank must call this.
    """
    # The import takes most of a second, so it is not at the top.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(policy, optimizer, options=whole)}
    if getattr(getattr(policy, "module", policy), "value_head", None) is not None:
        state["value_head"] = {
            name.removeprefix("value_head."): weight
            for name, weight in whole_weights(policy).items()
            if name.startswith("value_head.")
        }
    return state


def load_optimizer(policy: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back the optimizer's state from `training_state`."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_optimizer_state_dict(policy, optimizer, state["optimizer"], options=whole)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the `training_state` of a checkpoint; `RunFolderError` when it is damaged."""
    file = checkpoint / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFolderError(
            f"{file} is damaged ({reason}); remove {checkpoint} to continue from an earlier one"
        ) from error
    return state


def whole_weights(module: Any, *, on_all_ranks: bool = False) -> dict[str, Tensor]:
    """Return a module's weights by name, gathered from the shards of all ranks. Every rank must call this.

    Args:
        module: may be wrapped for data-parallel training, or sharded (FSDP2).
        on_all_ranks: give each rank the weights, on its own device; else the first rank gets them on the CPU and the
            others get an empty dict.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=not on_all_ranks)
    return cast(dict[str, Tensor], get_model_state_dict(module, options=options))
