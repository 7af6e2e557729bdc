"""Problems with verifiable answers: prompts, ground truths, off-policy traces. No torch."""

from lit_rft.problems.generated import generate_problems, generate_training_problems
from lit_rft.problems.io import read_problems, write_problems
from lit_rft.problems.record import Problem, ProblemError

__all__ = [
    "Problem", "ProblemError", "generate_problems", "generate_training_problems", "read_problems", "write_problems",
]  # fmt: skip
