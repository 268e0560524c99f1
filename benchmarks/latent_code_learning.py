"""LatentCode-v0: do the libraries' algorithms, unmodified, beat the decoder's own choice of latents?

*The setting*: the embedded checkpoint, `min_prob=0.01`, the greedy decoder (so that a program depends on its latents
alone), and 16 tasks of the split "rl": those whose best reward is furthest above the mean under the decoder's own
choice, over sixteen episodes each, from seeds that are used for nothing else. On most other tasks every choice that the
decoder is likely to make is right, or every one wrong, and there is nothing to learn. Each algorithm trains on these.

*The baselines*: latents drawn from `info["logprobs"]`, and always the likeliest one; same decoder, same tasks.

*The measure*: mean final reward over 16 episodes of each task, from seeds that nothing was trained or selected on; the
learned policy draws its latents too. Policy and baseline are compared task by task, with 95% bootstrap intervals over
tasks, which is wider than one over episodes. Then the same on 128 tasks of the split "eval", never trained on, 2
episodes each.

The policies begin at the decoder's own choice: the log-probabilities are part of what they observe and are added to
their logits (`ra3gym.envs.wrappers`).

    OMP_NUM_THREADS=1 python benchmarks/latent_code_learning.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from tianshou.algorithm.modelfree.discrete_sac import DiscreteSAC, DiscreteSACPolicy
from tianshou.algorithm.modelfree.ppo import PPO as TianshouPPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteCritic

from ra3gym import lm
from ra3gym.agents.mid_training.inference.conditioning import global_seeds
from ra3gym.agents.sb3 import DecoderPriorPolicy, MaskableDecoderPriorPolicy, as_vec_env
from ra3gym.agents.tianshou import DecoderPriorActor, MaskedActor, UnmaskedCritic, as_vector_env
from ra3gym.cli import PIPE_WIDTH
from ra3gym.envs.wrappers import LogprobObservation
from ra3gym.experiments.report.statistics import bootstrap_interval, mean_interval
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start
from ra3gym.tasks import CodeTask, load_tasks

RESULTS = Path(__file__).with_name("results")
SELECTION_SEED, EVALUATION_SEED = 1_000_000, 3_000_000
"""Training seeds are small. Settings were tried on training seed 0 and evaluation seeds from 2,000,000 on."""
ROLLOUT, NUM_ENVS = 16, 64
"""Steps of each environment between two updates of PPO; environments in training."""

Row = dict[str, Any]
Choose = Callable[[Any, Row, np.random.Generator], np.ndarray]
"""Observations, batched infos and a generator to latents, one per environment."""


@dataclass(frozen=True)
class Options:
    """What to train, and where the results go."""

    output: Path = RESULTS / "latent_code_learning.json"
    """Where the JSON goes."""
    algorithms: tuple[str, ...] = ("SB3 PPO", "MaskablePPO", "tianshou PPO", "DiscreteSAC")
    """By these names."""
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    """Training seeds."""
    steps: int = 5120
    """Decisions in training, over all environments; an episode has about six."""
    tasks: int = 16
    """Tasks trained on."""
    episodes: int = 16
    """Evaluation episodes of each task trained on; an eighth of them of each other task."""
    workers: int = 2
    """Runs at once, each in a process of its own."""


# The environments, and what a policy earns there


def environments(tasks: Sequence[CodeTask], num_envs: int, observation: str = "hidden") -> LogprobObservation:
    """LatentCode in the setting above."""
    vector_env = gym.make_vec(
        "ra3gym/LatentCode-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        model=lm.load("embedded"),
        tasks=tasks,
        decoder="greedy",
        min_prob=0.01,
        observation=observation,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    return LogprobObservation(vector_env)


def earned(tasks: Sequence[CodeTask], choose: Choose, seed: int, episodes: int, observation: str = "hidden") -> Any:
    """Final rewards (episodes, tasks): every task that often, one environment for each episode."""
    at_once = max(1, min(episodes, 128 // len(tasks)))
    envs = environments(tasks, at_once * len(tasks), observation)
    task_ids = [task.task_id for task in tasks] * at_once
    rounds = []
    for number in range(-(-episodes // at_once)):
        first = seed + number * envs.num_envs
        rng = np.random.default_rng(first)
        observed, info = envs.reset(seed=first, options={"task_id": task_ids})
        reward_N, ended_N = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=bool)
        while not ended_N.all():
            observed, paid_N, terminated_N, truncated_N, info = envs.step(choose(observed, info, rng))
            reward_N += np.where(ended_N, 0.0, paid_N)
            ended_N |= terminated_N | truncated_N
        rounds.append(reward_N.reshape(at_once, len(tasks)))
    envs.close()
    return np.concatenate(rounds)[:episodes]


def own_choice(observed: Any, info: Row, rng: np.random.Generator) -> np.ndarray:
    """The decoder's own: drawn from its log-probabilities, the mask not read."""
    return (info["logprobs"] + rng.gumbel(size=info["logprobs"].shape)).argmax(axis=1)


