"""Mathematics as an environment: generated problems of several steps, solved line by line, each judged by a verifier.

Subgoals are the steps of a solution: the high level of a hierarchical agent plans the next step, the low level writes
it.
"""

from lit_rft.envs.mathematics.env import Expressions
from lit_rft.envs.mathematics.problems import ExpressionProblem, Line, generate_problem, read_line
from lit_rft.envs.mathematics.rewards import PartialResults, ProcessReward
from lit_rft.envs.mathematics.suite import ExpressionSuite

__all__ = [
    "ExpressionProblem",
    "ExpressionSuite",
    "Expressions",
    "Line",
    "PartialResults",
    "ProcessReward",
    "generate_problem",
    "read_line",
]
