"""The E-step on rationales: teach the model to comment the expert's traces, then have it comment each of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.comments import check_comment_only, comment_problem, insert_comments
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.rationale.config import RationaleConfig
from ra3gym.agents.mid_training.rationale.layout import lay_out
from ra3gym.agents.mid_training.rationale.rollouts import CommentPolicy
from ra3gym.agents.mid_training.rationale.training import (
    RationaleGroup,
    RationaleStep,
    group_actions,
    measure,
    sample_group,
    score_group,
    train_rationales,
)
from ra3gym.agents.mid_training.rationale.vocabulary import comment_vocabulary
from ra3gym.agents.rlvr.algorithms.kl import kl_k3
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace

METRICS = ("reward", "logp", "logp_without", "think_rate", "latent_tokens", "kl")
"""What the E-step says of its annotations, beside `seconds`."""


@dataclass(frozen=True)
class RationaleTrace:
    """A trace with its comments, and what they were worth.

    Attributes:
        trace: the expert's.
        comments: for each step, the comment line above it (`#` and text), or `None`.
        places: the steps where a comment was possible.
        logp: for each place, log-likelihood in nats of the expert's text there, given all comments so far.
        rewards: for each place, see `step_rewards`.
        latent_tokens: for each place, tokens sampled there, line break not counted.
        failed: for each place, whether a comment was cut off, empty or not one line. Cut-off comments stay in the text;
            comments without text, or of several lines, do not.
    """

    trace: ExpertTrace
    comments: tuple[str | None, ...]
    places: tuple[int, ...]
    logp: tuple[float, ...]
    rewards: tuple[float, ...]
    latent_tokens: tuple[int, ...]
    failed: tuple[bool, ...]

    @property
    def reward(self) -> float:
        """Mean over places."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def text(self) -> str:
        """The whole annotated program: valid Python that differs from the expert's by comment lines only."""
        steps, prompt = self.trace.steps, self.trace.prompt
        lines = accumulate((step.count("\n") for step in steps), initial=prompt.count("\n"))
        above = {line: comment for line, comment in zip(lines, self.comments, strict=False) if comment is not None}
        return insert_comments(prompt + "".join(steps), above)

    @property
    def completion(self) -> str:
        """The steps with their comments, as they follow the prompt."""
        return self.text[len(self.trace.prompt) :]


@dataclass(frozen=True)
class RationaleEStep:
    """Trains the model by policy gradient for `config.steps` updates, then annotates each trace with it.

    A trace gets the best of `config.group_size` annotations, by the reward. With `steps=0` nothing is trained.

    Attributes:
        config: how rationales are sampled, rewarded and learned; `brite_config()` for BRiTE's form.
        loaded: the model; `for_model` sets it.
        on_step: called after each update.
    """

    config: RationaleConfig = field(default_factory=RationaleConfig)
    loaded: LoadedModel | None = None
    on_step: Callable[[RationaleStep], None] = lambda _: None

    def for_model(self, loaded: LoadedModel) -> RationaleEStep:
        """Return the E-step for this model, which `infer` trains in place."""
        return replace(self, loaded=loaded)

    def with_config(self, config: RationaleConfig) -> RationaleEStep:
        """Return the E-step with another configuration in its own form: its horizon, and whether it always comments."""
        return replace(self, config=replace(config, horizon=self.config.horizon, always_think=self.config.always_think))

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """Return the comments of every trace as annotations.

        The best annotation of a group is scored once more in the tokens of its text, which are those of the M-step's
        documents: a model may spell a comment in unusual tokens. Gains are nats of a line given the comments so far,
        less those without any comment. Metrics describe the annotations: `reward`, `logp`, `logp_without`,
        `think_rate` and `latent_tokens` as in `RationaleStep`; `kl` (nats per action from the model before this E-step,
        over all that was sampled; 0 with `steps=0`) and `seconds`.

        Raises:
            ConfigError: no model; see `for_model`.
            DataError, ModelError: as `train_rationales`.
        """
        started = time.perf_counter()
        if self.loaded is None:
            raise ConfigError("the rationale E-step needs the model that writes the comments: call for_model(loaded)")
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        train_seed, seed = (int(number) for number in rng.integers(1 << 63, size=2))
        reference = copy.deepcopy(model).requires_grad_(False) if self.config.steps else model
        options: dict[str, Any] = {"seed": train_seed, "reference": reference, "on_step": self.on_step}
        train_rationales(model, tokenizer, traces, self.config, **options)
        policy = annotating_policy(model, tokenizer, self.config)
        reward_model = reference if self.config.reward_model == "reference" else model
        generator = torch.Generator().manual_seed(seed)
        chosen: list[RationaleGroup] = []
        kls: list[torch.Tensor] = []
        for trace in traces:
            layout = lay_out(tokenizer, trace)
            group = sample_group(policy, reward_model, layout, generator)
            best = group.comments[int(group.reward_GQ.mean(1).argmax())]
            respelled = tuple(map(policy.vocabulary.respelled, layout.places, best))
            chosen.append(score_group(policy, reward_model, layout, [respelled]))
            if self.config.steps:
                kls.append(_divergence(policy, reference, group))
        record = measure(0, policy, chosen, kl=float(torch.cat(kls).mean()) if kls else 0.0)
        metrics = {name: float(getattr(record, name)) for name in METRICS}
        return _annotations(policy, chosen, {**metrics, "seconds": time.perf_counter() - started})