def likeliest(observed: Any, info: Row, rng: np.random.Generator) -> np.ndarray:
    """The decoder's likeliest latent."""
    return info["logprobs"].argmax(axis=1)


def with_room(tasks: Sequence[CodeTask], number: int) -> list[CodeTask]:
    """The tasks on which it matters most which latents are chosen; see above."""
    reward_RM = earned(tasks, own_choice, SELECTION_SEED, 16)
    room_M = reward_RM.max(axis=0) - reward_RM.mean(axis=0)
    chosen = np.argsort(-room_M, kind="stable")[:number]
    return [tasks[m] for m in sorted(chosen.tolist())]


# The algorithms: from tasks, steps and a seed to a policy


def train_sb3_ppo(tasks: Sequence[CodeTask], steps: int, seed: int) -> Choose:
    """PPO of stable-baselines3, which knows no masks. A discount makes illegal actions cost something."""
    options = {"gamma": 0.95, "learning_rate": 1e-3, "target_kl": 0.03}
    return _train_sb3(PPO, DecoderPriorPolicy, tasks, steps, seed, options)


def train_maskable_ppo(tasks: Sequence[CodeTask], steps: int, seed: int) -> Choose:
    """MaskablePPO of sb3-contrib."""
    options = {"gamma": 1.0, "learning_rate": 3e-3}
    return _train_sb3(MaskablePPO, MaskableDecoderPriorPolicy, tasks, steps, seed, options)


def _train_sb3(algorithm: Any, policy: Any, tasks: Sequence[CodeTask], steps: int, seed: int, options: Row) -> Choose:
    vec_env = as_vec_env(environments(tasks, NUM_ENVS))
    vec_env.seed(seed * NUM_ENVS)
    with global_seeds(seed):
        model = algorithm(
            policy,
            vec_env,
            n_steps=ROLLOUT,
            batch_size=256,
            n_epochs=4,
            gae_lambda=1.0,
            ent_coef=0.0,
            policy_kwargs={"net_arch": {"pi": [128], "vf": [128]}, "activation_fn": torch.nn.ReLU},
            seed=seed,
            **options,
        )
        model.learn(steps)
    vec_env.close()
    masked = algorithm is MaskablePPO

    def choose(observed: Any, info: Row, rng: np.random.Generator) -> np.ndarray:
        masks = {"action_masks": info["action_mask"]} if masked else {}
        with global_seeds(int(rng.integers(2**31))):
            return model.predict(observed, deterministic=False, **masks)[0]

    return choose


def train_tianshou_ppo(tasks: Sequence[CodeTask], steps: int, seed: int) -> Choose:
    """PPO of tianshou with our masked actor."""
    envs = environments(tasks, NUM_ENVS, "dict")
    D, K, space = _sizes(envs)
    with global_seeds(seed):
        actor = MaskedActor(DecoderPriorActor(Net(state_shape=D, action_shape=K, hidden_sizes=(128,))))
        critic = UnmaskedCritic(DiscreteCritic(preprocess_net=Net(state_shape=D + K, hidden_sizes=(128,))))
        algorithm = TianshouPPO(
            policy=DiscreteActorPolicy(actor=actor, action_space=space, deterministic_eval=False),
            critic=critic,
            optim=AdamOptimizerFactory(lr=3e-3),
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            max_grad_norm=0.5,
            advantage_normalization=True,
        )
        collector = _collector(algorithm, envs, seed, ROLLOUT * NUM_ENVS)
        params = OnPolicyTrainerParams(
            training_collector=collector,
            epoch_num_steps=steps,
            collection_step_num_env_steps=ROLLOUT * NUM_ENVS,
            update_step_num_repetitions=4,
            batch_size=256,
            **_ONE_EPOCH,
        )
        algorithm.run_training(params)
    envs.close()
    return _drawn_by(algorithm.policy)


