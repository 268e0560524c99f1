"""Rollouts: the cut into tokens, the cached log-probabilities against whole sequences, and what is sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ra3gym import lm
from ra3gym.agents.mid_training.rationale import RationaleConfig
from ra3gym.agents.mid_training.rationale.layout import lay_out
from ra3gym.agents.mid_training.rationale.rollouts import CommentPolicy, Rollout, roll_out
from ra3gym.agents.mid_training.rationale.rows import assemble
from ra3gym.agents.mid_training.rationale.scoring import action_logp, line_logp, row_logits
from ra3gym.agents.mid_training.rationale.vocabulary import Comment, CommentVocabulary, comment_vocabulary
from ra3gym.errors import DataError, ModelError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from tests.lm.tokenizer_kinds import KINDS, PROMPTS, SOLUTIONS, make_tokenizer

PROMPT = 'def f(x, y=0):\n    """Doc."""\n'
BODY = (
    '    # own\n    s = """a\n    b"""\n    if x:\n\n        y = [\n            1,\n            x]\n    return (y, s)\n'
)
GPT2 = r"'s| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trace_of(prompt: str, body: str) -> ExpertTrace:
    task = CodeTask("tests/f", prompt, "f", FunctionTests(((1,),), (1,)), body)
    return ExpertTrace(task, tuple(body.splitlines(keepends=True)))


def bpe(pattern: str) -> Any:
    """A byte-level BPE that cuts text as the tokenizer of that name does."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [PROMPT + BODY, "    # sort them\n        # 1\n            # up\n# x\n", "if x:\n    y()\n"]
    tokenizer.train_from_iterator(texts * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


TOKENIZERS = {"gpt2": bpe(GPT2), "llama3": bpe(LLAMA3), "own": lm.train_tokenizer([PROMPT + BODY], vocab_size=300)}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]


def make_model(kind: str, vocab_size: int) -> Any:
    """Random weights, large enough for logits to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        model: Any
        if kind == "qwen2":
            config = Qwen2Config(**size, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
            model = Qwen2ForCausalLM(config)
        elif kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=512, n_embd=32, n_layer=2, n_head=4))
        else:
            model = lm.tiny_llama(TOKENIZERS["own"], hidden=32, kv_heads=2, seed=0)
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.15)
    return model.eval()


def policy_of(model: Any, tokenizer: Any, **options: Any) -> CommentPolicy:
    defaults = {"group_size": 5, "max_latent_tokens": 6, "min_think": 0.125, "temperature": 0.9}
    return CommentPolicy(model, comment_vocabulary(tokenizer, model), RationaleConfig(**(defaults | options)))


def sampled(model: Any, tokenizer: Any, trace: ExpertTrace, seed: int = 0, **options: Any) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    return roll_out(policy_of(model, tokenizer, **options), lay_out(tokenizer, trace), generator)


def test_pieces_join_to_the_tokens_of_the_whole_program(tokenizer: Any) -> None:
    trace = trace_of(PROMPT, BODY)
    layout = lay_out(tokenizer, trace)
    ids = [*layout.prefix_ids, *(token for place in layout.places for token in place.act_ids)]
    assert ids == tokenizer.encode(PROMPT + BODY, add_special_tokens=False)
    assert [trace.steps[place.step].strip() for place in layout.places] == [
        's = """a',
        "if x:",
        "y = [",
        "1,",
        "x]",
        "return (y, s)",
    ]
    for place in layout.places:
        begin = tokenizer.decode([*place.act_ids[: place.split], place.starter])
        assert begin.lstrip("\n") == trace.steps[place.step][: -len(trace.steps[place.step].lstrip())] + "#"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_comments_of_real_tokenizers(kind: str) -> None:
    """Those of sentencepiece's kind put a space before a text, which belongs to no piece."""
    tokenizer = make_tokenizer(kind)
    for prompt, solution in zip(PROMPTS[-2:], SOLUTIONS[-2:], strict=True):
        layout = lay_out(tokenizer, trace_of(prompt, solution))
        ids = [*layout.prefix_ids, *(token for place in layout.places for token in place.act_ids)]
        assert ids == lm.encode_prompt(tokenizer, prompt + solution)
        assert tokenizer.decode(ids) == prompt + solution
        if kind == "words":
            continue  # it knows no other comment than those of its corpus
        vocabulary = CommentVocabulary(tokenizer, len(tokenizer))
        for place in layout.places:
            assert vocabulary.text(place, vocabulary.encode(place, "# twice")) == "# twice"


