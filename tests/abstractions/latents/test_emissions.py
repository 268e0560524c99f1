"""Emissions and features of a language model, against plain full forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ra3gym import lm
from ra3gym.abstractions.inference.posterior import log_evidence
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents.emissions import latent_tokens, line_features, model_emissions, model_problem
from ra3gym.errors import ConfigError, DataError, ModelError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from ra3gym.tasks.idioms import IdiomsDomain

TRACES = IdiomsDomain(length=3).traces(4)


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    return lm.load(tiny_model_folder)


def make_trace(steps: list[str], prompt: str = "def f(x):\n", task_id: str = "t") -> ExpertTrace:
    return ExpertTrace(CodeTask(task_id, prompt, "f", FunctionTests((), ())), tuple(steps))


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def plain_emissions(
    model: Any, tokenizer: Any, trace: ExpertTrace, context_lines: int | None, begin: list[int]
) -> npt.NDArray[np.float64]:
    """One full forward pass, without any cache, for each line and latent."""
    latents = lm.latent_ids(tokenizer)
    rows = []
    for t, line in enumerate(trace.steps):
        first = 0 if context_lines is None else max(0, t - context_lines)
        context = begin + [i for before in trace.steps[first:t] for i in encode(tokenizer, before)]
        ids = encode(tokenizer, line)
        row = []
        for latent in latents:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*context, latent, *ids]])).logits[0].double()
            logp = logits.log_softmax(-1)[len(context) : -1]
            row.append(float(logp[torch.arange(len(ids)), torch.tensor(ids)].sum()))
        rows.append(row)
    return np.array(rows)


def other_model(kind: str, vocab_size: int) -> Any:
    """Architectures with other positions and caches: learned positions, grouped heads, a sliding window."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt2":
            config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=256, vocab_size=vocab_size)
            return GPT2LMHeadModel(config).eval()
        window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
        config = Qwen2Config(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocab_size,
            max_position_embeddings=256,
            initializer_range=0.2,
            **(window if kind == "sliding" else {}),
        )
        return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("context_lines", [None, 0, 2])
def test_emissions_are_those_of_plain_forward_passes(loaded: lm.LoadedModel, context_lines: int | None) -> None:
    found = model_emissions(loaded.model, loaded.tokenizer, TRACES, context_lines=context_lines)
    assert [array.dtype for array in found] == [np.float64] * len(TRACES)
    for trace, emissions in zip(TRACES, found, strict=True):
        expected = plain_emissions(loaded.model, loaded.tokenizer, trace, context_lines, [])
        np.testing.assert_allclose(emissions, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "sliding"])
def test_so_they_are_for_other_architectures(loaded: lm.LoadedModel, kind: str) -> None:
    model = other_model(kind, len(loaded.tokenizer))
    (found,) = model_emissions(model, loaded.tokenizer, TRACES[:1])
    np.testing.assert_allclose(found, plain_emissions(model, loaded.tokenizer, TRACES[0], None, []), atol=1e-4)


def test_embedded_checkpoint_prefers_some_latents_to_others() -> None:
    """The shipped model was trained on latents: the best one tells more of a line than a random one does."""
    loaded = lm.load("embedded")
    (found,) = model_emissions(loaded.model, loaded.tokenizer, TRACES[:1])
    np.testing.assert_allclose(found, plain_emissions(loaded.model, loaded.tokenizer, TRACES[0], None, []), atol=1e-4)
    assert (found.max(axis=1) - found.mean(axis=1)).mean() > 1.0


def test_emissions_do_not_see_the_prompt(loaded: lm.LoadedModel) -> None:
    steps = ["    y = x\n", "    return y\n"]
    traces = [make_trace(steps, "def f(x):\n"), make_trace(steps, "# something else\ndef g(y, z):\n")]
    first, second = model_emissions(loaded.model, loaded.tokenizer, traces)
    np.testing.assert_array_equal(first, second)


def test_begin_token_of_the_tokenizer_comes_first(loaded: lm.LoadedModel, tiny_model_folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = lm.load(tiny_model_folder).tokenizer
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, begin)]
    )
    assert tokenizer.encode("x")[0] == begin
    (found,) = model_emissions(loaded.model, tokenizer, TRACES[:1])
    np.testing.assert_allclose(found, plain_emissions(loaded.model, tokenizer, TRACES[0], None, [begin]), atol=1e-4)


def test_number_of_latents_and_batches(loaded: lm.LoadedModel) -> None:
    full = model_emissions(loaded.model, loaded.tokenizer, TRACES)
    for options in ({"rows_per_batch": 1}, {"rows_per_batch": 3}, {"num_latents": 3}):
        some = model_emissions(loaded.model, loaded.tokenizer, TRACES, **options)
        for all_TK, some_TK in zip(full, some, strict=True):
            np.testing.assert_allclose(some_TK, all_TK[:, : some_TK.shape[1]], atol=1e-5)
        assert some[0].shape[1] == options.get("num_latents", 4)


@pytest.mark.parametrize("context_lines", [None, 0, 3])
def test_features_are_states_of_prefix_and_line(loaded: lm.LoadedModel, context_lines: int | None) -> None:
    found = line_features(loaded.model, loaded.tokenizer, TRACES, context_lines=context_lines)
    assert found.dtype == np.float32
    begin = lm.encode_prompt(loaded.tokenizer, "")
    assert begin == [loaded.tokenizer.bos_token_id]
    expected = []
    for trace in TRACES:
        lines = [encode(loaded.tokenizer, line) for line in (trace.prompt + "".join(trace.steps)).splitlines(True)]
        prompt_lines = len(lines) - len(trace.steps)
        for t in range(prompt_lines, len(lines)):
            first = 0 if context_lines is None else max(0, t - context_lines)
            prefix = [i for line in lines[first:t] for i in line] or begin
            with torch.no_grad():
                output = loaded.model(input_ids=torch.tensor([prefix + lines[t]]), output_hidden_states=True)
            states = output.hidden_states[-1][0].numpy()
            expected.append(np.concatenate([states[len(prefix) - 1], states[len(prefix) :].mean(axis=0)]))
    np.testing.assert_allclose(found, np.array(expected), atol=1e-4)