def train_discrete_sac(tasks: Sequence[CodeTask], steps: int, seed: int) -> Choose:
    """DiscreteSAC of tianshou with our masked actor."""
    envs = environments(tasks, NUM_ENVS, "dict")
    D, K, space = _sizes(envs)

    def critic() -> UnmaskedCritic:
        net = Net(state_shape=D + K, hidden_sizes=(128,))
        return UnmaskedCritic(DiscreteCritic(preprocess_net=net, last_size=K))

    with global_seeds(seed):
        actor = MaskedActor(DecoderPriorActor(Net(state_shape=D, action_shape=K, hidden_sizes=(128,))))
        algorithm = DiscreteSAC(
            policy=DiscreteSACPolicy(actor=actor, action_space=space, deterministic_eval=False),
            policy_optim=AdamOptimizerFactory(lr=1e-3),
            critic=critic(),
            critic_optim=AdamOptimizerFactory(lr=2e-3),
            critic2=critic(),
            critic2_optim=AdamOptimizerFactory(lr=2e-3),
            gamma=1.0,
            alpha=0.02,
            tau=0.02,
            n_step_return_horizon=3,
        )
        collector = _collector(algorithm, envs, seed, 2 * steps)
        params = OffPolicyTrainerParams(
            training_collector=collector,
            epoch_num_steps=steps,
            collection_step_num_env_steps=NUM_ENVS,
            update_step_num_gradient_steps_per_sample=0.2,
            batch_size=256,
            **_ONE_EPOCH,
        )
        algorithm.run_training(params)
    envs.close()
    return _drawn_by(algorithm.policy)


_ONE_EPOCH: Row = {"max_epochs": 1, "verbose": False, "show_progress": False, "test_collector": None}


def _sizes(envs: LogprobObservation) -> tuple[int, int, gym.spaces.Discrete]:
    """Sizes of the hidden state and of the codebook, and the action space."""
    space = envs.single_action_space
    K = int(space.n)
    return envs.single_observation_space["obs"].shape[0] - K, K, space


def _collector(algorithm: Any, envs: LogprobObservation, seed: int, size: int) -> Collector:
    venv = as_vector_env(envs)
    venv.seed(seed * NUM_ENVS)
    return Collector(algorithm, venv, VectorReplayBuffer(size, NUM_ENVS), raise_on_nan_in_buffer=False)


def _drawn_by(policy: Any) -> Choose:
    """tianshou's policies read masks from a Dict observation, which is put together here from the infos."""
    policy.eval()

    def choose(observed: Any, info: Row, rng: np.random.Generator) -> np.ndarray:
        batch = Batch(obs=Batch(obs=observed, mask=info["action_mask"]), info=Batch())
        with torch.no_grad(), global_seeds(int(rng.integers(2**31))):
            return policy(batch).act.numpy()

    return choose


TRAIN: dict[str, Callable[[Sequence[CodeTask], int, int], Choose]] = {
    "SB3 PPO": train_sb3_ppo,
    "MaskablePPO": train_maskable_ppo,
    "tianshou PPO": train_tianshou_ppo,
    "DiscreteSAC": train_discrete_sac,
}


# The comparison


def compare(policy_RM: np.ndarray, baseline_RM: np.ndarray) -> Row:
    """Mean rewards, and the margin with its interval over tasks."""
    difference_M = policy_RM.mean(axis=0) - baseline_RM.mean(axis=0)
    low, high = bootstrap_interval(difference_M.tolist())
    return {"reward": float(policy_RM.mean()), "margin": float(difference_M.mean()), "low": low, "high": high}