def test_the_side_of_the_line_break() -> None:
    model = make_model("llama", 320)
    leads = {name: comment_vocabulary(tokenizer, model).breaks_lead for name, tokenizer in TOKENIZERS.items()}
    assert leads == {"gpt2": True, "llama3": False, "own": True}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("always_think", [False, True])
def test_log_probabilities_match_whole_sequences_without_cache(kind: str, always_think: bool, tokenizer: Any) -> None:
    """Stepwise decoding with padding, and scoring behind a shared prefix, against one plain pass for each row."""
    model = make_model(kind, len(tokenizer))
    layout = lay_out(tokenizer, trace_of(PROMPT, BODY))
    policy = policy_of(model, tokenizer, always_think=always_think, group_size=24)
    rollouts = roll_out(policy, layout, torch.Generator().manual_seed(0))
    rows = [assemble(layout, rollout.comments) for rollout in rollouts]
    assert len({len(row.ids) for row in rows}) > 1
    with torch.no_grad():
        for rollout, row, shared_TV in zip(rollouts, rows, row_logits(model, layout, rows), strict=True):
            ids = torch.tensor([[*layout.prefix_ids, *row.ids]])
            logits_TV = model(ids, use_cache=False).logits[0, len(layout.prefix_ids) - 1 : -1]
            torch.testing.assert_close(shared_TV, logits_TV, atol=1e-4, rtol=1e-4)
            logp, place = action_logp(policy, layout, row, logits_TV)
            logp_Q = torch.zeros(len(layout.places)).index_add(0, place, logp)
            torch.testing.assert_close(logp_Q, torch.tensor(rollout.logp), atol=1e-4, rtol=0)
            num_decisions = 0 if always_think else len(layout.places)
            assert len(logp) == len(row.sampled) + len(row.ends) + num_decisions
            written = [comment for comment in rollout.comments if comment is not None]
            assert len(row.sampled) == sum(len(comment.ids) for comment in written)


