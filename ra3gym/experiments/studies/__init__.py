"""Studies: arms, seeds and grids of runs."""

from ra3gym.experiments.studies.arms import Arm, register_arm

__all__ = ["Arm", "register_arm"]
