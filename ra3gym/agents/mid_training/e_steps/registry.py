"""E-steps by name: those that come with the package, EM around any inference agent, and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.controls import CONTROLS
from ra3gym.agents.mid_training.e_steps.agent import AgentEStep
from ra3gym.agents.mid_training.e_steps.controls import ControlEStep
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.e_steps.macro_actions import MacroEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.e_steps.protocol import EStep, with_codebook
from ra3gym.agents.mid_training.e_steps.statement_kinds import AstEStep
from ra3gym.agents.mid_training.inference.agents import AGENTS, make_inference_agent
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import ViterbiAgent
from ra3gym.agents.mid_training.rationale import RationaleConfig, RationaleEStep, brite_config
from ra3gym.errors import UnknownNameError
from ra3gym.plugins import Registry

REGISTER_WITH = "ra3gym.agents.mid_training.register_e_step"

E_STEPS: Registry[Callable[[], EStep]] = Registry(
    "E-step",
    REGISTER_WITH,
    {
        "exact": ExactEStep,
        "viterbi": partial(AgentEStep, ViterbiAgent(), samples=1, final_samples=0, final_fits=1),
        "policy_gradient": partial(AgentEStep, PolicyGradientAgent(updates=100)),
        **{control: partial(ControlEStep, control, ExactEStep()) for control in CONTROLS},
        "macro": MacroEStep,
        "ast": AstEStep,
        "oracle": OracleEStep,
        "rationale": RationaleEStep,
        "brite": lambda: RationaleEStep(brite_config()),
    },
)


def register_e_step(name: str, factory: Callable[[], EStep]) -> None:
    """Make `factory()` available as `make_e_step(name)`; a name that exists is replaced."""
    E_STEPS.register(name, factory)


def make_e_step(name: str, codebook: CodebookConfig | None = None, rationale: RationaleConfig | None = None) -> EStep:
    """Return a new E-step of that name; the name of any inference agent gives EM around that agent.

    Args:
        name: "exact", "policy_gradient", "sb3:PPO", "macro", ..., or one of your own.
        codebook: takes the place of the default codebook in the E-steps that learn one. An agent that learns anew in
            every iteration is slow in EM: by default those of other libraries get one restart of five iterations.
        rationale: takes the place of the default configuration in the E-steps "rationale" and "brite", but for what
            tells the two apart.

    Raises:
        UnknownNameError: no such E-step; the message lists them.
    """
    if name in E_STEPS:
        e_step = E_STEPS[name]()
    elif name in AGENTS:
        e_step = AgentEStep(make_inference_agent(name), CodebookConfig(restarts=1, iterations=5), final_fits=1)
    else:
        known = dict.fromkeys([*E_STEPS, *AGENTS])
        raise UnknownNameError(E_STEPS.kind, name, known, f"Add your own with {REGISTER_WITH}.")
    if rationale is not None and isinstance(e_step, RationaleEStep):
        e_step = e_step.with_config(rationale)
    return e_step if codebook is None else with_codebook(e_step, lambda _: codebook)
