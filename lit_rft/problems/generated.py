"""Generated problems of `reasoning-gym`, without any download, with off-policy traces.

`gsm_symbolic` includes worked solutions. For some arithmetic tasks traces are built from the parts of the problem.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lit_rft.problems.record import Problem
from lit_rft.problems.traces import ANSWER, TRACES


def generate_problems(task: str, number: int, *, seed: int = 0, **settings: Any) -> list[Problem]:
    """Generate problems of one task.

    Args:
        task: of reasoning-gym: `gsm_symbolic`, or one with built traces (`TRACES`); problems of other tasks have no
            traces.
        number: number of problems, >= 1.
        seed: of the generator.
        settings: of the task, as in reasoning-gym.

    Raises:
        ValueError: For an unknown task or a number below 1.
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
    # reasoning-gym seeds item i with seed + i: consecutive seeds would share nearly all problems
    apart = int.from_bytes(hashlib.sha256(f"{task}/{seed}".encode()).digest()[:6], "little")
    entries = reasoning_gym.create_dataset(task, size=number, seed=apart, **settings)
    return [_problem(task, seed, index, entries[index]) for index in range(number)]


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
