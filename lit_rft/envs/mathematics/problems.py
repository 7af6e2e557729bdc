"""Generated expressions of whole numbers, whose value and partial results are known.

An expression is a text of numbers, signs and parentheses between spaces, such as ``( 3 + 4 ) * 2``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_NUMBER = re.compile(r"-?\d{1,6}")
_LINE = re.compile(r"(-?\d{1,6}) ([+*-]) (-?\d{1,6}) = (-?\d{1,6})")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2}
_ATTEMPTS = 10_000  # at an expression of a split
_PARTS = {"train": range(2, 10), "dev": range(1), "test": range(1, 2)}  # remainders of the problems of a split, by 10


class Line(NamedTuple):
    """A line of a solution: the part of the expression that it computes, and the result that it gives.

    Attributes:
        first, sign, second: the part: a number, ``+``, ``-`` or ``*``, and a number.
        result: right or wrong.
    """

    first: int
    sign: str
    second: int
    result: int

    @property
    def part(self) -> str:
        return f"{self.first} {self.sign} {self.second}"

    @property
    def text(self) -> str:
        return f"{self.part} = {self.result}"

    @property
    def is_right(self) -> bool:
        return self.result == _apply(self.sign, self.first, self.second)


def read_line(text: str) -> Line | None:
    """Read a line such as ``3 + 4 = 7``; None for other text. Nothing is evaluated."""
    match = _LINE.fullmatch(text.strip())
    if match is None:
        return None
    first, sign, second, result = match.groups()
    return Line(int(first), sign, int(second), int(result))


@dataclass(frozen=True)
class ExpressionProblem:
    """An expression to compute.

    Attributes:
        text: the expression.
    """

    text: str

    @property
    def value(self) -> int:
        return evaluate(self.text)

    @property
    def steps(self) -> int:
        """Return the number of lines of a solution: one for each sign."""
        return sum(token in _PRECEDENCE for token in self.text.split())

    def after(self, lines: Sequence[str]) -> str:
        """Return the expression that is left after lines of a solution; a line without effect changes nothing."""
        text = self.text
        for line in map(read_line, lines):
            text = (rewrite(text, line) if line is not None else None) or text
        return text


def rewrite(expression: str, line: Line) -> str | None:
    """Put the result of a line in the place of the first part that it computes; None if there is none.

    Any two neighbouring numbers are a part, also those that the rules of precedence do not permit to compute now.
    """
    for index, part in _parts(expression):
        if part == (line.first, line.sign, line.second):
            tokens = expression.split()
            tokens[index : index + 3] = [str(line.result)]
            if index > 0 and tokens[index - 1 : index + 2 : 2] == ["(", ")"]:
                tokens[index - 1 : index + 2] = [str(line.result)]
            return " ".join(tokens)
    return None


def parts_of(expression: str) -> list[Line]:
    """Return all parts of an expression, from left to right, each with its right result."""
    return [Line(*part, _apply(part[1], part[0], part[2])) for _, part in _parts(expression)]


def next_line(expression: str) -> Line | None:
    """Return the line of the first part that may be computed now; None if the expression is a number."""
    tokens = expression.split()
    for index, part in _parts(expression):
        after = (tokens[index + 3 :] or [""])[0]  # what is before it, an earlier part would have to compute
        if _PRECEDENCE[part[1]] >= _PRECEDENCE.get(after, 0):
            return Line(*part, _apply(part[1], part[0], part[2]))
    return None


def evaluate(expression: str) -> int:
    """Compute an expression, ``*`` before ``+`` and ``-``, otherwise from left to right.

    Raises:
        ValueError: it is no expression.
    """
    numbers: list[int] = []
    signs: list[str] = []

    def reduce(precedence: int) -> None:
        while signs and _PRECEDENCE.get(signs[-1], 0) >= precedence:
            second, first = numbers.pop(), numbers.pop()
            numbers.append(_apply(signs.pop(), first, second))

    try:
        for token in expression.split():
            if token == "(":
                signs.append(token)
            elif token == ")":
                reduce(1)
                signs.pop()
            elif token in _PRECEDENCE:
                reduce(_PRECEDENCE[token])
                signs.append(token)
            else:
                numbers.append(int(token))
        reduce(1)
        (value,), () = numbers, signs
    except (IndexError, ValueError):
        raise ValueError(f"expected an expression such as '( 3 + 4 ) * 2', got {expression!r}") from None
    return value


def generate_problem(
    rng: np.random.Generator, steps: int, *, highest: int = 9, split: str | None = None
) -> ExpressionProblem:
    """Generate a problem.

    Args:
        rng: random generator.
        steps: number of signs, > 0.
        highest: of all numbers and partial results, which are in 0..highest, > 0.
        split: ``train``, ``dev`` or ``test``, whose expressions differ; None for any.

    Raises:
        ValueError: a number is out of range, the split is unknown, or it has no such expression.
    """
    if not isinstance(steps, int) or steps < 1 or highest < 1:
        raise ValueError(f"expected steps >= 1 and highest >= 1, got {steps!r} and {highest}")
    if split is not None and split not in _PARTS:
        raise ValueError(f"split must be one of {', '.join(_PARTS)} or None, got {split!r}")
    for _ in range(_ATTEMPTS):
        text, _ = _expression(rng, int(rng.integers(highest + 1)), steps, highest)
        if split is None or zlib.crc32(text.encode()) % 10 in _PARTS[split]:
            return ExpressionProblem(text)
    raise ValueError(
        f"expected an expression of the split {split!r}, found none with steps={steps} and highest={highest} in "
        f"{_ATTEMPTS} attempts: there are too few expressions, raise one of the numbers"
    )


def _expression(rng: np.random.Generator, value: int, steps: int, highest: int) -> tuple[str, int]:
    """Return an expression with a value, and the precedence of its last sign (3 for a number)."""
    if steps == 0:
        return str(value), 3
    sign, first, second = _operands(rng, value, highest)
    steps_left = int(rng.integers(steps))
    left, left_precedence = _expression(rng, first, steps_left, highest)
    right, right_precedence = _expression(rng, second, steps - 1 - steps_left, highest)
    precedence = _PRECEDENCE[sign]
    left = left if left_precedence >= precedence else f"( {left} )"
    right = right if right_precedence > precedence else f"( {right} )"
    return f"{left} {sign} {right}", precedence


def _operands(rng: np.random.Generator, value: int, highest: int) -> tuple[str, int, int]:
    """Choose a sign, and two numbers that it makes the value of; a factor is at least 1."""
    choices = {
        "+": [(first, value - first) for first in range(value + 1)],
        "-": [(value + second, second) for second in range(highest - value + 1)],
        "*": [(first, value // first) for first in range(1, value + 1) if value % first == 0],
    }
    signs = [sign for sign, pairs in choices.items() if pairs]
    sign = signs[int(rng.integers(len(signs)))]
    first, second = choices[sign][int(rng.integers(len(choices[sign])))]
    return sign, first, second


def _parts(expression: str) -> Iterator[tuple[int, tuple[int, str, int]]]:
    """Yield the parts of an expression with the index of their first token."""
    tokens = expression.split()
    for index in range(len(tokens) - 2):
        first, sign, second = tokens[index : index + 3]
        if sign in _PRECEDENCE and _NUMBER.fullmatch(first) and _NUMBER.fullmatch(second):
            yield index, (int(first), sign, int(second))


def _apply(sign: str, first: int, second: int) -> int:
    if sign == "*":
        return first * second
    return first + second if sign == "+" else first - second
