"""Generated problems of `reasoning-gym`, without any download, with off-policy traces.

`gsm_symbolic` includes worked solutions. For some arithmetic tasks traces are built from the parts of the problem.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from lit_rft.problems.record import Problem
from lit_rft.problems.traces import ANSWER, TRACES

logger = logging.getLogger(__name__)
# of reasoning-gym 0.1: their generators iterate over sets of texts
_BY_HASH = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
_MOST_PER_PROBLEM = 32  # problems generated for each training problem, before giving up


def generate_problems(task: str, number: int, *, seed: int = 0, **settings: Any) -> list[Problem]:
    """Generate problems of one task.

    Args:
        task: of reasoning-gym: `gsm_symbolic`, or one with built traces (`TRACES`); problems of other tasks have no
            traces.
        number: number of problems, >= 1.
        seed: of the generator.
        settings: of the task, as in reasoning-gym.

    Raises:
        ValueError: For an unknown task or a number below 1, or one whose problems differ from process to process.
        ImportError: Without reasoning-gym (lit-rft[math]).
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("generated problems need reasoning-gym: pip install 'lit-rft[math]'") from error
    if number < 1:
        raise ValueError(f"number must be >= 1, got {number}")
    if task not in DATASETS:
        raise ValueError(f"unknown task {task!r}; reasoning-gym has {', '.join(sorted(DATASETS))}")
    if task in _BY_HASH and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ValueError(
            f"the problems of {task} depend on Python's hashes of texts, which differ from process to process: set the "
            "environment variable PYTHONHASHSEED to 0"
        )
    # reasoning-gym seeds item i with seed + i: consecutive seeds would share nearly all problems
    apart = int.from_bytes(hashlib.sha256(f"{task}/{seed}".encode()).digest()[:6], "little")
    entries = reasoning_gym.create_dataset(task, size=number, seed=apart, **settings)
    return [_problem(task, seed, index, entries[index]) for index in range(number)]


def generate_training_problems(
    task: str, number: int, held_out: Iterable[Problem], *, seed: int = 0, **settings: Any
) -> list[Problem]:
    """Generate problems of one task, none of which is held out: different seeds have problems in common.

    Args:
        task, number, seed, settings: see `generate_problems`.
        held_out: problems of evaluations, excluded by their question.

    Raises:
        ValueError: Also if the task has too few other problems.
        ImportError: Without reasoning-gym (lit-rft[math]).
    """
    excluded, generated = {_question(problem) for problem in held_out}, number
    while True:
        candidates = generate_problems(task, generated, seed=seed, **settings)
        problems = [problem for problem in candidates if _question(problem) not in excluded]
        if len(problems) >= number:
            return problems[:number]
        if generated >= _MOST_PER_PROBLEM * number:
            raise ValueError(
                f"expected {number} training problems of {task} that are not held out, got {len(problems)} of "
                f"{generated}: widen its settings (task_settings), or hold out fewer problems (eval_tasks)"
            )
        generated *= 2


def warn_of_overlap(problems: Sequence[Problem], held_out: Iterable[Problem]) -> None:
    """Warn of training problems with a held-out question."""
    excluded = {_question(problem) for problem in held_out}
    if shared := [problem for problem in problems if _question(problem) in excluded]:
        logger.warning("%d of %d training problems are held out as well, such as %s (%r): evaluations measure what was "
                       "memorised; remove them from train_files", len(shared), len(problems), shared[0].origin or
                       shared[0].id, _question(shared[0])[:80])  # fmt: skip


def _question(problem: Problem) -> str:
    """Return the last message; system prompts differ between files."""
    return problem.prompt[-1]["content"].strip()


def _problem(task: str, seed: int, index: int, entry: dict[str, Any]) -> Problem:
    trace = TRACES[task](entry) if task in TRACES else None
    question = f"{entry['question'].strip()}\nPut the final answer in {ANSWER.format('')}."
    return Problem(
        id=f"{task}/{seed}/{index}",
        prompt=({"role": "user", "content": question},),
        ground_truth=str(entry["answer"]),
        traces=(trace,) if trace else (),
        source=task,
    )
