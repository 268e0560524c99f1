"""The E-step leaderboard: each E-step's gap to the exact posterior, its cost, and its use to the model.

There are two measurements, because a small gap alone does not make latents useful:

- *the gap*: every inference agent learns the posterior of the same problem, a codebook that the exact E-step learned
  on documented traces of the seed. Its ELBO is compared with the exact evidence, in nats per line.
- *pass@1*: every E-step learns its own codebook by EM and annotates the traces, and a model is mid-trained on them.
  Each E-step has a study of its own in a folder below this run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.latents.codebook import CodebookConfig, latent_chain, learn_codebook
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.agents.mid_training import make_e_step
from ra3gym.agents.mid_training.inference.agents import AGENTS, make_inference_agent
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import InferenceAgent, PathPosterior, UniformPosterior, elbo_gap
from ra3gym.errors import ConfigError
from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.results import load_results
from ra3gym.experiments.report.statistics import FEWEST_FOR_INTERVAL, estimate_mean
from ra3gym.experiments.report.tables import interval_note
from ra3gym.experiments.studies.config import StudyConfig, typed_config
from ra3gym.experiments.studies.grid import Cell, effect_text, is_grid, open_cell, percent_text, run_cells
from ra3gym.experiments.studies.study import resume_study
from ra3gym.files import write_json
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import ExpertTrace

E_STEP_STUDY = "e-step"
_ARM, _SCORE, _YARDSTICK, _UNIFORM = "ra3", "pass@1", "exact", "uniform"


@dataclass(frozen=True)
class EStepStudyConfig:
    """What the leaderboard compares.

    Attributes:
        study: domain, codebook and mid-training; its E-step is replaced.
        agents: inference agents whose gap is measured; see `mid_training.make_inference_agent`.
        traces: documented traces of the problem that they share, for each seed.
        e_steps: E-steps whose latents a model is mid-trained on; may be empty.
    """

    study: StudyConfig = field(
        default_factory=lambda: StudyConfig(
            seeds=(300, 301, 302, 303, 304), arms=(_ARM,), rlvr_arms=(), codebook=CodebookConfig(restarts=4)
        )
    )
    agents: tuple[str, ...] = (
        *("exact", "viterbi", "policy_gradient", "sb3:PPO", "sb3:A2C", "sb3:DQN", "sb3contrib:MaskablePPO"),
        *("tianshou:PPO", "tianshou:DiscreteSAC", "tianshou:DQN"),
    )
    traces: int = 200
    e_steps: tuple[str, ...] = ("exact", "policy_gradient", "viterbi", "macro", "ast", "shuffled")

    def __post_init__(self) -> None:
        if not self.agents or self.traces < 1:
            raise ConfigError(f"agents={self.agents}, traces={self.traces}: give at least one of each")
        for name in self.agents:
            _ = AGENTS[name]  # `UnknownNameError` here; making one needs its library
        for name in self.e_steps:
            if name not in AGENTS:
                make_e_step(name)

    def cells(self) -> list[Cell]:
        """Return one study for each E-step."""
        return [Cell(f"e-step-{name.replace(':', '-')}", replace(self.study, e_step=name)) for name in self.e_steps]


def start_e_step_study(name: str, config: EStepStudyConfig, console: Console) -> RunFolder:
    """Measure everything in a new run folder; `MissingExtraError` before it exists if an agent's library is missing."""
    for agent in dict.fromkeys([*config.agents, *(e_step for e_step in config.e_steps if e_step in AGENTS)]):
        make_inference_agent(agent)
    return _run(RunFolder.create(config.study.output, name, config), config, console)


def resume_e_step_study(name: str, folder: Path, console: Console) -> RunFolder:
    """Continue a run, or the study of a single E-step below it; what has been measured is kept."""
    run = RunFolder.open(folder, name)
    if not is_grid(run):
        return resume_study(name, folder, console)
    run.record_resume()
    return _run(run, typed_config(EStepStudyConfig, run.config, run.path / "config.json"), console)


def _run(run: RunFolder, config: EStepStudyConfig, console: Console) -> RunFolder:
    console.print(f"Run folder: {run.path}", highlight=False, soft_wrap=True)
    with run.exclusive():
        _measure_gaps(run, config, console)
        run_cells(run, config.cells(), console)
    show_e_step_study(run, console)
    return run


def shared_problem(config: EStepStudyConfig, seed: int) -> InferenceProblem:
    """Return the problem whose posterior all agents of a seed look for."""
    domain = replace(config.study.domain, documented=1.0).for_seed(seed)
    traces: Sequence[ExpertTrace] = [trace.without_planted() for trace in domain.traces(config.traces)]
    corpus = encode_traces(traces)
    codebook = learn_codebook(corpus, config.study.codebook, np.random.default_rng([seed, 3]))
    return problem_from_chain(latent_chain(corpus, codebook))


