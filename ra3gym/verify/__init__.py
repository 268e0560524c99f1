"""The judge: whether programs pass their tasks' hidden tests, with rewards and pass@k from its verdicts."""

from ra3gym.verify.grader import Graded, Grader
from ra3gym.verify.judge import Judge
from ra3gym.verify.passk import pass_at_k
from ra3gym.verify.run import Limits
from ra3gym.verify.verdict import Status, Verdict
from ra3gym.verify.worker import Isolation

__all__ = ["Graded", "Grader", "Isolation", "Judge", "Limits", "Status", "Verdict", "pass_at_k"]
