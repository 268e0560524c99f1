"""What an iteration of mid-training is measured by: the latents' use, and what they are worth to the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.diagnosis import (
    NEAR_NO_SWITCHES,
    NEAR_ONE_PERPLEXITY,
    NEAR_ZERO_INFORMATION,
    diagnose,
)
from ra3gym.abstractions.latents.document import Document
from ra3gym.lm import token_logprobs
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class EMIteration:
    """What one iteration came to. A measurement that was left out, or that the E-step does not allow, is `None`.

    Attributes:
        iteration: its number, from 1.
        tokens: tokens that the M-step trained on.
        evidence: nats per line, of what `evidence_of` names. A line of a codebook is one symbol, its template; a line
            of a model is all its tokens. So the evidence of the first iteration is not to be compared with later ones.
        elbo: nats per line: the evidence less the gap of the E-step's posterior.
        switch_rate: share of the lines, first ones left out, that start a segment; `None` where every trace is a
            single line.
        mean_duration: lines per segment.
        perplexity: of the latents' usage.
        information: `I(z; line)` in nats.
        diagnosis: what is wrong with the latents, or that nothing is (`ra3gym.abstractions.latents.diagnosis`).
        code_nats: cross-entropy of the code tokens, latents in the context but not counted.
        latent_nats: cross-entropy of the latents' tokens, per code token.
        ntp_code_nats: cross-entropy of the code tokens under the model trained by next-token prediction. The other
            model knows the latents, which were inferred from the very lines: the difference is what the latents tell,
            not a better model of code.
        evidence_of: "templates" of lines (an E-step that learns from the traces alone) or the model's "tokens".
        change: what became of latents that were in use one iteration earlier, if they collapsed; else `None`.
    """

    iteration: int
    tokens: int
    evidence: float | None = None
    elbo: float | None = None
    switch_rate: float | None = None
    mean_duration: float | None = None
    perplexity: float | None = None
    information: float | None = None
    diagnosis: str | None = None
    code_nats: float | None = None
    latent_nats: float | None = None
    ntp_code_nats: float | None = None
    evidence_of: str | None = None
    change: str | None = None

    @property
    def line(self) -> str:
        """What the iteration came to, for a console."""
        parts = [f"iteration {self.iteration}: {self.tokens:,} tokens"]
        if self.evidence is not None:
            parts.append(f"evidence {self.evidence:.2f} nats a line of {self.evidence_of}")
        if self.switch_rate is not None:
            parts.append(f"{self.switch_rate:.0%} of lines switch")
        if self.code_nats is not None:
            parts.append(f"code {self.code_nats:.3f} nats a token")
        text = ", ".join(parts)
        return text if self.diagnosis is None else f"{text}. {self.diagnosis}"


def collapse(before: EMIteration, after: EMIteration) -> str | None:
    """Return what happened if latents that were in use collapsed in the next iteration, and a way out; else `None`."""
    rates, used = (before.switch_rate, after.switch_rate), (before.perplexity, after.perplexity)
    information = before.information, after.information
    stopped = rates[0] is not None and rates[1] is not None and rates[1] < NEAR_NO_SWITCHES <= rates[0]
    one_left = used[0] is not None and used[1] is not None and used[1] < NEAR_ONE_PERPLEXITY <= used[0]
    ignored = (
        information[0] is not None
        and information[1] is not None
        and information[1] < NEAR_ZERO_INFORMATION <= information[0]
    )
    if not stopped and not one_left and not ignored:
        return None
    facts = []
    if rates[0] is not None and rates[1] is not None:
        facts.append(f"{rates[1]:.1%} of lines switch, {rates[0]:.1%} before")
    if used[0] is not None and used[1] is not None:
        facts.append(f"usage is worth {used[1]:.1f} latents, {used[0]:.1f} before")
    if information[0] is not None and information[1] is not None:
        facts.append(f"I(z; line) is {information[1]:.2f} nats, {information[0]:.2f} before")
    return (
        f"the latents collapsed in iteration {after.iteration}: {', '.join(facts)}. The model, after {before.tokens:,} "
        "tokens of mid-training, makes lines hardly more likely under their own latents than under others. Give the "
        f"M-step more tokens, or stop after iteration {before.iteration}"
    )


def measure_latents(
    traces: Sequence[ExpertTrace], annotations: Annotations, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the fields of an iteration that the annotations alone decide; `rng` draws the diagnosis' shuffles."""
    diagnosis = diagnose(encode_traces(traces), annotations.paths, annotations.num_latents, rng)
    evidence = annotations.metrics.get("evidence")
    return {
        "evidence": evidence,
        "elbo": None if evidence is None else evidence - annotations.metrics.get("elbo_gap", 0.0),
        "switch_rate": None if math.isnan(diagnosis.switch_rate) else diagnosis.switch_rate,
        "mean_duration": diagnosis.mean_duration,
        "perplexity": diagnosis.perplexity,
        "information": diagnosis.information,
        "diagnosis": diagnosis.text,
    }


@torch.inference_mode()
def code_and_latent_nats(model: Any, documents: Sequence[Document], rows: int = 32) -> tuple[float, float]:
    """Return the cross-entropy of code tokens and of latents' tokens, both in nats per code token.

    The end of the text counts as code, the prompt as neither.

    Args:
        model: the language model.
        documents: at least one.
        rows: documents scored at once.
    """
    device = next(model.parameters()).device
    nats = {"code": 0.0, "latent": 0.0}
    num_code_tokens = 0
    for start in range(0, len(documents), rows):
        batch = documents[start : start + rows]
        longest = max(len(document.ids) for document in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.int64)
        real_BT, code_BT, latent_BT = torch.zeros(3, len(batch), longest, dtype=torch.bool)
        for row, document in enumerate(batch):
            ids_BT[row, : len(document.ids)] = torch.tensor(document.ids)
            real_BT[row, : len(document.ids)] = True
            first = max(document.prompt_tokens[1], 1)  # nothing predicts a first token
            code_BT[row, first : len(document.ids)] = True
            for latent_start, latent_stop in document.latent_tokens:
                latent_BT[row, latent_start:latent_stop] = True
        code_BT &= ~latent_BT
        nats_BT = -token_logprobs(model, ids_BT.to(device), real_BT.to(device)).double().cpu()
        nats["code"] += float(nats_BT[code_BT].sum())
        nats["latent"] += float(nats_BT[latent_BT].sum())
        num_code_tokens += int(code_BT.sum())
    return nats["code"] / num_code_tokens, nats["latent"] / num_code_tokens