def _measure_gaps(run: RunFolder, config: EStepStudyConfig, console: Console) -> None:
    """Write `gaps/seed-SEED/AGENT.json` for every seed and agent, one after the other in this process and thread."""
    wanted = [(seed, agent) for seed in config.study.seeds for agent in (_UNIFORM, *config.agents)]
    files = {unit: run.path / "gaps" / f"seed-{unit[0]}" / f"{unit[1].replace(':', '-')}.json" for unit in wanted}
    problems: dict[int, InferenceProblem] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for unit in track([unit for unit in wanted if not files[unit].exists()], "agents", console=console):
            seed, name = unit
            if seed not in problems:
                problems = {seed: shared_problem(config, seed)}
            files[unit].parent.mkdir(parents=True, exist_ok=True)
            write_json(files[unit], _measure(problems[seed], name, seed))
    finally:
        torch.set_num_threads(threads)


def _measure(problem: InferenceProblem, name: str, seed: int) -> dict[str, Any]:
    """Measure one agent on one seed; seconds are CPU time of this process."""
    rng = np.random.default_rng([seed, 4])
    started = time.process_time()
    steps = 0
    found: PathPosterior
    if name == _UNIFORM:
        found = UniformPosterior(problem.num_latents)
    else:
        agent = make_inference_agent(name)
        found = agent.fit(problem, rng)
        steps = _environment_steps(agent, problem)
    seconds = time.process_time() - started
    return {"seed": seed, "agent": name, "gap": elbo_gap(problem, found, rng), "steps": steps, "seconds": seconds}


def _environment_steps(agent: InferenceAgent, problem: InferenceProblem) -> int:
    """Return the number of lines that an agent steps through while it learns; 0 for one that does not learn."""
    if isinstance(agent, PolicyGradientAgent):
        paths = agent.updates * agent.group_size * min(agent.traces_per_update, problem.chain.num_traces)
        return round(paths * len(problem.chain.row_N) / problem.chain.num_traces)
    return int(getattr(agent, "steps", 0))


def show_e_step_study(run: RunFolder, console: Console) -> None:
    """Print both tables of a run and write its `summary.json`."""
    config = typed_config(EStepStudyConfig, run.config, run.path / "config.json")
    files = sorted((run.path / "gaps").glob("*/*.json"))
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    summary = {"gaps": _gap_table(measured, (_UNIFORM, *config.agents), console)}
    if config.e_steps:
        summary["pass@1"] = _score_table(run, config, console)
    run.write_summary(summary)


def _gap_table(measured: list[dict[str, Any]], agents: Sequence[str], console: Console) -> list[dict[str, Any]]:
    table = Table(title="Gap to the exact posterior", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("agent", "ELBO gap, nats per line", "of uniform's gap", "environment steps", "CPU seconds"):
        table.add_column(column, justify="left" if column == "agent" else "right")
    rows: list[dict[str, Any]] = []
    uniform = {one["seed"]: one["gap"] for one in measured if one["agent"] == _UNIFORM}
    for agent in agents:
        found = [one for one in measured if one["agent"] == agent]
        if not found:
            continue
        gap = estimate_mean([one["gap"] for one in found])
        share = estimate_mean([one["gap"] / uniform[one["seed"]] for one in found])
        seconds, steps = np.mean([one["seconds"] for one in found]), np.mean([one["steps"] for one in found])
        interval = f" ({gap.low:.3f} to {gap.high:.3f})" if gap.n >= FEWEST_FOR_INTERVAL else ""
        table.add_row(agent, f"{gap.mean:.3f}{interval}", f"{100 * share.mean:.1f}%", f"{steps:,.0f}", f"{seconds:.1f}")
        rows.append(
            {
                "agent": agent,
                "gap": {
                    "mean": gap.mean,
                    "interval": [gap.low, gap.high] if gap.n >= FEWEST_FOR_INTERVAL else None,
                    "seeds": gap.n,
                },
                "share_of_uniform": share.mean,
                "steps": float(steps),
                "seconds": float(seconds),
            }
        )
    console.print(table)
    return rows


def _score_table(run: RunFolder, config: EStepStudyConfig, console: Console) -> list[dict[str, Any]]:
    table = Table(title="pass@1 % after the M-step", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("E-step", "pass@1", f"less {_YARDSTICK}'s, points", "E-step seconds"):
        table.add_column(column, justify="left" if column == "E-step" else "right")
    by_e_step = {}
    for cell in config.cells():
        started = open_cell(run, cell)
        by_e_step[cell.study.e_step] = [] if started is None else load_results(started)
    rows: list[dict[str, Any]] = []
    for name, results in by_e_step.items():
        # The two studies' results as two arms of one, paired by seed.
        named = [replace(result, arm=name) for result in results]
        others = [replace(result, arm=_YARDSTICK) for result in by_e_step.get(_YARDSTICK, [])]
        both = StudyResults(named if name == _YARDSTICK else [*named, *others])
        paired = both.compare(name, _YARDSTICK, _SCORE) if name != _YARDSTICK else None
        seconds = [spent for result in results if (spent := result.scores.get("e_step_seconds")) is not None]
        spent_text = f"{np.mean(seconds):.0f}" if seconds else "–"
        table.add_row(name, percent_text(both, name, _SCORE), effect_text(paired), spent_text)
        scores = [result.scores[_SCORE] for result in results]
        rows.append({"e_step": name, "seeds": [result.seed for result in results], _SCORE: scores})
    console.print(table)
    console.print(f"{interval_note(len(config.study.seeds))}; differences paired by seed", highlight=False)
    return rows
