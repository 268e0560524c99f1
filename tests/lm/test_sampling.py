"""Samples come from the model's own distribution, whatever the batch, the grouping and the decoder."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.errors import ConfigError
from ra3gym.lm import sampling
from ra3gym.lm.fast.llama_layers import supports
from ra3gym.lm.fast.packed_linear import PackedLinear
from tests.lm.conftest import VOCAB, make_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
END = [2, 13, 21, 34]


def sample(model: Any, prompts: list[list[int]] = PROMPTS, **options: Any) -> lm.Samples:
    settings: dict[str, Any] = {"group_size": 4, "max_new_tokens": 24, "eos_id": END, "pad_id": 1}
    settings |= {"generator": torch.Generator().manual_seed(3)} | options
    return lm.generate(model, prompts, **settings)


def assert_same(left: lm.Samples, right: lm.Samples) -> None:
    assert left.completions() == right.completions()
    assert torch.equal(left.finished_R, right.finished_R)
    torch.testing.assert_close(left.logp_RT, right.logp_RT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_is_that_of_a_full_forward_pass(model: Any, temperature: float) -> None:
    samples = sample(model, temperature=temperature)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    with torch.no_grad():
        logp_RT, mask_RT = lm.completion_logprobs(model, prompts, samples.completions(), temperature)
        for row, (prompt, completion) in enumerate(zip(prompts, samples.completions(), strict=True)):
            alone_1T = lm.token_logprobs(model, torch.tensor([prompt + completion]), temperature=temperature)
            torch.testing.assert_close(
                samples.logp_RT[row, : len(completion)], alone_1T[0, len(prompt) :], rtol=0, atol=1e-5
            )
    assert torch.equal(mask_RT, samples.mask_RT)
    torch.testing.assert_close(logp_RT, samples.logp_RT, rtol=0, atol=1e-5)


def test_rows_end_at_the_first_end_token(llama: Any) -> None:
    samples = sample(llama)
    lengths = [len(completion) for completion in samples.completions()]
    assert samples.tokens_RT.shape == (12, max(lengths))
    assert len(set(lengths)) > 3
    for row, completion in enumerate(samples.completions()):
        assert (completion[-1] in END) == bool(samples.finished_R[row])
        assert not set(completion[:-1]) & set(END)
        assert set(samples.tokens_RT[row, len(completion) :].tolist()) <= {1}
        assert not samples.logp_RT[row, len(completion) :].any()
    assert samples.group_size == 4


def test_greedy_is_what_transformers_generates(model: Any) -> None:
    samples = sample(model, group_size=1, greedy=True, eos_id=END)
    for prompt, completion in zip(PROMPTS, samples.completions(), strict=True):
        reference = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=1,
        )
        assert completion == reference[0, len(prompt) :].tolist()


def test_the_lean_decoder_equals_the_models_own_forward(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supports(model) == (type(model).__name__ != "GPT2LMHeadModel")
    lean = sample(model)
    monkeypatch.setattr(sampling, "supports", lambda model: False)
    assert_same(lean, sample(model))


@torch.no_grad()
def test_rows_that_grow_by_different_numbers_of_tokens(model: Any) -> None:
    prompt, appended = [5, 6, 7], ([[8, 9], [], [10]], [[], [], []], [[11], [12, 13, 14], []])
    decoder = sampling.CacheDecoder(model, torch.tensor([prompt]), torch.ones(1, 3, dtype=torch.int64), 3, 8)
    for tokens in appended:
        decoder.append(tokens)
    for row, logits_V in enumerate(decoder.logits_BV):
        ids = [*prompt, *(token for tokens in appended for token in tokens[row])]
        expected_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits_V, expected_V, atol=1e-4, rtol=1e-4)


def test_sharing_the_prompt_in_a_group_changes_nothing(model: Any) -> None:
    alone = sample(model, [prompt for prompt in PROMPTS for _ in range(4)], group_size=1)
    assert_same(sample(model), alone)


def test_dropping_finished_rows_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = sample(model)
    assert len({len(completion) for completion in dropped.completions()}) > 3
    monkeypatch.setattr(sampling, "_SHRINK_AT", {"cpu": -1.0})
    assert_same(dropped, sample(model))


def test_the_generator_decides(llama: Any) -> None:
    torch.manual_seed(1)
    first = sample(llama)
    torch.manual_seed(2)
    assert_same(first, sample(llama))
    assert first.completions() != sample(llama, generator=torch.Generator().manual_seed(4)).completions()


def test_frequencies_match_the_distribution(llama: Any) -> None:
    samples = sample(llama, [[5, 6]], group_size=20_000, max_new_tokens=1)
    count_V = torch.bincount(samples.tokens_RT[:, 0], minlength=llama.config.vocab_size)
    with torch.no_grad():
        p_V = llama(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    deviation_V = (count_V - 20_000 * p_V) / (20_000 * p_V * (1 - p_V)).sqrt()
    assert deviation_V.abs().max() < 5


@pytest.mark.parametrize("greedy", [False, True])
def test_only_allowed_tokens_and_their_own_distribution(llama: Any, greedy: bool) -> None:
    allowed = torch.tensor([13, 5, 40])
    mask_V = torch.zeros(llama.config.vocab_size, dtype=torch.bool)
    mask_V[allowed] = True
    samples = sample(llama, allowed_mask_V=mask_V, max_new_tokens=6, greedy=greedy)
    assert set(samples.tokens_RT[samples.mask_RT].tolist()) <= set(allowed.tolist())
    first = samples.tokens_RT[0, 0]
    with torch.no_grad():
        logits_V = llama(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = (logits_V[first] - logits_V[allowed].logsumexp(0)).item()
    assert samples.logp_RT[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_training_mode_and_gradients_are_left_as_they_were(llama: Any) -> None:
    llama.train()
    try:
        samples = sample(llama, max_new_tokens=2)
        assert llama.training
    finally:
        llama.eval()
    assert not any(getattr(samples, field.name).requires_grad for field in fields(samples) if "_N" in field.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[3], []]}, "at least one token"),
        ({"group_size": 0}, "group_size=0"),
        ({"temperature": 0.0}, "greedy=True"),
        ({"max_new_tokens": 124}, "need 129 positions, but the model has 128"),
        ({"allowed_mask_V": torch.zeros(48, dtype=torch.bool)}, "allows no token"),
        ({"allowed_mask_V": torch.ones(47, dtype=torch.bool)}, "47"),
        ({"eos_id": 48}, "eos_id"),
    ],
)
def test_impossible_settings_are_refused(llama: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(llama, **options)


@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_rows_leaving_in_any_pattern_change_nothing(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama_grouped")
    options: dict[str, Any] = {"group_size": group_size, "eos_id": [2, *range(40, VOCAB)]}
    monkeypatch.setattr(sampling, "_SHRINK_AT", {"cpu": 1.0})  # at each row that ends; whole groups leave too
    dropped = sample(model, **options)
    monkeypatch.setattr(sampling, "supports", lambda model: False)
    assert_same(dropped, sample(model, **options))


def test_looking_less_often_for_finished_rows_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = sample(model, eos_id=list(range(20, VOCAB)))
    assert looked.tokens_RT.shape[1] < 24
    monkeypatch.setattr(sampling, "_LOOK_EVERY", {"cpu": 8})
    assert_same(looked, sample(model, eos_id=list(range(20, VOCAB))))


def test_one_generator_per_prompt_makes_prompts_independent(llama: Any) -> None:
    together = sample(llama, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4, 5)])
    for p, seed in enumerate((3, 4, 5)):
        alone = sample(llama, [PROMPTS[p]], generator=[torch.Generator().manual_seed(seed)])
        assert alone.completions() == together.completions()[4 * p : 4 * p + 4]
    assert_same(sample(llama, [[7]]), sample(llama, [[7]], generator=[torch.Generator().manual_seed(3)]))
    with pytest.raises(ConfigError, match="1 generators for 3 prompts"):
        sample(llama, generator=[torch.Generator()])


class SecondTime:
    """Ends a row when a watched token comes for the second time; notes what it was asked."""

    watched_ids = (7, 8, 9, 10, 11, 12)

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        self.asked.append((row, list(completion)))
        return sum(token in self.watched_ids for token in completion) == 2


def test_a_stop_rule_ends_rows_as_an_end_token_does(model: Any) -> None:
    rule = SecondTime()
    free, ruled = sample(model), sample(model, stop=rule)
    for row, (long, short) in enumerate(zip(free.completions(), ruled.completions(), strict=True)):
        at = [t for t, token in enumerate(long) if token in rule.watched_ids and token not in END]
        assert short == (long[: at[1] + 1] if len(at) > 1 else long)
        assert bool(ruled.finished_R[row]) == (len(at) > 1 or long[-1] in END)
        assert [written for n, written in rule.asked if n == row] == [short[: t + 1] for t in at if t < len(short)]
    assert ruled.mask_RT.sum() < free.mask_RT.sum()
    torch.testing.assert_close(
        ruled.logp_RT, free.logp_RT[:, : ruled.logp_RT.shape[1]] * ruled.mask_RT, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("vocab_size", [2048, 5000])
def test_drawing_by_blocks_inverts_the_same_distribution_function(vocab_size: int) -> None:
    torch.manual_seed(0)
    logits_BV = torch.randn(64, vocab_size) * 4
    logits_BV[:, 3::7] = -torch.inf
    logits_BV[2, 1:] = -torch.inf
    prob_BV = logits_BV.softmax(-1)
    uniform_B = torch.rand(64)
    uniform_B[0], uniform_B[1:3] = 0.0, 1 - 2.0**-23
    token_B = sampling.inverse_cdf(prob_BV, uniform_B)
    cdf_BV = prob_BV.double().cumsum(-1)
    at_B1, point_B = token_B[:, None], uniform_B * cdf_BV[:, -1]
    assert (prob_BV.gather(1, at_B1) > 0).all()
    assert (cdf_BV.gather(1, at_B1)[:, 0] > point_B - 1e-6).all()
    assert ((cdf_BV - prob_BV).gather(1, at_B1)[:, 0] < point_B + 1e-6).all()


def test_bfloat16_weights_sample_near_their_own_distribution() -> None:
    model = make_model("llama_grouped").to(torch.bfloat16)
    samples = sample(model)
    assert samples.logp_RT.dtype == torch.float32
    with torch.no_grad():
        scores = lm.group_scores(model, PROMPTS, samples.completions(), [n // 4 for n in range(12)])
    assert (samples.logp_RT - scores.logp_RT).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [33, 999])  # the narrow one is too small to be packed
def test_packed_weights_give_the_same_product(dtype: torch.dtype, bias: bool, width: int) -> None:
    torch.manual_seed(0)
    x_BD, weight_VD = torch.randn(5, width).to(dtype), torch.randn(70, width).to(dtype)
    bias_V = torch.randn(70).to(dtype) if bias else None
    packed, plain = (PackedLinear(weight_VD, bias_V, pack=pack) for pack in (True, False))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1.6e-2, "atol": 0.5}
    torch.testing.assert_close(packed(x_BD), plain(x_BD), **tolerance)
    again = pickle.loads(pickle.dumps(packed))
    torch.testing.assert_close(again(x_BD), packed(x_BD), rtol=0, atol=0)
