"""Log-probabilities in the observation, and the policies that begin at them: exactly the decoder's own choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from tianshou.data import Batch
from tianshou.utils.net.common import Net

from ra3gym.agents.sb3 import DecoderPriorPolicy, MaskableDecoderPriorPolicy, as_vec_env
from ra3gym.agents.tianshou import DecoderPriorActor, MaskedActor
from ra3gym.envs.wrappers import LogprobObservation
from ra3gym.envs.wrappers.logprobs import FLOOR
from ra3gym.errors import ConfigError

E = 4
SAME_STEP = AutoresetMode.SAME_STEP
POLICIES = [(PPO, DecoderPriorPolicy), (MaskablePPO, MaskableDecoderPriorPolicy)]


@pytest.fixture
def latent_code() -> Iterator[Callable[..., Any]]:
    """Makes vector environments, and closes them."""
    made: list[Any] = []

    def build(observation: str = "hidden") -> Any:
        made.append(
            gym.make_vec(
                "ra3gym/LatentCode-v0",
                num_envs=E,
                vectorization_mode="vector_entry_point",
                min_prob=0.01,
                observation=observation,
                autoreset_mode=SAME_STEP,
            )
        )
        return made[-1]

    yield build
    for envs in made:
        envs.close()


def own(info: dict[str, Any]) -> torch.Tensor:
    """Normalized, for clipping takes away a little."""
    return torch.as_tensor(np.maximum(info["logprobs"], FLOOR)).log_softmax(dim=1)


@pytest.mark.parametrize("observation", ["hidden", "dict"])
def test_logprobs_are_appended_to_every_observation(latent_code: Any, observation: str) -> None:
    plain, envs = latent_code(observation), LogprobObservation(latent_code(observation))
    rows = (lambda o: o["obs"]) if observation == "dict" else (lambda o: o)
    size = rows(plain.single_observation_space.sample()).shape[0]
    (expected, _), (found, info) = plain.reset(seed=3), envs.reset(seed=3)
    ended = 0
    for _ in range(20):
        np.testing.assert_array_equal(rows(found)[:, :size], rows(expected))
        np.testing.assert_array_equal(rows(found)[:, size:], np.maximum(info["logprobs"], FLOOR))
        assert envs.observation_space.contains(found)
        latents = info["logprobs"].argmax(axis=1)
        (expected, *_, plain_info), (found, *_, info) = plain.step(latents), envs.step(latents)
        for i in np.flatnonzero(info.get("_final_obs", np.zeros(E))):
            ended += 1
            last, plain_last = info["final_obs"][i], plain_info["final_obs"][i]
            assert envs.single_observation_space.contains(last)
            np.testing.assert_array_equal(rows(last)[:size], rows(plain_last))
            logprobs = info["final_info"]["logprobs"][i]
            np.testing.assert_array_equal(rows(last)[size:], np.maximum(logprobs, FLOOR))
            if observation == "dict":
                np.testing.assert_array_equal(last["mask"], plain_last["mask"])
    assert ended > 2


def test_what_cannot_be_appended_to_is_refused(latent_code: Any) -> None:
    with pytest.raises(ConfigError, match="observation='hidden' or 'dict'"):
        LogprobObservation(latent_code("tokens"))
    pendulum = gym.make_vec("Pendulum-v1", 2, vectorization_mode="sync")
    with pytest.raises(ConfigError, match="must be Discrete"):
        LogprobObservation(pendulum)


@pytest.mark.parametrize(
    ("algorithm", "policy"), [(PPO, DecoderPriorPolicy), (MaskablePPO, MaskableDecoderPriorPolicy)]
)
def test_sb3_policies_begin_at_the_decoders_choice(latent_code: Any, algorithm: Any, policy: Any) -> None:
    vec_env = as_vec_env(LogprobObservation(latent_code()))
    model = algorithm(policy, vec_env, n_steps=8, batch_size=16, learning_rate=1e-2, seed=0)
    observed = vec_env.reset()
    logits = model.policy.get_distribution(torch.as_tensor(observed)).distribution.logits
    torch.testing.assert_close(logits.log_softmax(dim=1), own(vec_env.info), atol=1e-4, rtol=1e-4)
    model.learn(2 * 8 * E)
    changed = model.policy.get_distribution(torch.as_tensor(observed)).distribution.logits
    assert not torch.allclose(changed, logits)


def test_sb3_policies_need_logprobs() -> None:
    cars = gym.make_vec("MountainCar-v0", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": SAME_STEP})
    with pytest.raises(ConfigError, match=r"2 numbers.*LogprobObservation"):
        PPO(DecoderPriorPolicy, as_vec_env(cars))


def test_tianshous_actor_begins_at_the_decoders_choice_and_gradients_flow(latent_code: Any) -> None:
    envs = LogprobObservation(latent_code("dict"))
    observed, info = envs.reset(seed=0)
    K = int(envs.single_action_space.n)
    actor = DecoderPriorActor(Net(state_shape=observed["obs"].shape[1] - K, action_shape=K, hidden_sizes=(8,)))
    logits, _ = actor(observed["obs"])
    torch.testing.assert_close(logits.log_softmax(dim=1), own(info), atol=1e-4, rtol=1e-4)
    masked, _ = MaskedActor(actor)(Batch(observed))
    legal = torch.as_tensor(info["action_mask"]).bool()
    assert (masked.softmax(dim=1)[~legal] == 0.0).all()
    masked.log_softmax(dim=1)[:, 0].sum().backward()
    gradients = [parameter.grad for parameter in actor.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_tianshous_actor_needs_logits() -> None:
    with pytest.raises(ConfigError, match="no softmax"):
        DecoderPriorActor(Net(state_shape=4, hidden_sizes=(8,), action_shape=3, softmax=True))
