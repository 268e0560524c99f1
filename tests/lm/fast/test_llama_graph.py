"""A token as a CUDA graph says what it says without one. On the CPU a tape stands in for the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ra3gym import lm
from ra3gym.lm import sampling
from ra3gym.lm.fast import llama_graph
from tests.lm.conftest import VOCAB, make_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
KINDS = ["llama", "llama_grouped", "llama_bias_scaled", "qwen2", "mistral"]
WAITS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "masked_select"}
"""Operators whose result's shape or value the host waits for: no graph can hold them."""


class Tape(TorchDispatchMode):
    """What a CUDA graph is: the operators of one run, bound to their numbers and addresses; recording writes nothing.

    A result that is no view keeps its address: it is computed anew and copied there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        result = args[0] if func._schema.is_mutable else func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, recorded in self._calls:
            result = func(*args, **kwargs)
            if all(returned.alias_info is None for returned in func._schema.returns):
                for old, new in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


@contextmanager
def graphs(
    monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], None]], Callable[[], None]]
) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "wants_graphs", lambda device, max_new_tokens: True)
        patch.setattr(llama_graph, "record", record)
        yield


def sample(model: Any, **options: Any) -> lm.Samples:
    settings: dict[str, Any] = {"group_size": 4, "max_new_tokens": 24, "eos_id": [2, 13, 21, 34], "pad_id": 1}
    settings |= {"generator": torch.Generator().manual_seed(3)} | options
    return lm.generate(model, PROMPTS, **settings)


def assert_same(left: lm.Samples, right: lm.Samples) -> None:
    assert left.completions() == right.completions()
    torch.testing.assert_close(left.logp_RT, right.logp_RT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("shrink_at", [-1.0, 0.5, 0.9])
def test_repeating_a_recorded_token_is_decoding(
    kind: str, group_size: int, shrink_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tapes, replays = make_model(kind), [], []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            step()
        tapes.append(tape)

        def replay() -> None:
            replays.append(tape)
            tape.replay()

        return replay

    options: dict[str, Any] = {"group_size": group_size, "eos_id": [2, *range(40, VOCAB)]}
    expected = sample(model, **options)
    monkeypatch.setattr(sampling, "_SHRINK_AT", {"cpu": shrink_at})
    with graphs(monkeypatch, record):
        assert_same(sample(model, **options), expected)
    assert not WAITS & set().union(*(tape.names for tape in tapes))
    # The first token of each batch is read without a tape, the last of all is not read.
    read = expected.tokens_RT.shape[1] - 1
    assert 1 <= len(tapes) <= len(replays) <= read - len(tapes)
    if shrink_at < 0:
        assert (len(tapes), len(replays)) == (1, read - 1)


def test_a_failed_recording_is_told_and_sampling_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama_grouped")

    def record(step: Callable[[], None]) -> Callable[[], None]:
        with Tape():
            step()
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = sample(model)
    with graphs(monkeypatch, record), pytest.warns(UserWarning, match="not permitted.*RA3GYM_CUDA_GRAPHS=0") as warned:
        assert_same(sample(model), expected)
    assert len(warned) == 1


def test_graphs_are_for_gpus_long_completions_and_those_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv(llama_graph.GRAPHS_VARIABLE, raising=False)
    assert llama_graph.wants_graphs(cuda, 64)
    assert not llama_graph.wants_graphs(torch.device("cpu"), 64)
    assert not llama_graph.wants_graphs(cuda, 4)
    monkeypatch.setenv(llama_graph.GRAPHS_VARIABLE, "0")
    assert not llama_graph.wants_graphs(cuda, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [1, 4])
def test_on_a_gpu_graphs_change_nothing(kind: str, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(kind).to("cuda")
    graphed = sample(model, group_size=group_size)
    monkeypatch.setenv(llama_graph.GRAPHS_VARIABLE, "0")
    assert_same(graphed, sample(model, group_size=group_size))
