"""Problems without any download: out of `reasoning-gym`, with off-policy traces.

`gsm_symbolic` brings worked solutions. For some arithmetic tasks a trace is built from the problem's own parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_rft.problems.record import Problem

ANSWER = "\\boxed{{{}}}"


def generate_problems(task: str, number: int, *, seed: int = 0, **settings: Any) -> list[Problem]:
    """Problems of one task.

    Args:
        task: of reasoning-gym: `gsm_symbolic`, or one of those that traces are built for (`TRACES`); any other one
            gives problems without traces.
        number: how many, >= 1.
        seed: of the generator.
        settings: of the task, as reasoning-gym names them.
    Raises: ValueError for an unknown task or a number below 1; ImportError without reasoning-gym (lit-rft[math]).
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("generated problems come out of reasoning-gym: pip install 'lit-rft[math]'") from error
    if number < 1:
        raise ValueError(f"number must be >= 1, got {number}")
    if task not in DATASETS:
        raise ValueError(f"unknown task {task!r}; reasoning-gym has {', '.join(sorted(DATASETS))}")
    entries = reasoning_gym.create_dataset(task, size=number, seed=seed, **settings)
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


def _worked_solution(entry: dict[str, Any]) -> str:
    """gsm_symbolic's own prose ends with `#### answer`."""
    prose = entry["metadata"]["answer_cot"].split("####")[0].strip()
    return f"{prose}\n{ANSWER.format(entry['answer'])}"


def _chain_sum(entry: dict[str, Any]) -> str:
    """One term after the other: 4 - 3 + 7 is 4 - 3 = 1, then 1 + 7 = 8."""
    parts = entry["metadata"]["expression"].split()
    total, lines = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {new}")
        total = new
    return "\n".join([*lines, ANSWER.format(total)])


def _products(entry: dict[str, Any]) -> str:
    """One factor after the other."""
    factors = [int(part) for part in entry["metadata"]["expression"].split(" * ")]
    total, lines = factors[0], []
    for factor in factors[1:]:
        lines.append(f"{total} * {factor} = {total * factor}")
        total *= factor
    return "\n".join([*lines, ANSWER.format(total)])


def _prime_factorization(entry: dict[str, Any]) -> str:
    """The smallest factor is divided out, again and again."""
    rest, lines = int(entry["metadata"]["number"]), []
    for factor in entry["metadata"]["factors"]:
        lines.append(f"{rest} = {factor} * {rest // factor}")
        rest //= factor
    return "\n".join([*lines, ANSWER.format(entry["answer"])])


def _leg_counting(entry: dict[str, Any]) -> str:
    """Each animal's legs, then their sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals = entry["metadata"]["animals"]
    parts = {name: count * ANIMALS[name] for name, count in animals.items()}
    lines = [f"{name}: {count} * {ANIMALS[name]} = {parts[name]}" for name, count in animals.items()]
    return "\n".join(
        [*lines, " + ".join(map(str, parts.values())) + f" = {entry['answer']}", ANSWER.format(entry["answer"])]
    )


TRACES: dict[str, Callable[[dict[str, Any]], str]] = {
    "chain_sum": _chain_sum,
    "gsm_symbolic": _worked_solution,
    "leg_counting": _leg_counting,
    "prime_factorization": _prime_factorization,
    "products": _products,
}
