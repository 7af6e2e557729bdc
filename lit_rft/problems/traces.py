"""Worked solutions to reasoning-gym's problems, built from the parts of each problem.

Each function takes an entry of one task and returns a text that ends with the answer in a box.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from fractions import Fraction
from typing import Any

ANSWER = "\\boxed{{{}}}"


def _worked_solution(entry: dict[str, Any]) -> str:
    """Convert the solution of gsm_symbolic, which ends with `#### answer`."""
    prose = entry["metadata"]["answer_cot"].split("####")[0].strip()
    return f"{prose}\n{ANSWER.format(entry['answer'])}"


def _chain_sum(entry: dict[str, Any]) -> str:
    """Add one term after the other: 4 - 3 + 7 is 4 - 3 = 1, then 1 + 7 = 8."""
    parts = entry["metadata"]["expression"].split()
    total, lines = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {new}")
        total = new
    return "\n".join([*lines, ANSWER.format(total)])


def _products(entry: dict[str, Any]) -> str:
    """Multiply one factor after the other."""
    factors = [int(part) for part in entry["metadata"]["expression"].split(" * ")]
    total, lines = factors[0], []
    for factor in factors[1:]:
        lines.append(f"{total} * {factor} = {total * factor}")
        total *= factor
    return "\n".join([*lines, ANSWER.format(total)])


def _prime_factorization(entry: dict[str, Any]) -> str:
    """Divide out the smallest factor repeatedly."""
    rest, lines = int(entry["metadata"]["number"]), []
    for factor in entry["metadata"]["factors"]:
        lines.append(f"{rest} = {factor} * {rest // factor}")
        rest //= factor
    return "\n".join([*lines, ANSWER.format(entry["answer"])])


def _leg_counting(entry: dict[str, Any]) -> str:
    """Count each animal's legs, then add them up."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals = entry["metadata"]["animals"]
    parts = {name: count * ANIMALS[name] for name, count in animals.items()}
    lines = [f"{name}: {count} * {ANIMALS[name]} = {parts[name]}" for name, count in animals.items()]
    return "\n".join(
        [*lines, " + ".join(map(str, parts.values())) + f" = {entry['answer']}", ANSWER.format(entry["answer"])]
    )


def _basic_arithmetic(entry: dict[str, Any]) -> str:
    """Evaluate one operation after the other, innermost first."""
    lines: list[str] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            sign, result = _operation(node.op, left, right)
            lines.append(f"{left} {sign} {right} = {result}")
            return result
        return Fraction(ast.literal_eval(node))

    value(ast.parse(entry["metadata"]["expression"], mode="eval").body)
    return "\n".join([*lines, ANSWER.format(entry["answer"])])


def _operation(operator: ast.operator, left: Fraction, right: Fraction) -> tuple[str, Fraction]:
    if isinstance(operator, ast.Add):
        return "+", left + right
    if isinstance(operator, ast.Sub):
        return "-", left - right
    if isinstance(operator, ast.Mult):
        return "*", left * right
    return "/", left / right


def _simple_equations(entry: dict[str, Any]) -> str:
    """Collect the terms with and without the unknown, then divide."""
    left, _, right = entry["metadata"]["equation"].partition("=")
    unknown = entry["metadata"]["variable"]
    factor, constant = _linear(ast.parse(left.strip(), mode="eval").body)
    total = int(right)
    return "\n".join(
        [
            f"{factor}*{unknown} = {total} - {constant} = {total - constant}",
            f"{unknown} = {total - constant} / {factor} = {entry['answer']}",
            ANSWER.format(entry["answer"]),
        ]
    )


def _linear(node: ast.expr) -> tuple[int, int]:
    """Return the coefficient of the unknown, and the constant."""
    if isinstance(node, ast.Name):
        return 1, 0
    if isinstance(node, ast.UnaryOp):
        factor, constant = _linear(node.operand)
        return -factor, -constant
    if isinstance(node, ast.BinOp):
        (a, b), (c, d) = _linear(node.left), _linear(node.right)
        if isinstance(node.op, ast.Mult):  # at most one factor has the unknown
            return a * d + b * c, b * d
        return (a + c, b + d) if isinstance(node.op, ast.Add) else (a - c, b - d)
    return 0, int(ast.literal_eval(node))


def _gcd(entry: dict[str, Any]) -> str:
    """Apply Euclid's algorithm: replace the larger number by the remainder until nothing remains."""
    numbers, lines = entry["metadata"]["numbers"], []
    gcd = numbers[0]
    for number in numbers[1:]:
        large, small = max(gcd, number), min(gcd, number)
        while small:
            lines.append(f"{large} = {large // small} * {small} + {large % small}")
            large, small = small, large % small
        gcd = large
    return "\n".join([*lines, ANSWER.format(gcd)])


def _number_sequence(entry: dict[str, Any]) -> str:
    """State the rule in the generator's words."""
    *known, last = entry["metadata"]["sequence"]
    return f"The rule: {entry['metadata']['rule']}.\n{', '.join(map(str, known))}, {last}\n{ANSWER.format(last)}"


TRACES: dict[str, Callable[[dict[str, Any]], str]] = {
    "basic_arithmetic": _basic_arithmetic,
    "chain_sum": _chain_sum,
    "gcd": _gcd,
    "gsm_symbolic": _worked_solution,
    "leg_counting": _leg_counting,
    "number_sequence": _number_sequence,
    "prime_factorization": _prime_factorization,
    "products": _products,
    "simple_equations": _simple_equations,
}
