"""The configuration of a study, and the studies that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.agents.mid_training import EStep, MStepConfig, NeedsModel, make_e_step, make_m_step
from ra3gym.agents.mid_training.rationale import RationaleConfig
from ra3gym.agents.rlvr import RLVRConfig
from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.plugins import import_plugins
from ra3gym.tasks.idioms import Difficulty, IdiomsDomain

T = TypeVar("T")


@dataclass(frozen=True)
class DomainConfig:
    """The embedded domain; see `ra3gym.tasks.idioms.IdiomsDomain`. Each seed has its own domain.

    Attributes:
        length: idioms per program, 3 to 7. Longer programs need more decisions, where abstraction helps most.
        difficulty: "easy" has lists, "medium" also strings and integers, "hard" also control flow.
        documented: share of expert traces whose prompt names their idioms.
        num_compositions: training compositions of full length.
        num_held_out: compositions in each of the tune, rl and eval splits.
        num_traces: expert traces for mid-training.
        num_base_traces: undocumented traces of one or two idioms for the base model.
    """

    length: int = 5
    difficulty: Difficulty = "medium"
    documented: float = 0.3
    num_compositions: int = 1000
    num_held_out: int = 128
    num_traces: int = 6000
    num_base_traces: int = 2500

    def for_seed(self, seed: int) -> IdiomsDomain:
        """Return the domain of one seed."""
        return IdiomsDomain(
            seed=seed,
            length=self.length,
            difficulty=self.difficulty,
            documented=self.documented,
            num_compositions=self.num_compositions,
            num_held_out=self.num_held_out,
        )


@dataclass(frozen=True)
class ModelConfig:
    """The tiny Llama; see `ra3gym.lm.tiny_llama`.

    Attributes:
        hidden: width.
        layers: depth.
        heads: attention heads; must divide `hidden`.
        vocab_size: upper limit of the tokenizer's tokens, latents not counted.
        max_length: longest sequence in tokens.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    vocab_size: int = 640
    max_length: int = 512


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are evaluated.

    Attributes:
        samples: programs per task for pass@k, at least 8 for pass@8.
        curve_points: evaluations during mid-training, the last one included.
        curve_samples: programs per task at each of these evaluations but the last.
        threshold: the report says after how many steps of RLVR the mean reward first reaches this.
        threshold_window: number of steps in that mean.
        shown_tasks: held-out tasks whose programs the report shows.
    """

    samples: int = 8
    curve_points: int = 5
    curve_samples: int = 2
    threshold: float = 0.7
    threshold_window: int = 5
    shown_tasks: int = 4


_RATE = 6e-4
STUDY_RLVR = RLVRConfig(learning_rate=_RATE, stop_at_function_end=False)
"""RLVR in studies: a model has to end its programs itself."""


@dataclass(frozen=True)
class StudyConfig:
    """One study: every arm on every seed, at equal token budgets.

    Attributes:
        seeds: one independent repetition each, with its own domain, tokenizer, model and random numbers.
        arms: what to compare; `ra3gym run --help` lists them.
        e_step: the E-step by name; see `ra3gym.agents.mid_training.make_e_step`.
        domain: tasks and traces.
        model: the language model.
        m_step_name: the M-step by name; see `ra3gym.agents.mid_training.make_m_step`.
        codebook: what an E-step on codebook latents learns.
        rationale: how an E-step on rationale latents learns; its model is small and its context short.
        base: pre-training of the base model that all arms of a seed share.
        m_step: mid-training of each arm.
        rlvr: post-training.
        rlvr_algorithm: its algorithm by name; see `ra3gym.agents.rlvr.algorithms.registry`.
        rlvr_arms: the arms that RLVR continues; a `steps` of 0 leaves RLVR out.
        rlvr_learning_rates: learning rates by arm, instead of the arm's tuned rate; the study `tune` helps to choose.
            An arm with neither gets `rlvr.learning_rate`.
        rlvr_grid: instead of one rate for each arm, learning rates to try; the best on the tune split is kept.
        plugins: modules to import first, which register your own E-steps, M-steps or arms
            (`mid_training.register_e_step`, `register_m_step`, `ra3gym.experiments.studies.register_arm`).
        workers: processes; each works on one seed at a time with one thread.
        output: the folder that run folders are made in.
    """

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    e_step: str = "exact"
    m_step_name: str = "distill"
    domain: DomainConfig = field(default_factory=DomainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    rationale: RationaleConfig = field(
        default_factory=lambda: RationaleConfig(max_latent_tokens=8, traces_per_step=8, learning_rate=1e-3)
    )
    base: MStepConfig = field(default_factory=lambda: MStepConfig(tokens=200_000))
    m_step: MStepConfig = field(default_factory=MStepConfig)
    rlvr: RLVRConfig = STUDY_RLVR
    rlvr_algorithm: str = "grpo_token"
    rlvr_arms: tuple[str, ...] = ("ntp", "pseudo", "ra3", "ra3-as-pseudo", "oracle")
    rlvr_learning_rates: dict[str, float] = field(default_factory=dict)
    rlvr_grid: tuple[float, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    plugins: tuple[str, ...] = ()
    workers: int = 2
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        import_plugins(self.plugins)
        for name in (*self.rlvr_arms, *self.rlvr_learning_rates):
            ARMS[name]
        for place, name in enumerate(self.arms):
            arm = ARMS[name]
            if arm.until is not None and arm.until not in self.arms[:place]:
                raise ConfigError(f"arm {name!r} trains until it is as good as {arm.until!r}: name that one before it")
            if arm.e_step is not None:
                make_e_step(arm.e_step)
        if not self.seeds or not self.arms:
            raise ConfigError(f"seeds={self.seeds}, arms={self.arms}: give at least one of each")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"seeds={self.seeds}, arms={self.arms}: name each once")
        # A wrong name or value is an error here, before a run folder exists.
        make_e_step(self.e_step)
        make_m_step(self.m_step_name)
        self.domain.for_seed(self.seeds[0])
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}: give at least 1")
        if self.evaluation.samples < 1 or self.evaluation.curve_points < 1 or self.evaluation.curve_samples < 1:
            raise ConfigError(f"{self.evaluation}: samples, curve_points and curve_samples are at least 1")

    def learning_rates_for(self, arm: str) -> tuple[float, ...]:
        """Return the learning rates that RLVR tries for one arm."""
        tuned = ARMS[arm].learning_rate or self.rlvr.learning_rate or _RATE
        return self.rlvr_grid or (self.rlvr_learning_rates.get(arm, tuned),)

    def make_e_step(self, arm: str) -> EStep:
        """Return the E-step of one arm: its own, or the study's."""
        return make_e_step(ARMS[arm].e_step or self.e_step, self.codebook, self.rationale)

    def stages(self, arm: str) -> list[str]:
        """Return the stages of one arm's unit that report progress, in order."""
        recipe = ARMS[arm].recipe
        stages = [] if recipe is None else ["mid-train"]
        if recipe is not None and recipe.needs_e_step and isinstance(self.make_e_step(arm), NeedsModel):
            stages = ["e-step", *stages]
        if arm in self.rlvr_arms and self.rlvr.steps > 0:
            rates = self.learning_rates_for(arm)
            stages += ["rlvr"] if len(rates) == 1 else [rlvr_stage(rate) for rate in rates]
        return stages