def test_gradients_flow_through_the_shared_prefix() -> None:
    model = make_model("llama", 320)
    prefix, rows = [5, 6, 7, 8], [[9, 10, 11], [12], [13, 14]]

    def gradient(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    shared = sum(
        logits_TV[-1].log_softmax(-1)[row[-1]]
        for logits_TV, row in zip(lm.group_logits(model, [prefix], rows, [0, 0, 0]), rows, strict=True)
    )
    whole = sum(
        model(torch.tensor([prefix + row]), use_cache=False).logits[0, -2].log_softmax(-1)[row[-1]] for row in rows
    )
    assert isinstance(shared, torch.Tensor)
    assert isinstance(whole, torch.Tensor)
    for got, want in zip(gradient(shared), gradient(whole), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def test_a_line_is_scored_on_condition_that_no_comment_begins() -> None:
    """By hand: at the first token of a line, the comment's start is taken out of the distribution."""
    tokenizer = TOKENIZERS["own"]
    model = make_model("llama", len(tokenizer))
    layout = lay_out(tokenizer, trace_of("", "x = 1\n"))
    (place,) = layout.places
    comment = Comment(tuple(tokenizer.encode(" up")), ended=True)
    acted, thought = (assemble(layout, [written]) for written in (None, comment))
    hash_id, break_id = tokenizer.encode("#")[0], tokenizer.encode("\n")[0]
    assert (place.split, place.starter) == (0, hash_id)
    assert thought.ids == (hash_id, *comment.ids, break_id, *place.act_ids)
    for row, at, start in ((acted, 0, 0), (thought, len(thought.ids) - len(acted.ids), -1)):
        with torch.no_grad():
            (logits_TV,) = row_logits(model, layout, [row])
        logp_TV = logits_TV.log_softmax(-1)
        expected = sum(float(logp_TV[t, row.ids[t]]) for t in range(at + start, len(row.ids)))
        expected -= float(torch.log1p(-logp_TV[at, hash_id].exp()))
        assert line_logp(logits_TV, row).tolist() == pytest.approx([expected], abs=1e-4)


def test_comments_hold_no_line_break_and_no_special_token(tokenizer: Any) -> None:
    model = make_model("llama", len(tokenizer))
    vocabulary = comment_vocabulary(tokenizer, model)
    rollouts = sampled(model, tokenizer, trace_of(PROMPT, BODY), always_think=True, group_size=16)
    comments = [comment for rollout in rollouts for comment in rollout.comments if comment is not None]
    assert len(comments) == 16 * 6
    assert {True, False} <= {comment.ended for comment in comments}
    special = set(tokenizer.all_special_ids)
    for comment in comments:
        assert len(comment.ids) <= 6
        assert vocabulary.length(comment) <= (5 if comment.ended else 6)
        assert not special & set(comment.ids)
        text = tokenizer.decode(comment.ids)
        assert text.count("\n") == (comment.ended and not vocabulary.breaks_lead)
        assert not text.count("\n") or text.endswith("\n")


def test_frequencies_match_probabilities() -> None:
    """At the first place all rollouts see the same text: decisions and comments come as often as their logp says."""
    tokenizer = TOKENIZERS["own"]
    model = make_model("llama", len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight *= 2.0  # sharper, so that comments repeat
    rollouts = sampled(model, tokenizer, trace_of("", "x = 1\n"), group_size=4000, max_latent_tokens=1)
    counts: dict[tuple[Comment | None, float], int] = {}
    for rollout in rollouts:
        key = (rollout.comments[0], round(rollout.logp[0], 3))
        counts[key] = counts.get(key, 0) + 1
    assert len({comment for comment, _ in counts}) == len(counts)
    for (_, logp), count in counts.items():
        probability = torch.tensor(logp).exp().item()
        assert count / 4000 == pytest.approx(probability, abs=4 * (probability / 4000) ** 0.5 + 1e-3)
    assert sum(torch.tensor(logp).exp().item() for _, logp in counts) == pytest.approx(1, abs=0.1)


def test_the_generator_decides() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    model = make_model("llama", len(tokenizer))
    trace = trace_of(PROMPT, BODY)
    assert sampled(model, tokenizer, trace, seed=1) == sampled(model, tokenizer, trace, seed=1)
    assert sampled(model, tokenizer, trace, seed=1) != sampled(model, tokenizer, trace, seed=2)


def test_traces_that_cannot_be_annotated_are_named() -> None:
    tokenizer = TOKENIZERS["own"]
    model = lm.tiny_llama(tokenizer, hidden=16, heads=2, max_length=64, seed=0)
    with pytest.raises(DataError, match=r"'tests/f' may need \d+ tokens .* has 64 positions: lower max_latent_tokens"):
        sampled(model, tokenizer, trace_of(PROMPT, BODY), max_latent_tokens=16)
    with pytest.raises(DataError, match=r"'tests/f': the program does not parse.*leave the trace out"):
        lay_out(tokenizer, trace_of(PROMPT, "    return (\n"))
    with pytest.raises(DataError, match="'tests/f' has no line above which a comment could stand"):
        lay_out(tokenizer, trace_of("x = 1\n", "# nothing\n"))
    letters = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), eos_token="b"
    )
    with pytest.raises(ModelError, match="no token of the tokenizer ends a line"):
        comment_vocabulary(letters, model)