def annotate(
    model: Any, tokenizer: Any, trace: ExpertTrace, config: RationaleConfig, generator: torch.Generator
) -> tuple[RationaleTrace, ...]:
    """Sample `config.group_size` annotations of a trace; their rewards are the log-likelihoods of `model` itself.

    `max(annotate(...), key=lambda annotated: annotated.reward)` is the best of the group. The same generator state
    gives the same annotations; the model's training mode is restored.

    Raises:
        DataError: a trace that does not parse, has no line to comment, or may outgrow the model's context; the message
            names the trace and the way out.
        ModelError: no token of the tokenizer ends a line.
    """
    policy = annotating_policy(model, tokenizer, config)
    was_training = model.training
    model.eval()
    try:
        group = sample_group(policy, model, lay_out(tokenizer, trace), generator)
    finally:
        model.train(was_training)
    return tuple(_annotated(policy, group, g) for g in range(config.group_size))


def annotating_policy(model: Any, tokenizer: Any, config: RationaleConfig) -> CommentPolicy:
    """Return the policy as the model has it: `min_think` is for training only."""
    return CommentPolicy(model, comment_vocabulary(tokenizer, model), replace(config, min_think=0.0))


def _annotated(policy: CommentPolicy, group: RationaleGroup, g: int) -> RationaleTrace:
    layout, vocabulary = group.layout, policy.vocabulary
    comments: list[str | None] = [None] * len(layout.trace.steps)
    for place, comment in zip(layout.places, group.comments[g], strict=True):
        if comment is not None:
            text = vocabulary.text(place, comment)
            comments[place.step] = text if comment_problem(text) is None else None
    annotated = RationaleTrace(
        trace=layout.trace,
        comments=tuple(comments),
        places=tuple(place.step for place in layout.places),
        logp=tuple(group.logp_GQ[g].tolist()),
        rewards=tuple(group.reward_GQ[g].tolist()),
        latent_tokens=tuple(map(vocabulary.length, group.comments[g])),
        failed=tuple(group.failed_GQ[g].tolist()),
    )
    check_comment_only(annotated.text, layout.trace.prompt + "".join(layout.trace.steps))
    return annotated


@torch.no_grad()
def _divergence(policy: CommentPolicy, reference: Any, group: RationaleGroup) -> torch.Tensor:
    """Return an estimate of the divergence from the reference for each action of a group, in nats."""
    logp, reference_logp = (group_actions(replace(policy, model=m), group)[0] for m in (policy.model, reference))
    return kl_k3(logp, reference_logp).cpu()


def _annotations(policy: CommentPolicy, chosen: Sequence[RationaleGroup], metrics: dict[str, float]) -> Annotations:
    """Return the comments as latents: latent 0 writes nothing, the others are the distinct comments in order."""
    latent_of: dict[str, int] = {"": 0}
    paths, gains = [], []
    for group in chosen:
        annotated = _annotated(policy, group, 0)
        latents: list[int] = []
        for comment in annotated.comments:
            previous = latents[-1] if latents else 0
            latents.append(previous if comment is None else latent_of.setdefault(comment, len(latent_of)))
        switches = [step == 0 or comment is not None for step, comment in enumerate(annotated.comments)]
        paths.append(LatentPath(tuple(latents), tuple(switches)))
        # The text of a line where no comment can stand belongs to the place before, and so does its gain.
        gain_at = dict(zip(annotated.places, (group.logp_GQ[0] - group.plain_logp_Q).tolist(), strict=True))
        gains.append(tuple(gain_at.get(step, 0.0) for step in range(len(latents))))
    names = tuple(tuple(word for word in prompt_words(comment) if word.isalpha()) for comment in latent_of)
    return Annotations(tuple(paths), names, metrics, tuple(gains), tuple(latent_of))
