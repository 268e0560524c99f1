"""The main loop of RLVR: sample programs, have them graded, update the policy; resumable, alone or data-parallel.

Under `accelerate launch` every process samples and grades its share of a step's tasks and works out its share of the
gradient; the update is that of one process with the whole batch, up to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ra3gym.agents.rlvr.algorithms.registry import Algorithm
from ra3gym.agents.rlvr.algorithms.registry import algorithm as find_algorithm
from ra3gym.agents.rlvr.algorithms.scope import Scope
from ra3gym.agents.rlvr.checkpoint import RunState, load_optimizer, read_state, training_state, whole_weights
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.health import Health, StopRequest, not_finite
from ra3gym.agents.rlvr.learner import Learner, NonFiniteError, UpdateMetrics
from ra3gym.agents.rlvr.policy import Policy, freeze_decoder
from ra3gym.agents.rlvr.rollouts.collecting import Collected, Collector
from ra3gym.agents.rlvr.rollouts.function_end import FunctionEnd
from ra3gym.agents.rlvr.rollouts.rewards import FunctionReward, JudgeReward, Reward
from ra3gym.agents.rlvr.rollouts.rollouts import RolloutSettings, stream_seed
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler, Sampler
from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import LoadedModel, load
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import answer_reader, without_latents
from ra3gym.verify import Judge


@dataclass(frozen=True)
class RLVRResult:
    """The trained model and what every step measured."""

    loaded: LoadedModel
    history: tuple[RLVRStep, ...]
    finished: bool
    """False where Ctrl-C or SIGTERM ended the run ahead of its last step; its state is stored then."""


def train(
    model: LoadedModel | str | os.PathLike[str],
    tasks: Sequence[CodeTask],
    *,
    algorithm: str | Algorithm = "grpo",
    config: RLVRConfig | None = None,
    reward: Reward | Judge | Callable[[CodeTask, str], float] | None = None,
    sampler: Sampler | None = None,
    allowed_mask_V: Tensor | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_step: Callable[[RLVRStep], None] = lambda _: None,
    accelerator: Any = None,
) -> RLVRResult:
    """Post-train a language model on tasks whose programs can be checked.

    Args:
        model: trained in place where it is loaded already; else a name for `ra3gym.lm.load`.
        tasks: passed over in shuffled order, again and again.
        algorithm: a name (`algorithm_names()`), or an `Algorithm`: `algorithm("grpo", clip_high=0.28)` changes one.
        config: `RLVRConfig()` when `None`.
        reward: a judge or a `JudgeReward` for unit tests, a function of (task, text), or a `Reward`; `None` makes a
            judge for the time of the run.
        sampler: where programs are sampled, yours to close; the model itself when `None`.
        allowed_mask_V: bool, the only tokens that may be sampled (a pruned action space).
        seed: the same seed gives the same run, whether it is interrupted or not; on the CPU to the last bit.
        folder: where checkpoints, metrics and the model are kept; nothing is written when `None`.
        resume: go on from the last checkpoint in `folder`.
        on_step: called after each step, in every process.
        accelerator: an `accelerate.Accelerator`; made when `None`. A script for `accelerate launch` passes one and ends
            with its `free_memory()` and `end_training()`: a process group that is left behind can abort the exit.

    Raises:
        DataError: no tasks.
        ConfigError: values that do not fit each other, the model or the number of processes.
        UnknownNameError: no such algorithm or scope.
        RunFolderError: `folder` holds another run, or (with `resume`) none.
        TrainingDiverged: a gradient that is not finite, or a policy that has collapsed.
    """
    run = _Run(
        model, tasks, algorithm, config or RLVRConfig(), sampler, allowed_mask_V, seed, folder, resume, accelerator
    )
    with ExitStack() as stack:
        stack.callback(run.thaw)
        run.grade_with(reward, stack)
        if sampler is None:
            stack.callback(run.sampler.close)
        device = run.accelerator.device
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        return run.train(on_step)


class _Run:
    """One run: its parts, put together in order, and the loop over its steps."""

    def __init__(
        self,
        model: LoadedModel | str | os.PathLike[str],
        tasks: Sequence[CodeTask],
        named: str | Algorithm,
        config: RLVRConfig,
        sampler: Sampler | None,
        allowed_mask_V: Tensor | None,
        seed: int,
        folder: str | os.PathLike[str] | None,
        resume: bool,
        accelerator: Any,
    ) -> None:
        if not tasks:
            raise DataError("there are no tasks to train on")
        self.algorithm = find_algorithm(named)
        if seed < 0:
            raise ConfigError(f"seed={seed}: give 0 or a positive number")
        if folder is None and resume:
            raise ConfigError("resume=True needs the folder of the run that is to go on")
        loaded = model if isinstance(model, LoadedModel) else load(model)
        config = config.for_model(loaded.model)
        self.tasks, self.config, self.seed = tasks, config, seed
        self.accelerator = accelerator or _make_accelerator(loaded)
        self.scope = check_fit(self.algorithm, config, loaded, self.accelerator.num_processes)
        self.state = None if folder is None else self._open(Path(folder), resume)
        reference = self._reference(loaded, resume)
        self.thaw = freeze_decoder(loaded.model, loaded.tokenizer) if config.freeze_decoder else lambda: None
        checkpoint = (
            self.state.checkpoints[-1] if resume and self.state is not None and self.state.checkpoints else None
        )
        if checkpoint is not None:
            loaded.model.load_state_dict(load(checkpoint / "model").model.state_dict())
        self.loaded = loaded
        compute = _compute_dtype(config, self.accelerator)
        policy = Policy(loaded.model, value_head=self.algorithm.needs_value, autocast=compute)
        stored = None if checkpoint is None else read_state(checkpoint)
        if policy.value_head is not None and stored is not None:
            policy.value_head.load_state_dict(stored["value_head"])
        # Under FSDP the policy is in shards: sampling and saving go by a whole copy.
        self._whole = copy.deepcopy(loaded.model) if _is_sharded(self.accelerator) else None
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.rate_at(1), weight_decay=config.weight_decay, betas=(0.9, 0.95)
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        if stored is not None:
            load_optimizer(self.policy, self._plain_optimizer, stored)
        self.history = [] if checkpoint is None or self.state is None else self.state.history(_step_of(checkpoint))
        if self.state is not None and checkpoint is None:
            self.state.history(0)  # what was logged ahead of the first checkpoint is done again
        self.sampler = sampler or ModelSampler(compute)
        self.learner = Learner(
            self.policy,
            self.optimizer,
            self.accelerator,
            self.algorithm,
            self.scope,
            config,
            reference=None if reference is None else Policy(reference.model, autocast=compute).eval(),
            allowed_mask_V=allowed_mask_V,
            on_policy_logp=self.sampler.on_policy_logp,
        )
        self.settings = RolloutSettings(
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            rows_per_sample=config.rows_per_sample,
            allowed_mask_V=allowed_mask_V,
            make_stop=partial(FunctionEnd, loaded.tokenizer) if config.stop_at_function_end else None,
        )
        self.collector: Collector

    def grade_with(self, reward: Reward | Judge | Callable[[CodeTask, str], float] | None, stack: ExitStack) -> None:
        """Set what grades the programs; a judge that is made here is closed with `stack`."""
        if reward is None:
            reward = stack.enter_context(Judge())
        if isinstance(reward, Judge):
            cuts = self.config.stop_at_function_end
            reader = answer_reader(self.loaded.tokenizer) if cuts else without_latents
            reward = JudgeReward(reward, self.config.reward, reader)
        self.collector = Collector(
            self.tasks,
            self.sampler,
            reward if hasattr(reward, "submit") else FunctionReward(reward),
            self.loaded,
            self.settings,
            self.algorithm,
            self.config,
            seed=self.seed,
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
        )

    def train(self, on_step: Callable[[RLVRStep], None]) -> RLVRResult:
        """The steps that are left; see `train`."""
        health, request = Health(self.config), StopRequest()
        done = len(self.history)
        self._share_weights()
        with ExitStack() as stack:
            if self.state is not None:
                stack.enter_context(request.listening())
            for step in range(done + 1, self.config.steps + 1):
                record = self._step(step)
                self.history.append(record)
                if self.state is not None:
                    self.state.log(record)
                on_step(record)
                health.check(record)
                stop = self._anyone(request.asked) and step < self.config.steps
                if self.state is not None and (step % self.config.checkpoint_every == 0 or stop):
                    self._save(step)
                if stop:
                    break
        finished = len(self.history) == self.config.steps
        exported = LoadedModel(self._whole or self.loaded.model, self.loaded.tokenizer)
        exported.model.eval()
        if finished and self.state is not None:
            self.state.finish(exported)
        self.accelerator.wait_for_everyone()
        return RLVRResult(exported, tuple(self.history), finished)

    def _step(self, step: int) -> RLVRStep:
        rate = self.config.rate_at(step)
        for group in self._plain_optimizer.param_groups:
            group["lr"] = rate
        # For models with dropout; nothing else here draws from the global generators.
        torch.manual_seed(stream_seed(self.seed, step, self.accelerator.process_index, 1 << 20))
        started = time.perf_counter()
        collected = self.collector.collect(step)
        sampled = time.perf_counter()
        if not bool(collected.rollouts.logp_RT.isfinite().all()):
            raise not_finite(step, "the log-probability of a sampled token", self._last)
        try:
            update = self.learner.step(collected.rollouts)
        except NonFiniteError as error:
            raise not_finite(step, error, self._last) from None
        self._share_weights()
        seconds = sampled - started, time.perf_counter() - sampled
        return self._record(step, rate, collected, update, seconds)

    def _record(
        self, step: int, rate: float, collected: Collected, update: UpdateMetrics, seconds: tuple[float, float]
    ) -> RLVRStep:
        first = collected.first
        marks = self.scope.mark(first.completions)
        sums = torch.tensor(
            [
                len(first.completions),
                float(first.reward_R.sum()),
                float(first.passed_R.sum()),
                len(first.informative),
                first.num_tokens,
                float(marks.acts_RT.sum()),
                float((~first.finished_R).sum()),
                -float(first.logp_RT.sum()),
                collected.tokens,
            ],
            device=self.accelerator.device,
        )
        rows, reward, passed, informative, length, decisions, truncated, surprise, sampled = self.accelerator.reduce(
            sums, reduction="sum"
        ).tolist()
        return RLVRStep(
            step=step,
            reward=reward / rows,
            pass_rate=passed / rows,
            informative=informative / self.config.tasks_per_step,
            tokens=round(sampled),
            decisions=round(decisions),
            length=length / rows,
            truncated=truncated / rows,
            entropy=surprise / max(1.0, length),
            loss=update.loss,
            grad_norm=update.grad_norm,
            clip_fraction=update.clip_fraction,
            learning_rate=rate,
            kl=update.kl,
            value_loss=update.value_loss,
            sample_seconds=seconds[0],
            train_seconds=seconds[1],
        )

    def _open(self, folder: Path, resume: bool) -> RunState:
        described = {
            "algorithm": dataclasses.asdict(self.algorithm),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "tasks": [task.task_id for task in self.tasks],
        }
        # The main process makes the folder before the others look at it.
        with self.accelerator.main_process_first():
            return RunState(folder, described, resume=resume, writes=self.accelerator.is_main_process)

    def _reference(self, loaded: LoadedModel, resume: bool) -> LoadedModel | None:
        """The model as it was at the start, where the algorithm measures KL to it."""
        if not self.algorithm.needs_reference:
            return None
        if self.state is not None:
            with self.accelerator.main_process_first():
                stored = self.state.reference(loaded, resume)
            if stored is not loaded:
                stored.model.to(self.accelerator.device)
                return stored
        frozen = copy.deepcopy(loaded.model).requires_grad_(False).eval()
        return LoadedModel(frozen.to(self.accelerator.device), loaded.tokenizer)

    def _share_weights(self) -> None:
        """Have the sampler use the policy's weights of now."""
        if self._whole is not None:
            names = list(self._whole.state_dict())
            self._whole.load_state_dict(whole_weights(self.policy, names), strict=False)
        self.sampler.update(self._whole or self.loaded.model)

    def _save(self, step: int) -> None:
        assert self.state is not None
        state = training_state(self.policy, self._plain_optimizer)
        exported = LoadedModel(self._whole or self.loaded.model, self.loaded.tokenizer)
        self.state.save(step, exported, state, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _anyone(self, asked: bool) -> bool:
        """Whether any process was asked to stop: all of them must agree on where the run ends."""
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain

    @property
    def _last(self) -> RLVRStep | None:
        return self.history[-1] if self.history else None


def _make_accelerator(loaded: LoadedModel) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=loaded.model.device.type == "cpu")


