"""Training with a vLLM server as the sampler: it learns as with the built-in one, and survives the server's death."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.rlvr import RLVRResult, RLVRStep, algorithm, train
from ra3gym.agents.rlvr.vllm.sampler import VLLMSampler
from ra3gym.errors import SamplerError
from tests.agents.rlvr.bandits import QUICK, TASKS, allowed, tiny, writes_an_a
from tests.agents.rlvr.vllm.vllm_server import Drops, VLLMServer

CONFIG = replace(QUICK, steps=16, tasks_per_step=4, group_size=8, learning_rate=4e-2, checkpoint_every=2)
CAPPED = algorithm("grpo", off_policy_cap=2.0)


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What servers start from: not the policy's weights, as after a run that died."""
    folder = tmp_path_factory.mktemp("served")
    other = tiny(seed=1)
    lm.save(other.model, other.tokenizer, folder)
    return folder


def run(sampler: VLLMSampler | None, **options: Any) -> RLVRResult:
    loaded = tiny()
    settings: dict[str, Any] = {"algorithm": CAPPED, "config": CONFIG, "seed": 1} | options
    return train(
        loaded, TASKS, reward=writes_an_a, allowed_mask_V=allowed(loaded, "a", "b"), sampler=sampler, **settings
    )


def connect(server: VLLMServer, folder: Path) -> VLLMSampler:
    return VLLMSampler(server.url, weights_folder=folder, retries=1, retry_wait=0.0, ready_timeout=10.0)


def without_times(result: RLVRResult) -> list[RLVRStep]:
    return [replace(step, sample_seconds=0.0, train_seconds=0.0) for step in result.history]


def test_a_server_teaches_like_the_built_in_sampler(served_folder: Path, tmp_path: Path) -> None:
    with VLLMServer(served_folder) as server:
        result = run(connect(server, tmp_path))
    built_in = run(None)
    for found in (result, built_in):
        assert found.history[0].reward < 0.5
        assert sum(step.reward for step in found.history[-4:]) / 4 > 0.85
    assert len(server.bodies["/collective_rpc"]) == CONFIG.steps + 1, "one push ahead of each step, and one at the end"
    # The server sampled from the policy: its entropy is the built-in sampler's on the same weights, but for the draws.
    assert result.history[0].entropy == pytest.approx(built_in.history[0].entropy, rel=0.2)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_server_that_dies_loses_no_work(served_folder: Path, tmp_path: Path, updates: int) -> None:
    config = replace(CONFIG, steps=5)
    chosen = algorithm(CAPPED, updates_per_batch=updates)
    with VLLMServer(served_folder) as server:
        whole = run(connect(server, tmp_path / "weights"), config=config, algorithm=chosen)

    with VLLMServer(served_folder) as dying:

        def die(step: RLVRStep) -> None:
            if step.step == 3:
                dying.fail("/v1/completions", *[Drops()] * 1000)

        with pytest.raises(SamplerError, match=re.escape(dying.url)):
            run(
                connect(dying, tmp_path / "weights"),
                config=config,
                algorithm=chosen,
                folder=tmp_path / "run",
                on_step=die,
            )
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-000002", "step-000003"]
    with VLLMServer(served_folder) as server:
        resumed = run(
            connect(server, tmp_path / "weights"), config=config, algorithm=chosen, folder=tmp_path / "run", resume=True
        )
    assert resumed.finished
    assert without_times(resumed) == without_times(whole)
    for name, weight in resumed.loaded.model.state_dict().items():
        assert torch.equal(weight, whole.loaded.model.state_dict()[name])


@pytest.mark.parametrize(("dtype", "pushed"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, None)])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_pushed_in_the_servers_precision(
    served_folder: Path, tmp_path: Path, dtype: str | None, pushed: torch.dtype | None, tied: bool
) -> None:
    model: Any = tiny().model
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
        model.config.tie_word_embeddings = True
    with VLLMServer(served_folder, dtype=dtype) as server:
        sampler = connect(server, tmp_path)
        sampler.update(model)
        assert server.pushed == {pushed or torch.float32}
        assert sampler.logp_gap < 0.05
        sampler.close()
