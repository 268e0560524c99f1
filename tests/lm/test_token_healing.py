"""Completions of prompts that were cut back begin with the text that was cut off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.rlvr import FunctionReward, RLVRConfig, algorithm, train
from ra3gym.errors import ConfigError
from ra3gym.lm.rendering import ForcedText, Prompt, cut_prompt, token_texts
from ra3gym.tasks import CodeTask, FunctionTests
from tests.lm.tokenizer_kinds import PROMPTS, SOLUTIONS, knows_the_programs, make_tokenizer

TASKS = [CodeTask(str(n), prompt, "f", FunctionTests((), ())) for n, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer("gpt2")


@pytest.fixture(scope="module")
def trained() -> Any:
    return knows_the_programs("gpt2").model


def options(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    default = {"eos_id": tokenizer.eos_token_id, "pad_id": 0, "max_new_tokens": 12, "group_size": 4}
    return default | {"generator": torch.Generator().manual_seed(0)} | changes


def test_a_model_that_knows_the_programs_writes_them(tokenizer: Any, trained: Any) -> None:
    """With the line break in the prompt, the model has never seen how a body begins."""
    generator = torch.Generator().manual_seed(0)
    found = lm.complete(
        trained, tokenizer, PROMPTS, group_size=1, max_new_tokens=80, temperature=0.0, generator=generator
    )
    assert found.texts == SOLUTIONS
    whole = [lm.encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    plain = lm.generate(trained, whole, **options(tokenizer, group_size=1, greedy=True))
    firsts = [tokenizer.decode(ids) for ids in plain.completions()]
    assert not any(text.startswith("    ") for text in firsts)


def test_log_probabilities_are_of_the_tokens_that_agree(tokenizer: Any, trained: Any) -> None:
    prompts = [cut_prompt(tokenizer, prompt) for prompt in PROMPTS]
    forced = ForcedText.of(tokenizer, prompts)
    assert forced is not None
    ids = [prompt.ids for prompt in prompts]
    samples = lm.generate(trained, ids, **options(tokenizer, temperature=2.0, forced=forced))
    completions = samples.completions()
    vocab_size = trained.config.vocab_size
    choices = [forced.first_choice(row // 4, completion, vocab_size) for row, completion in enumerate(completions)]
    scores = lm.group_scores(
        trained,
        ids,
        completions,
        [row // 4 for row in range(16)],
        temperature=2.0,
        entropy=True,
        first_choices=choices,
    )
    columns = []
    for row, completion in enumerate(completions):
        text = tokenizer.decode(completion)
        assert text.startswith(prompts[row // 4].forced)
        first = choices[row].column
        columns.append(first)
        assert samples.logp_RT[row, :first].eq(0).all()
        logp, scored = (logp_RT[row, first : len(completion)] for logp_RT in (samples.logp_RT, scores.logp_RT))
        torch.testing.assert_close(logp, scored, rtol=1e-4, atol=1e-4)
    plain = lm.group_scores(trained, ids, completions, [row // 4 for row in range(16)], temperature=2.0, entropy=True)
    first_R = torch.tensor(columns)[:, None]
    assert (scores.logp_RT.gather(1, first_R) > plain.logp_RT.gather(1, first_R)).all()
    assert scores.entropy_RT is not None
    assert plain.entropy_RT is not None
    other_RT = scores.mask_RT.scatter(1, first_R, False)
    torch.testing.assert_close(scores.logp_RT[other_RT], plain.logp_RT[other_RT])
    torch.testing.assert_close(scores.entropy_RT[other_RT], plain.entropy_RT[other_RT])


def test_the_distribution_is_conditional(tokenizer: Any) -> None:
    """By hand: one prompt, one forced line break, the exact share of each token that agrees."""
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0).eval()
    prompt = cut_prompt(tokenizer, PROMPTS[1])
    forced = ForcedText.of(tokenizer, [prompt])
    samples = lm.generate(model, [prompt.ids], **options(tokenizer, group_size=64, max_new_tokens=1, forced=forced))
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
    agrees_V = token_texts(tokenizer).compatible_V("\n", len(logits_V))
    logp_V = logits_V.masked_fill(~agrees_V, -torch.inf).log_softmax(-1)
    assert len(set(samples.tokens_RT[:, 0].tolist())) > 1
    torch.testing.assert_close(samples.logp_RT[:, 0], logp_V[samples.tokens_RT[:, 0]], rtol=1e-4, atol=1e-4)


def test_no_allowed_token_agrees(tokenizer: Any, trained: Any) -> None:
    prompt = cut_prompt(tokenizer, PROMPTS[0])
    forced = ForcedText.of(tokenizer, [prompt])
    allowed_V = ~token_texts(tokenizer).compatible_V("\n", trained.config.vocab_size)
    with pytest.raises(ConfigError, match=r"no allowed token agrees with '\\n', the end of the prompt"):
        lm.generate(trained, [prompt.ids], **options(tokenizer, forced=forced, allowed_mask_V=allowed_V))


def test_natural_prompts_force_nothing() -> None:
    for kind in ("llama3", "qwen", "metaspace_prefix", "embedded"):
        tokenizer = make_tokenizer(kind)
        prompts = [cut_prompt(tokenizer, prompt) for prompt in PROMPTS]
        assert prompts == [Prompt(lm.encode_prompt(tokenizer, prompt)) for prompt in PROMPTS]
        assert ForcedText.of(tokenizer, prompts) is None


def test_rlvr_learns_from_what_it_sampled(tokenizer: Any, trained: Any) -> None:
    """The reward reads bodies, and the sampler's log-probabilities are the trainer's: no ratio leaves 1 by 3e-4."""
    texts: list[str] = []

    def reward(task: CodeTask, text: str) -> float:
        texts.append(text)
        return float(len(text))

    config = RLVRConfig(
        steps=1,
        tasks_per_step=4,
        group_size=4,
        max_new_tokens=16,
        temperature=1.5,
        learning_rate=1e-12,
        stop_at_function_end=False,
    )
    result = train(
        lm.LoadedModel(trained, tokenizer),
        TASKS,
        config=config,
        algorithm=algorithm("gspo", minibatches=2),
        reward=FunctionReward(reward),
    )
    assert sum(text.startswith("    ") for text in texts) >= 0.75 * len(texts)
    (step,) = result.history
    assert step.informative > 0
    assert step.clip_fraction == 0.0
