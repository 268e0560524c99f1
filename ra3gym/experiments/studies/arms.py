"""The arms that studies compare: what each trains on, and how it is presented. A plug-in adds its own."""

from __future__ import annotations

from dataclasses import dataclass

from ra3gym.agents.mid_training import NTP, RA3, Recipe
from ra3gym.experiments.report.results import ArmInfo
from ra3gym.plugins import Registry


@dataclass(frozen=True)
class Arm(ArmInfo):
    """One arm of a study: how it is shown (see `ArmInfo`), and how it is trained.

    Attributes:
        recipe: what its mid-training is made of; `None` for no mid-training.
        e_step: the name of its own E-step; `None` for the study's.
        until: stop mid-training once pass@1 on the tune split reaches that of this other arm, which the study runs
            before: to compare RLVR from equal starting points.
        learning_rate: RLVR's tuned learning rate; `None` for the study's. Tuned is the best mean pass@1 on the tune
            split of seeds 20 and 21, by `ra3gym run tune` (benchmarks/results). An arm that hardly ever passes there,
            and so has nothing to choose by, gets the rate of the strongest control.
    """

    recipe: Recipe | None = None
    e_step: str | None = None
    until: str | None = None
    learning_rate: float | None = None


_CONTROL_RATE, _RA3_RATE = 3e-4, 1e-3

ARMS: Registry[Arm] = Registry("arm", "ra3gym.experiments.studies.register_arm")
"""Every arm by name, in the order in which tables and charts show them."""


def register_arm(arm: Arm) -> None:
    """Make `arm` available to every study under its name; an arm of that name is replaced."""
    ARMS.register(arm.name, arm)


for _arm in (
    Arm("base", "Base model", "base", "#8a8f98", "The pretrained model, before any mid-training."),
    Arm(
        "ntp",
        "Next-token prediction",
        "baseline",
        "#d9822b",
        "Next-token prediction on the same traces.",
        NTP,
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "pause",
        "Pause tokens",
        "control",
        "#b08d57",
        "As many extra tokens as RA3, all alike.",
        Recipe(latents="pause"),
    ),
    Arm(
        "random",
        "Random latents",
        "control",
        "#a3785f",
        "RA3's segments under latents drawn at random.",
        Recipe(latents="random"),
    ),
    Arm(
        "shuffled",
        "Shuffled latents",
        "control",
        "#8c6d8f",
        "RA3's latents, taken from another trace.",
        Recipe(latents="shuffled"),
    ),
    Arm(
        "latents",
        "Latents only",
        "ablation",
        "#4c9f8b",
        "Inferred latents at switches; missing prompts stay missing.",
        Recipe(latents="inferred"),
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "pseudo",
        "Pseudo-documentation",
        "control",
        "#3f7fbf",
        "The strongest control: the same E-step writes the missing prompts, then next-token prediction.",
        Recipe(prompts="inferred"),
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "pseudo-pause",
        "Pseudo-doc. + pauses",
        "control",
        "#4a6fa5",
        "Pseudo-documentation as in RA3, with a pause token where RA3 writes a latent.",
        Recipe(latents="pause", prompts="inferred"),
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "ra3",
        "RA3",
        "method",
        "#7459ee",
        "The method: latents at switches and pseudo-documentation, both from one E-step.",
        RA3,
        learning_rate=_RA3_RATE,
    ),
    Arm(
        "rationale",
        "RA3, rationales",
        "method",
        "#2f9e9e",
        "The paper's form: comments that the model learns to write by policy gradient.",
        Recipe(latents="inferred"),
        e_step="rationale",
    ),
    Arm(
        "brite",
        "BRiTE",
        "control",
        "#8f9e2f",
        "Rationales with horizon 1: each line gets a comment, judged by that line alone.",
        Recipe(latents="inferred"),
        e_step="brite",
    ),
    Arm(
        "ra3-shuffled",
        "RA3, latents shuffled",
        "control",
        "#b0579c",
        "Pseudo-documentation as in RA3, but with another trace's latents.",
        Recipe(latents="shuffled", prompts="inferred"),
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "ntp-long",
        "NTP, four times the tokens",
        "baseline",
        "#b5651d",
        "Next-token prediction for four times the study's token budget.",
        Recipe(budget=4.0),
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "ra3-as-pseudo",
        "RA3, stopped early (pseudo)",
        "method",
        "#9b84f3",
        "RA3, its mid-training stopped where pseudo-documentation ended up.",
        RA3,
        until="pseudo",
        learning_rate=_CONTROL_RATE,
    ),
    Arm(
        "ra3-as-ntp-long",
        "RA3, stopped early (NTP)",
        "method",
        "#b9a8f7",
        "RA3, its mid-training stopped where long next-token prediction ended up.",
        RA3,
        until="ntp-long",
        learning_rate=_RA3_RATE,
    ),
    Arm(
        "oracle",
        "Oracle labels",
        "upper bound",
        "#5b8c3e",
        "The planted labels, which no learned arm sees.",
        Recipe(latents="planted", prompts="planted"),
        learning_rate=_RA3_RATE,
    ),
):
    register_arm(_arm)