def _compute_dtype(config: RLVRConfig, accelerator: Any) -> torch.dtype | None:
    """The precision of forward passes; `None` for that of the weights."""
    chosen = config.precision
    if chosen == "auto":
        launched = accelerator.mixed_precision == "bf16"
        chosen = "bfloat16" if launched or accelerator.device.type == "cuda" else "float32"
    return torch.bfloat16 if chosen == "bfloat16" else None


def _is_sharded(accelerator: Any) -> bool:
    return str(accelerator.distributed_type).endswith("FSDP")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


_COMPARES = frozenset({"group_standardised", "group_centred", "leave_one_out", "group_batch_normalised"})
"""Advantages that are 0, or not defined, for a task's only sample."""


def check_fit(algorithm: Algorithm, config: RLVRConfig, loaded: LoadedModel, num_processes: int) -> Scope:
    """Where RL acts in such a run, once its algorithm, its model and its processes go together.

    Raises:
        ConfigError: too small a group for the algorithm, tasks that cannot be shared evenly among the processes
            or are fewer than the minibatches, a negative weight, or a scope that the model has no tokens for.
        UnknownNameError: no such scope.
    """
    if algorithm.advantage in _COMPARES and config.group_size < 2:
        raise ConfigError(
            f"group_size={config.group_size}: {algorithm.name!r} compares the samples of a task, give at least 2"
        )
    if config.tasks_per_step % num_processes:
        raise ConfigError(f"tasks_per_step={config.tasks_per_step} is not a multiple of the {num_processes} processes")
    if algorithm.minibatches > (share := config.tasks_per_step // num_processes):
        raise ConfigError(
            f"minibatches={algorithm.minibatches}: each needs a task of every process at least, and tasks_per_step="
            f"{config.tasks_per_step} gives a process {share}"
        )
    return Scope(
        config.act_on,
        loaded.tokenizer,
        latent_weight=config.latent_weight,
        comment_weight=config.comment_weight,
        code_weight=config.code_weight,
    )
