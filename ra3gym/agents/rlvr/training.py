"""The main loop of RLVR: sample programs, grade them, update the policy; resumable, on one process or several.

Under `accelerate launch` every process samples and grades its share of a step's tasks and computes its share of the
gradient. The update is the one that a single process makes from the whole batch, up to rounding.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ra3gym.agents.rlvr.algorithms.registry import Algorithm
from ra3gym.agents.rlvr.algorithms.registry import algorithm as find_algorithm
from ra3gym.agents.rlvr.algorithms.scope import Scope
from ra3gym.agents.rlvr.checkpoint import open_run, past_steps, reference_model, save_checkpoint
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.fit import check_fit, check_room
from ra3gym.agents.rlvr.health import Health, StopRequest, TooFewRewards, check_graded, not_finite
from ra3gym.agents.rlvr.learner import Learner, NonFiniteError
from ra3gym.agents.rlvr.measures import UpdateMetrics
from ra3gym.agents.rlvr.policy import Policy, freeze_decoder
from ra3gym.agents.rlvr.rollouts.collecting import Collected, Collector
from ra3gym.agents.rlvr.rollouts.function_end import FunctionEnd
from ra3gym.agents.rlvr.rollouts.rewards import FunctionReward, Reward
from ra3gym.agents.rlvr.rollouts.rollouts import RolloutSettings, stream_seed
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler, Sampler
from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.agents.rlvr.trained import TrainedPolicy, start_policy
from ra3gym.errors import ConfigError, DataError, TrainingDiverged
from ra3gym.lm import LoadedModel, load, save
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import answer_reader, without_latents
from ra3gym.verify import Judge
from ra3gym.verify.grader import Grader


@dataclass(frozen=True)
class RLVRResult:
    """The outcome of a run.

    Attributes:
        loaded: the trained model.
        history: what every step measured.
        finished: false when Ctrl-C or SIGTERM ended the run before its last step; its state is stored in that case.
    """

    loaded: LoadedModel
    history: tuple[RLVRStep, ...]
    finished: bool


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
    folder: str | os.PathLike[str] | RunFolder | None = None,
    resume: bool = False,
    on_step: Callable[[RLVRStep], None] = lambda _: None,
    accelerator: Any = None,
) -> RLVRResult:
    """Post-train a language model on tasks whose programs can be checked.

    Args:
        model: trained in place when it is loaded already; else a name for `ra3gym.lm.load`.
        tasks: the run passes over them in shuffled order, again and again.
        algorithm: a name (`algorithm_names()`), or an `Algorithm`: `algorithm("grpo", clip_high=0.28)` changes one.
        config: `RLVRConfig()` when `None`.
        reward: a judge or a `Grader` for unit tests, a function of (task, text), or a `Reward`; `None` starts a judge
            for the duration of the run. A program for which it gives no finite number is left out of the update.
        sampler: samples the programs, and is closed by the caller; the model itself when `None`.
        allowed_mask_V: bool, the only tokens that may be sampled (a pruned action space).
        seed: the same seed gives the same run, interrupted or not; on the CPU to the last bit.
        folder: where configuration, checkpoints, metrics and the model are kept; nothing is written when `None`. A
            `RunFolder` that the caller holds (`exclusive`) keeps the caller's configuration.
        resume: continue from the last checkpoint in `folder`. `config` may have other `steps` (where the learning rate
            does not depend on them), `checkpoint_every`, `keep_checkpoints` and `tokens_per_forward` than before.
        on_step: called after each step, in every process.
        accelerator: an `accelerate.Accelerator`; made when `None`. A script for `accelerate launch` passes one and
            ends with its `free_memory()` and `end_training()`: an open process group can abort the exit.

    Raises:
        DataError: no tasks, or more than `config.max_ungraded` of a step's programs have no reward.
        ConfigError: values that do not fit each other, the model or the number of processes; a prompt that leaves no
            room for `config.max_new_tokens`.
        UnknownNameError: no such algorithm or scope.
        RunFolderError: `folder` holds another run, or (with `resume`) no run.
        TrainingDiverged: a gradient that is not finite, or a policy that has collapsed.
    """
    if not tasks:
        raise DataError("there are no tasks to train on")
    chosen = find_algorithm(algorithm)
    if seed < 0:
        raise ConfigError(f"seed={seed}: give 0 or a positive number")
    if folder is None and resume:
        raise ConfigError("resume=True needs the folder of the run to continue")
    loaded = model if isinstance(model, LoadedModel) else load(model)
    config = (config or RLVRConfig()).for_model(loaded.model)
    accelerator = accelerator or _make_accelerator(loaded)
    scope = check_fit(chosen, config, loaded, accelerator.num_processes)
    check_room(loaded, tasks, config.max_new_tokens)
    compute = _compute_dtype(config, accelerator)
    with ExitStack() as stack:
        on_gpu = accelerator.device.type == "cuda"
        stack.enter_context(torch.random.fork_rng(devices=[accelerator.device] if on_gpu else []))
        run, checkpoint = None, None
        if folder is not None:
            run = open_run(folder, _described(chosen, config, tasks, seed), resume, accelerator, stack)
            checkpoint = run.checkpoints[-1] if resume and run.checkpoints else None
        reference = reference_model(loaded, run, resume, accelerator) if chosen.needs_reference else None
        if config.freeze_decoder:
            stack.callback(freeze_decoder(loaded.model, loaded.tokenizer))
        trained = start_policy(loaded, chosen, config, compute, checkpoint, accelerator)
        if sampler is None:
            sampler = ModelSampler(compute)
            stack.callback(sampler.close)
        learner = Learner(
            trained.policy,
            trained.optimizer,
            accelerator,
            chosen,
            scope,
            config,
            reference=None if reference is None else Policy(reference.model, autocast=compute).eval(),
            allowed_mask_V=allowed_mask_V,
            on_policy_logp=sampler.on_policy_logp,
        )
        collector = Collector(
            tasks,
            sampler,
            _reward(reward, config, loaded.tokenizer, stack),
            loaded,
            _rollout_settings(config, loaded.tokenizer, allowed_mask_V),
            chosen,
            config,
            seed=seed,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        loop = _Loop(
            trained=trained,
            sampler=sampler,
            collector=collector,
            learner=learner,
            scope=scope,
            config=config,
            seed=seed,
            accelerator=accelerator,
            run=run,
            history=[] if run is None else past_steps(run, checkpoint, accelerator),
        )
        return loop.run_steps(on_step)


@dataclass(kw_only=True)
class _Loop:
    """The steps of a run, given its parts; `run` is its folder.

    Attributes:
        history: the steps that are done.
        saved: the step of the newest checkpoint; 0 without one.
        whole: number of the learner's updates at the end of the last whole step.
    """

    trained: TrainedPolicy
    sampler: Sampler
    collector: Collector
    learner: Learner
    scope: Scope
    config: RLVRConfig
    seed: int
    accelerator: Any
    run: RunFolder | None
    history: list[RLVRStep]
    saved: int = 0
    whole: int = 0

    def run_steps(self, on_step: Callable[[RLVRStep], None]) -> RLVRResult:
        """Run the remaining steps; see `train`."""
        health, request = Health(self.config), StopRequest()
        self.saved = len(self.history)
        with ExitStack() as stack:
            if self.run is not None:
                stack.enter_context(request.listening())
                stack.push(self._save_after_failure)
            for step in range(len(self.history) + 1, self.config.steps + 1):
                record = self._step(step)
                self.history.append(record)
                self.whole = self.learner.updates
                if self.run is not None and self.accelerator.is_main_process:
                    self.run.metrics.append(dataclasses.asdict(record))
                on_step(record)
                health.check(record)
                last = step == self.config.steps or self._any_rank(request.asked)
                if self.run is not None and (step % self.config.checkpoint_every == 0 or last):
                    self._save(self.run, step)
                if last:
                    break
            self.sampler.update(self.trained.current_model())
        finished = len(self.history) == self.config.steps
        exported = self.trained.exported
        exported.model.eval()
        if finished and self.run is not None and self.accelerator.is_main_process:
            save(exported.model, exported.tokenizer, self.run.path / "model")
        self.accelerator.wait_for_everyone()
        return RLVRResult(exported, tuple(self.history), finished)

    def _step(self, step: int) -> RLVRStep:
        """Sample, grade and train once."""
        rate = self.config.rate_at(step)
        self.trained.set_learning_rate(rate)
        # For models with dropout; nothing else here draws from the global generators.
        torch.manual_seed(stream_seed(self.seed, step, self.accelerator.process_index, 1 << 20))
        last = self.history[-1] if self.history else None
        started = time.perf_counter()
        self.sampler.update(self.trained.current_model())
        collected = self.collector.collect(step)
        sampled = time.perf_counter()
        check_graded(collected, step, self.config.max_ungraded, self._sums_over_ranks)
        if self._any_rank(not bool(collected.rollouts.logp_RT.isfinite().all())):
            raise not_finite(step, "the log-probability of a sampled token", last)
        try:
            update = self.learner.step(collected.rollouts)
        except NonFiniteError as error:
            raise not_finite(step, error, last) from None
        self.trained.current_model()
        seconds = sampled - started, time.perf_counter() - sampled
        return self._record(step, rate, collected, update, seconds)

    def _record(
        self, step: int, rate: float, collected: Collected, update: UpdateMetrics, seconds: tuple[float, float]
    ) -> RLVRStep:
        """Put together what a step measured, over all ranks."""
        first = collected.first
        total = self._sums_over_ranks(
            rows=len(first.completions),
            graded=float((~first.graded_R.isnan()).sum()),
            reward=float(first.reward_R.nansum()),
            passed=float(first.passed_R.sum()),
            informative=len(first.informative),
            tokens=first.num_tokens,
            decisions=float(self.scope.mark(first.completions).acts_RT.sum()),
            truncated=float((~first.finished_R).sum()),
            surprise=-float(first.logp_RT.sum()),
            sampled=collected.tokens,
            sampled_rows=collected.rows,
            ungraded=len(collected.ungraded),
        )
        rows, graded = total["rows"], max(1.0, total["graded"])
        return RLVRStep(
            step=step,
            reward=total["reward"] / graded,
            pass_rate=total["passed"] / graded,
            informative=total["informative"] / self.config.tasks_per_step,
            tokens=round(total["sampled"]),
            decisions=round(total["decisions"]),
            length=total["tokens"] / rows,
            truncated=total["truncated"] / rows,
            entropy=total["surprise"] / max(1.0, total["tokens"]),
            loss=update.loss,
            grad_norm=update.grad_norm,
            clip_fraction=update.clip_fraction,
            learning_rate=rate,
            kl=update.kl,
            value_loss=update.value_loss,
            ungraded=total["ungraded"] / total["sampled_rows"],
            mismatch=update.mismatch,
            mismatch_max=update.mismatch_max,
            mismatch_cut=update.mismatch_cut,
            sample_seconds=seconds[0],
            train_seconds=seconds[1],
        )

    def _sums_over_ranks(self, **values: float) -> dict[str, float]:
        sums = torch.tensor([float(value) for value in values.values()], device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(sums, reduction="sum").tolist(), strict=True))

    def _save_after_failure(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Write a checkpoint of the last whole step when the run fails after it, unless an update has begun since.

        Saving needs all ranks: with several, only failures that all of them meet are followed by a checkpoint.
        """
        if error is None or self.run is None or self.saved == len(self.history):
            return
        if self.accelerator.num_processes > 1 and not isinstance(error, (TrainingDiverged, TooFewRewards)):
            return
        if self.learner.updates == self.whole and self.trained.is_finite():
            # The older checkpoints stay: what has failed may have to begin again from one of them.
            self._save(self.run, len(self.history), keep=self.config.keep_checkpoints + 1)

    def _save(self, run: RunFolder, step: int, *, keep: int | None = None) -> None:
        self.saved = step
        state = self.trained.state()
        if self.accelerator.is_main_process:
            save_checkpoint(run, step, self.trained.exported, state, keep=keep or self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _any_rank(self, here: bool) -> bool:
        """Whether this holds in any process: all of them must agree on where the run ends."""
        return self._sums_over_ranks(ranks=float(here))["ranks"] > 0


def _reward(
    reward: Reward | Judge | Callable[[CodeTask, str], float] | None,
    config: RLVRConfig,
    tokenizer: Any,
    stack: ExitStack,
) -> Reward:
    """Return what grades the programs; a judge that is started here is closed with `stack`."""
    if reward is None:
        reward = stack.enter_context(Judge())
    if isinstance(reward, Judge):
        reader = answer_reader(tokenizer) if config.stop_at_function_end else without_latents
        return Grader(reward, reward=config.reward, completion_of=reader)
    return reward if hasattr(reward, "submit") else FunctionReward(reward)


def _described(algorithm: Algorithm, config: RLVRConfig, tasks: Sequence[CodeTask], seed: int) -> dict[str, Any]:
    """Return what must be the same when a run is resumed."""
    return {
        "algorithm": dataclasses.asdict(algorithm),
        "config": dataclasses.asdict(config),
        "seed": seed,
        "tasks": [task.task_id for task in tasks],
    }


def _rollout_settings(config: RLVRConfig, tokenizer: Any, allowed_mask_V: Tensor | None) -> RolloutSettings:
    return RolloutSettings(
        group_size=config.group_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        rows_per_sample=config.rows_per_sample,
        truncated=config.truncated,
        allowed_mask_V=allowed_mask_V,
        make_stop=partial(FunctionEnd, tokenizer) if config.stop_at_function_end else None,
    )


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
