"""Problems (`CodeTask`) and demonstrations (`ExpertTrace`), and how to load them by name or from a file."""

from ra3gym.tasks.loading import load_tasks, register_tasks
from ra3gym.tasks.task import AssertTests, CheckTests, CodeTask, ExpertTrace, FunctionTests, StdioTests, Tests

__all__ = [
    "AssertTests",
    "CheckTests",
    "CodeTask",
    "ExpertTrace",
    "FunctionTests",
    "StdioTests",
    "Tests",
    "load_tasks",
    "register_tasks",
]
