"""ra3gym: reasoning as action abstractions, as Gymnasium environments and a modular RL toolkit.

Importing the package registers its environments with Gymnasium and imports nothing heavier than that. `Judge` and
`load_tasks` are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from ra3gym.envs.registration import register_envs

if TYPE_CHECKING:
    from ra3gym.tasks import load_tasks
    from ra3gym.verify import Judge

__version__ = "0.1.0"
__all__ = ["Judge", "__version__", "load_tasks", "register_envs"]

register_envs()


def __getattr__(name: str) -> Any:
    if name == "Judge":
        from ra3gym.verify import Judge

        return Judge
    if name == "load_tasks":
        from ra3gym.tasks import load_tasks

        return load_tasks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
