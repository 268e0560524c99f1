"""Where RL acts: decisions, weights and durations of hand-written completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ra3gym import lm
from ra3gym.agents.rlvr.algorithms.scope import Scope, register_scope, scope_names
from ra3gym.errors import ConfigError, UnknownNameError

TEXTS = ["def f(x):\n    # double it\n    return x * 2  # yes\n", "\n\n#a\n   b"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = lm.train_tokenizer(TEXTS, vocab_size=270)
    lm.add_latents(None, tokenizer, 2)
    return tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text)
    return ids


def decided(tokenizer: Any, name: str, text: str) -> list[str]:
    """The tokens that are decisions, as text."""
    ids = ids_of(tokenizer, text)
    marks = Scope(name, tokenizer).mark([ids])
    return [tokenizer.decode([token]) for token, acts in zip(ids, marks.acts_RT[0].tolist(), strict=True) if acts]


PROGRAM = "<|z0|>    # double it\n<|z1|>    return x * 2  # yes\n    x\n"


def test_all_is_every_token(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, PROGRAM)
    marks = Scope("all", tokenizer).mark([ids, ids[:3]])
    assert marks.acts_RT.sum(1).tolist() == [len(ids), 3]
    torch.testing.assert_close(marks.weight_RT, marks.acts_RT.float())
    torch.testing.assert_close(marks.duration_RT, marks.acts_RT.float())


def test_latents_and_their_durations(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, PROGRAM)
    marks = Scope("latents", tokenizer).mark([ids])
    at = marks.acts_RT[0].nonzero()[:, 0].tolist()
    assert [tokenizer.decode([ids[t]]) for t in at] == ["<|z0|>", "<|z1|>"]
    assert marks.duration_RT[0, at].tolist() == [at[1] - at[0], len(ids) - at[1]]
    assert float(marks.duration_RT.sum()) == len(ids)


def test_decisions_are_latents_and_the_first_visible_characters(tokenizer: Any) -> None:
    found = decided(tokenizer, "decisions", PROGRAM)
    assert found[0] == "<|z0|>"
    assert found[2] == "<|z1|>"
    assert len(found) == 5
    assert "#" in found[1]
    assert found[3].strip()[0] == "r"
    assert found[4].strip() == "x"


def test_comments_are_whole_lines_and_not_remarks_behind_code(tokenizer: Any) -> None:
    text = "".join(decided(tokenizer, "comments", PROGRAM))
    assert text.replace("<|z0|>", "").replace("<|z1|>", "").strip() == "# double it"
    assert "# yes" in "".join(decided(tokenizer, "code", PROGRAM))


def test_code_and_comments_share_out_all_tokens(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, PROGRAM)
    code, comments = (Scope(name, tokenizer).mark([ids]).acts_RT for name in ("code", "comments"))
    assert bool((code ^ comments).all())


def test_weights_by_kind(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, PROGRAM)
    scope = Scope("all", tokenizer, latent_weight=3.0, comment_weight=0.0, code_weight=0.5)
    marks, kinds = scope.mark([ids]), scope.kinds(ids)
    expected = [3.0 if z else 0.0 if comment else 0.5 for z, comment in zip(kinds.latent, kinds.comment, strict=True)]
    assert marks.weight_RT[0].tolist() == expected
    assert marks.acts_RT[0].tolist() == [weight > 0 for weight in expected]


@given(st.lists(st.text(alphabet="#ab \n", max_size=12), max_size=4), st.sampled_from(["all", "code", "decisions"]))
def test_padding_changes_nothing(texts: list[str], name: str) -> None:
    tokenizer = lm.train_tokenizer(TEXTS, vocab_size=270)
    rows = [ids_of(tokenizer, text) for text in texts]
    scope = Scope(name, tokenizer)
    together = scope.mark(rows)
    for row, ids in enumerate(rows):
        alone = scope.mark([ids])
        for joint, single in (
            (together.acts_RT, alone.acts_RT),
            (together.weight_RT, alone.weight_RT),
            (together.duration_RT, alone.duration_RT),
        ):
            torch.testing.assert_close(joint[row, : len(ids)], single[0])
            assert not bool(joint[row, len(ids) :].any())


def test_a_rule_of_ones_own(tokenizer: Any) -> None:
    register_scope("every-other", lambda kinds: [t % 2 == 0 for t in range(len(kinds.latent))])
    assert "every-other" in scope_names()
    marks = Scope("every-other", tokenizer).mark([ids_of(tokenizer, PROGRAM)])
    assert marks.acts_RT[0].tolist() == [t % 2 == 0 for t in range(marks.acts_RT.shape[1])]
    assert set(marks.duration_RT[0].tolist()) <= {0.0, 1.0, 2.0}


def test_refusals(tokenizer: Any) -> None:
    with pytest.raises(UnknownNameError, match="latents"):
        Scope("latent", tokenizer)
    with pytest.raises(ConfigError, match="code_weight=-1"):
        Scope("all", tokenizer, code_weight=-1)
    with pytest.raises(ConfigError, match="add_latents"):
        Scope("latents", lm.train_tokenizer(TEXTS, vocab_size=270))
