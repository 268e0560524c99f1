"""Float32 weights under autocast: every way to sample gives what the model's own pass under autocast gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.lm import sampling
from ra3gym.lm.fast import llama_graph
from ra3gym.lm.fast.batch_stream import BatchStream
from ra3gym.lm.stream import TokenStream
from tests.lm.conftest import KINDS, make_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
NEAR = 0.1
"""In nats: what rounding to bfloat16 may change in a log-probability of these models, whose weights are large."""


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def sample(model: Any, **options: Any) -> lm.Samples:
    settings: dict[str, Any] = {"group_size": 4, "max_new_tokens": 24, "eos_id": [2, 13, 21, 34], "pad_id": 1}
    settings |= {"generator": torch.Generator().manual_seed(3)} | options
    return lm.generate(model, PROMPTS, **settings)


@pytest.mark.parametrize("decoder", ["fast", "graph", "cache"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_log_probabilities_of_a_full_pass(
    kind: str, group_size: int, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "graph":  # without a GPU nothing is recorded: each token takes the graph's steps, one by one
        monkeypatch.setattr(sampling, "wants_graphs", lambda device, max_new_tokens: True)
        monkeypatch.setattr(llama_graph, "record", lambda step: step)
    if decoder == "cache":
        monkeypatch.setattr(sampling, "supports", lambda model: False)
    model = make_model(kind)
    prompts = [prompt for prompt in PROMPTS for _ in range(group_size)]
    with autocast(), torch.no_grad():
        samples = sample(model, group_size=group_size)
        logp_RT, mask_RT = lm.completion_logprobs(model, prompts, samples.completions())
    assert samples.logp_RT.dtype == torch.float32
    assert torch.equal(mask_RT, samples.mask_RT)
    assert (samples.logp_RT - logp_RT)[mask_RT].abs().mean() < NEAR


@pytest.mark.parametrize("made_in", [True, False])
@pytest.mark.parametrize("used_in", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_streams_may_be_made_inside_autocast_and_used_outside(kind: str, made_in: bool, used_in: bool) -> None:
    loaded = lm.LoadedModel(make_model(kind), None)  # type: ignore[arg-type]  # nothing is decoded
    with autocast(made_in):
        stream = BatchStream(loaded, PROMPTS)
    written = [list(prompt) for prompt in PROMPTS]
    with autocast(used_in):
        for tokens in ([4, 5, 6], [7, 8, 9]):
            stream.write([0, 2, 1], tokens)
            for row, token in zip([0, 2, 1], tokens, strict=True):
                written[row].append(token)
        stream.begin([1], [[9, 8]])
        written[1] = [9, 8]
        stream.write([1], [10])
        written[1].append(10)
        for row, ids in enumerate(written):
            logp_V = TokenStream(loaded, ids).logp_V
            assert (stream.logits_EV[row].float().log_softmax(-1) - logp_V).abs().mean() < NEAR


def test_sampling_leaves_the_gradients_of_a_training_step_as_they_are() -> None:
    model = make_model("llama")
    batch = lm.pack(PROMPTS, 12)

    def gradient(first: bool) -> torch.Tensor:
        model.zero_grad()
        with autocast():
            if first:
                sample(model)
            lm.training_loss(model, batch)[0].backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=0)
