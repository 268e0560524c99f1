"""What a run of RLVR keeps on disk, and how it goes on from there.

folder/
    rlvr.json                 what the run was started with
    metrics.jsonl             one line per step
    reference/                the model that KL is measured to, where there is one
    checkpoints/step-000020/  model/ (a Hugging Face folder) and state.pt (optimiser, value head)
    model/                    the trained model, at the end
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.errors import RunFolderError
from ra3gym.files import UNFINISHED, write_atomic, write_json
from ra3gym.lm import LoadedModel, load, save


class RunState:
    """The folder of one run; every write appears whole or not at all.

    Args:
        folder: made if missing; other files may stand in it.
        described: what the run is; must be the same when it is resumed.
        resume: go on with the run in the folder; else it must be empty.
        writes: whether this process is the one that writes. All processes read.

    Raises:
        RunFolderError: the folder holds a run already, or (with `resume`) none, or one of something else.
    """

    def __init__(self, folder: Path, described: dict[str, Any], *, resume: bool, writes: bool) -> None:
        self.folder = folder
        self._writes = writes
        config = folder / "rlvr.json"
        if resume:
            if not config.is_file():
                raise RunFolderError(f"{folder} holds no run of RLVR to resume: it has no {config.name}")
            stored = json.loads(config.read_text())
            if changed := [name for name in described if stored.get(name) != described[name]]:
                raise RunFolderError(
                    f"{folder} was run with another {', '.join(changed)} (see its {config.name}): resume with the same"
                )
            if writes:
                for unfinished in folder.rglob(UNFINISHED):
                    shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        elif writes:
            if config.exists():
                raise RunFolderError(f"{folder} holds a run already: give a new folder, or resume=True to go on")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(config, described)

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def reference(self, loaded: LoadedModel, resume: bool) -> LoadedModel:
        """The model that the run began with, stored for the time after a resumption."""
        stored = self.folder / "reference"
        if resume and stored.is_dir():  # else the run was killed ahead of its first step
            return load(stored)
        if self._writes:
            save(loaded.model, loaded.tokenizer, stored)
        return loaded

    def history(self, up_to: int) -> list[RLVRStep]:
        """The steps done up to a checkpoint; what was logged behind it is taken out of the file."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True)[:up_to] if file.is_file() else []
        if len(lines) < up_to:
            raise RunFolderError(f"{file} has {len(lines)} steps, but the checkpoint is of step {up_to}: restore it")
        if self._writes:
            write_atomic(file, "".join(lines))
        return [RLVRStep(**json.loads(line)) for line in lines]

    def log(self, step: RLVRStep) -> None:
        """Append one step to `metrics.jsonl`."""
        if self._writes:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(dataclasses.asdict(step)) + "\n")

    def save(self, step: int, exported: LoadedModel, state: dict[str, Any], *, keep: int) -> None:
        """Write the checkpoint of a step; the newest `keep` stay."""
        if not self._writes:
            return
        with self._new_folder(self.folder / "checkpoints" / f"step-{step:06d}") as scratch:
            save(exported.model, exported.tokenizer, scratch / "model")
            torch.save(state, scratch / "state.pt")
        for old in self.checkpoints[:-keep]:
            shutil.rmtree(old)

    def finish(self, exported: LoadedModel) -> None:
        """Write the trained model."""
        if self._writes:
            save(exported.model, exported.tokenizer, self.folder / "model")

    @contextmanager
    def _new_folder(self, target: Path) -> Iterator[Path]:
        scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            shutil.rmtree(target, ignore_errors=True)  # of the same step, from before a resumption
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def training_state(policy: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Optimiser and value head, whole, on the CPU, whatever wraps the policy; every rank must call this."""
    # Takes most of a second to import, hence not at the top.
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(policy, optimizer, options=whole)}
    if getattr(_unwrapped(policy), "value_head", None) is not None:
        weights = get_model_state_dict(policy, options=whole)
        state["value_head"] = {
            name.removeprefix("value_head."): weight
            for name, weight in weights.items()
            if name.startswith("value_head.")
        }
    return state


def load_optimizer(policy: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back the optimiser of `training_state`."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_optimizer_state_dict(policy, optimizer, state["optimizer"], options=whole)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `training_state` of a checkpoint; `RunFolderError` when it is damaged."""
    file = checkpoint / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFolderError(
            f"{file} is damaged ({reason}); remove {checkpoint} to go on from an earlier one"
        ) from error
    return state


def whole_weights(policy: Any, names: Sequence[str]) -> dict[str, Any]:
    """The language model's weights by name, gathered from all ranks' shards; every rank must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True))
    return {name: weights[f"model.{name}"] for name in names if f"model.{name}" in weights}


def _unwrapped(policy: Any) -> Any:
    return getattr(policy, "module", policy)