def test_a_first_line_without_anything_ahead_has_a_prefix_of_zeros(loaded: lm.LoadedModel, tmp_path: Path) -> None:
    lm.save(loaded.model, loaded.tokenizer, tmp_path / "copy")
    tokenizer: Any = lm.load(tmp_path / "copy").tokenizer
    tokenizer.bos_token = None
    features = line_features(loaded.model, tokenizer, [make_trace(["x = 1\n", "y = x\n"], prompt="")])
    assert (features[0, :16] == 0.0).all()
    assert (features[1, :16] != 0.0).any()


def test_problem_holds_emissions_prior_and_lines(loaded: lm.LoadedModel) -> None:
    prior = StickyPrior(0.6, 4)
    problem = model_problem(loaded, TRACES, prior, context_lines=2)
    emissions = model_emissions(loaded.model, loaded.tokenizer, TRACES, context_lines=2)
    np.testing.assert_array_equal(problem.chain.log_emission_UK, np.concatenate(emissions))
    np.testing.assert_array_equal(problem.chain.keep_N, 0.6)
    assert problem.trace_ids == tuple(trace.task.task_id for trace in TRACES)
    assert problem.line_texts == tuple(line for trace in TRACES for line in trace.steps)
    assert problem.feature_NF.shape == (len(problem.line_texts), 32)
    assert np.isfinite(log_evidence(problem.chain)).all()


def test_dropout_is_off_while_scoring_and_the_mode_put_back(loaded: lm.LoadedModel) -> None:
    model = other_model("gpt2", len(loaded.tokenizer))
    expected = model_emissions(model, loaded.tokenizer, TRACES[:1])
    model.train()
    np.testing.assert_array_equal(model_emissions(model, loaded.tokenizer, TRACES[:1]), expected)
    assert model.training


# Bad input


def test_models_without_latents_are_refused(loaded: lm.LoadedModel) -> None:
    plain = lm.train_tokenizer(["def f(x):\n    return x\n"], vocab_size=270)
    model = lm.tiny_llama(plain, hidden=16, layers=1, heads=2, seed=0)
    with pytest.raises(ModelError, match=r"has 0 latent tokens, 2 are needed.*add_latents"):
        model_emissions(model, plain, TRACES)
    lm.add_latents(None, plain, 1)
    with pytest.raises(ModelError, match=r"has 1 latent tokens, 2 are needed"):
        latent_tokens(model, plain)
    lm.add_latents(None, plain, 3)
    with pytest.raises(ModelError, match=r"has no embedding.*resize"):
        latent_tokens(model, plain)
    with pytest.raises(ModelError, match=r"has 4 latent tokens, 9 are needed"):
        model_emissions(loaded.model, loaded.tokenizer, TRACES, num_latents=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_latents": 1}, "at least 2"), ({"context_lines": -1}, "0 or more"), ({"rows_per_batch": 0}, "at least 1")],
)
def test_wrong_options_are_refused(loaded: lm.LoadedModel, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_emissions(loaded.model, loaded.tokenizer, TRACES, **options)


def test_no_traces_and_empty_ones_are_refused(loaded: lm.LoadedModel) -> None:
    for function in (model_emissions, line_features):
        with pytest.raises(DataError, match="no traces"):
            function(loaded.model, loaded.tokenizer, [])
        with pytest.raises(DataError, match=r"'hollow' has no lines"):
            function(loaded.model, loaded.tokenizer, [make_trace([], task_id="hollow")])
        with pytest.raises(DataError, match=r"'blank' has a line without tokens"):
            function(loaded.model, loaded.tokenizer, [make_trace(["x = 1\n", ""], task_id="blank")])


def test_what_is_longer_than_the_context_names_the_trace_and_the_way_out(loaded: lm.LoadedModel) -> None:
    long_line = make_trace(["    x = 1\n", "    y = '" + "ab" * 600 + "'\n"], task_id="wide")
    long_trace = make_trace(["    x = x + 1\n"] * 200, task_id="tall")
    for function in (model_emissions, line_features):
        with pytest.raises(DataError, match=r"line 1 of trace 'wide'.*has 512: drop the trace"):
            function(loaded.model, loaded.tokenizer, [long_line])
        with pytest.raises(DataError, match=r"of trace 'tall'.*has 512: give context_lines below"):
            function(loaded.model, loaded.tokenizer, [long_trace])
        assert len(np.concatenate(function(loaded.model, loaded.tokenizer, [long_trace], context_lines=3))) > 0


def test_a_model_that_gives_nan_is_refused(loaded: lm.LoadedModel) -> None:
    config = loaded.model.config
    broken = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        broken.lm_head.weight[:] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        model_problem(lm.LoadedModel(broken, loaded.tokenizer), TRACES[:1], StickyPrior(0.5, 4))


def test_two_traces_of_one_id_are_refused(loaded: lm.LoadedModel) -> None:
    with pytest.raises(DataError, match="1 different trace ids for 2 traces"):
        model_problem(loaded, [TRACES[0], TRACES[0]], StickyPrior(0.5, 4))