def rlvr_stage(learning_rate: float) -> str:
    """Return the name of an RLVR stage of an arm that has several."""
    return f"rlvr, learning rate {learning_rate:g}"


STUDIES: dict[str, StudyConfig] = {
    "quickstart": StudyConfig(
        seeds=(0, 1),
        arms=("ntp", "pseudo", "ra3"),
        rlvr=replace(STUDY_RLVR, steps=20),
        rlvr_arms=("pseudo", "ra3"),
        evaluation=EvaluationConfig(curve_points=4),
    ),
    "baseline": StudyConfig(
        seeds=tuple(range(200, 210)),
        arms=(
            *("base", "ntp", "pause", "random", "shuffled", "latents", "pseudo", "pseudo-pause"),
            *("ra3-shuffled", "ra3", "ra3-as-pseudo", "oracle"),
        ),
    ),
    "matched": StudyConfig(
        seeds=tuple(range(200, 210)),
        arms=("pseudo", "ra3-as-pseudo", "ntp-long", "ra3-as-ntp-long"),
        rlvr_arms=("pseudo", "ra3-as-pseudo", "ntp-long", "ra3-as-ntp-long"),
    ),
    "tune": StudyConfig(
        seeds=(20, 21),
        arms=("pseudo", "latents", "ra3", "oracle"),
        rlvr_arms=("pseudo", "latents", "ra3", "oracle"),
        rlvr_grid=(1e-4, 3e-4, 6e-4, 1e-3),
    ),
    "embedded": StudyConfig(
        seeds=(0,),
        arms=("ra3",),
        rlvr_arms=(),
        m_step=MStepConfig(tokens=2_000_000),
    ),
}
STUDY_DESCRIPTIONS = {
    "quickstart": "minutes on a laptop: RA3, next-token prediction and the strongest control on two seeds",
    "baseline": "every arm on ten seeds: the table in the README",
    "matched": "RLVR from equal starting points: RA3 stops at the pass@1 that each baseline reached",
    "tune": "choose RLVR's learning rate for each arm, on the tune split of seeds that no other study uses",
    "embedded": "the checkpoint that ships in the package",
}


def config_from_json(content: Mapping[str, Any], source: Path) -> StudyConfig:
    """Return the configuration that a study's run folder stores; see `typed_config`."""
    return typed_config(StudyConfig, content, source)


def typed_config(kind: type[T], content: Mapping[str, Any], source: Path) -> T:
    """Return a configuration of type `kind` from its JSON; `RunFolderError` names `source` if it does not fit."""
    try:
        return TypeAdapter(kind).validate_python(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(
            f"{source} was written by another version of ra3gym: {place}: {first['msg']}. Start a new run."
        ) from error