def run(job: tuple[str, int, list[CodeTask], list[CodeTask], Options]) -> tuple[float, np.ndarray, np.ndarray]:
    """Train once: seconds of the process's CPU time, final rewards on the tasks trained on and on the others."""
    name, seed, tasks, unseen, options = job
    torch.set_num_threads(1)
    begun = time.process_time()
    choose = TRAIN[name](tasks, options.steps, seed)
    seconds = time.process_time() - begun
    fewer = max(1, options.episodes // 8)
    return seconds, *(
        earned(some, choose, EVALUATION_SEED, number) for some, number in ((tasks, options.episodes), (unseen, fewer))
    )


def main(options: Options) -> None:
    """Train and evaluate everything, print the table, write the JSON."""
    unknown = set(options.algorithms) - set(TRAIN)
    if unknown or min(options.steps, options.tasks, options.episodes, options.workers) < 1:
        sys.exit(f"error: algorithms are {', '.join(TRAIN)}; steps, tasks, episodes and workers are at least 1")
    torch.set_num_threads(1)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: Row = {**describe_start(), "options": kept}
    tasks, unseen = with_room(load_tasks("idioms", split="rl"), options.tasks), load_tasks("idioms", split="eval")
    fewer = max(1, options.episodes // 8)
    own = earned(tasks, own_choice, EVALUATION_SEED, options.episodes)
    own_unseen = earned(unseen, own_choice, EVALUATION_SEED, fewer)
    greedy, greedy_unseen = (earned(some, likeliest, EVALUATION_SEED, 1) for some in (tasks, unseen))
    result["tasks"] = [task.task_id for task in tasks]
    result["own choice"] = {"reward": float(own.mean()), "unseen": float(own_unseen.mean())}
    result["likeliest"] = {"trained": compare(greedy, own), "unseen": compare(greedy_unseen, own_unseen)}
    console.print(f"own choice {own.mean():.3f}, likeliest {greedy.mean():.3f}")
    result["runs"] = []
    jobs = [(name, seed, tasks, unseen, options) for name in options.algorithms for seed in options.seeds]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for (name, seed, *_), (seconds, policy, policy_unseen) in zip(jobs, pool.map(run, jobs), strict=True):
            row: Row = {"algorithm": name, "seed": seed, "training_seconds": round(seconds, 1)}
            row |= {"trained": compare(policy, own), "over_likeliest": compare(policy, greedy)}
            row["unseen"] = compare(policy_unseen, own_unseen)
            result["runs"].append(row)
            figures = (row["trained"]["reward"], row["trained"]["margin"], row["unseen"]["margin"], seconds)
            console.print(f"{name} {seed}: reward %.3f, margin %+.3f, unseen %+.3f, %.0f s" % figures)
    result["summary"] = summarize(result["runs"])
    show(result, console)
    write_json(options.output, result)
    console.print(f"written to {options.output}", markup=False)


def summarize(runs: Sequence[Row]) -> list[Row]:
    """By algorithm: means over seeds, and the least margin of any seed."""
    summary = []
    for name in dict.fromkeys(row["algorithm"] for row in runs):
        chosen = [row for row in runs if row["algorithm"] == name]
        margins = [row["trained"]["margin"] for row in chosen]
        low, high = mean_interval(margins)
        summary.append(
            {
                "algorithm": name,
                "seeds": len(chosen),
                "reward": float(np.mean([row["trained"]["reward"] for row in chosen])),
                "margin": float(np.mean(margins)),
                "margin_over_seeds": [low, high],
                "least_margin": min(margins),
                "margin_over_likeliest": float(np.mean([row["over_likeliest"]["margin"] for row in chosen])),
                "unseen_margin": float(np.mean([row["unseen"]["margin"] for row in chosen])),
                "training_seconds": float(np.median([row["training_seconds"] for row in chosen])),
            }
        )
    return summary


def show(result: Row, console: Console) -> None:
    """Print the table."""
    table = Table(title="LatentCode-v0: mean reward, and the margin over the decoder's own choice")
    for column in ("policy", "reward", "margin", "least seed", "over likeliest", "unseen tasks", "training CPU s"):
        table.add_column(column)
    own = result["own choice"]
    table.add_row("own choice", f"{own['reward']:.3f}", "", "", "", f"({own['unseen']:.3f})", "")
    other = result["likeliest"]
    figures = (f"{other['trained']['margin']:+.3f}", "", "", f"{other['unseen']['margin']:+.3f}", "")
    table.add_row("likeliest", f"{other['trained']['reward']:.3f}", *figures)
    for row in result["summary"]:
        signed = [f"{row[key]:+.3f}" for key in ("margin", "least_margin", "margin_over_likeliest", "unseen_margin")]
        table.add_row(row["algorithm"], f"{row['reward']:.3f}", *signed, f"{row['training_seconds']:.0f}")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
