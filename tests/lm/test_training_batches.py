"""Batches hold every trace once, rows do not leak between traces, and the loss is the plain cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ra3gym import lm
from ra3gym.errors import ConfigError
from ra3gym.lm import loss as loss_module
from ra3gym.lm.packing import IGNORE

TRACES = [[int(i) for i in torch.randint(3, 48, (length,))] for length in (7, 12, 3, 1, 20, 9, 5, 2)]
traces = st.lists(st.lists(st.integers(0, 47), min_size=1, max_size=16), min_size=1, max_size=30)


def traces_of(batch: lm.TokenBatch) -> list[list[int]]:
    """The traces of a batch, read back from it; checks the fields of each on the way."""
    found = []
    for ids, position, segment, target in zip(
        batch.ids_BT, batch.position_BT, batch.segment_BT, batch.target_BT, strict=True
    ):
        for number in range(int(segment.max()) + 1):
            mine = segment == number
            assert position[mine].tolist() == list(range(int(mine.sum())))
            assert target[mine].tolist() == [*ids[mine].tolist()[1:], IGNORE]
            found.append(ids[mine].tolist())
        assert bool((target[segment < 0] == IGNORE).all())
    return found


@given(traces)
def test_pack_holds_every_trace_once(sequences: list[list[int]]) -> None:
    packed = lm.pack(sequences, 16)
    assert sorted(traces_of(packed)) == sorted(sequences)
    assert packed.num_tokens == sum(map(len, sequences))
    # First fit leaves at most one row less than half full.
    assert len(packed.ids_BT) <= max(1, 2 * -(-packed.num_tokens // 16))


@given(traces, st.integers(16, 64), st.integers(0, 3))
def test_batches_hold_every_trace_once(sequences: list[list[int]], budget: int, seed: int) -> None:
    passes = [list(lm.batches(sequences, budget, torch.Generator().manual_seed(seed))) for _ in range(2)]
    assert sorted(trace for batch in passes[0] for trace in traces_of(batch)) == sorted(sequences)
    assert all(batch.num_tokens < budget + 16 for batch in passes[0])
    assert all(torch.equal(a.ids_BT, b.ids_BT) for a, b in zip(*passes, strict=True))


def test_a_packed_trace_has_the_logits_it_has_alone(model: Any) -> None:
    packed = lm.pack(TRACES, 32)
    assert len(packed.ids_BT) < len(TRACES)
    with torch.no_grad():
        logits_BTV = model(input_ids=packed.ids_BT, position_ids=packed.position_BT, use_cache=False).logits
        for row, segment in enumerate(packed.segment_BT):
            for number in range(int(segment.max()) + 1):
                mine = segment == number
                alone_TV = model(packed.ids_BT[row, mine][None]).logits[0]
                torch.testing.assert_close(logits_BTV[row, mine], alone_TV, rtol=0, atol=1e-5)


def test_a_change_in_one_trace_leaves_the_others_alone(model: Any) -> None:
    packed = lm.pack(TRACES, 32)
    changed_ids = packed.ids_BT.clone()
    first = packed.segment_BT[0] == 0
    changed_ids[0, first] = (changed_ids[0, first] + 5) % 48
    with torch.no_grad():
        before, after = (
            model(input_ids=ids, position_ids=packed.position_BT, use_cache=False).logits
            for ids in (packed.ids_BT, changed_ids)
        )
    assert torch.equal(before[0, ~first], after[0, ~first])
    assert not torch.equal(before[0, first], after[0, first])


def test_loss_and_gradient_are_those_of_cross_entropy(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK", 16)
    reference = torch.stack([-lm.token_logprobs(model, torch.tensor([trace])).sum() for trace in TRACES]).sum()
    expected = torch.autograd.grad(reference, list(model.parameters()))
    packed = lm.pack(TRACES, 32)
    padded = list(lm.batches(TRACES, 24, torch.Generator().manual_seed(0)))
    for batches in ([packed], [packed[:1], packed[1:]], padded):
        parts = [lm.training_loss(model, batch) for batch in batches]
        total = torch.stack([part for part, _ in parts]).sum()
        assert sum(count for _, count in parts) == sum(len(trace) - 1 for trace in TRACES)
        torch.testing.assert_close(total, reference)
        for got, want in zip(torch.autograd.grad(total, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(lm.training_loss(model, packed)[0], reference)


def test_targets_can_be_masked(llama: Any) -> None:
    packed = lm.pack(TRACES[:2], 32)
    without_first = replace(packed, target_BT=packed.target_BT.masked_fill(packed.segment_BT == 0, IGNORE))
    loss, count = lm.training_loss(llama, without_first)
    assert count == 6
    logits = llama(torch.tensor([TRACES[0]])).logits[0, :-1]
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor(TRACES[0][1:]), reduction="sum"))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="a trace of 20 tokens does not fit block_length=16"):
        lm.pack(TRACES, 16)
    with pytest.raises(ConfigError, match="tokens_per_batch=19"):
        list(lm.batches(TRACES, 19, torch.Generator()))
    with pytest.raises(ConfigError, match="there are no sequences"):
        list(lm.batches([], 19, torch.Generator()))


def test_the_allocator_setting_takes() -> None:
    import platform

    assert lm.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
