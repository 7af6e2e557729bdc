r"""Read and compare rational numbers exactly, in any notation; see docs/grading.md."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from lit_rft.rewards.reading import TEXT, strip_unit


class Number(NamedTuple):
    """A number with its notation.

    Attributes:
        value: exact.
        decimals: digits after the point; None for an integer or a fraction.
        is_fraction: written as a fraction or a power.
        percent: followed by a percent sign.
        base: the subscript of a number in another base, or an empty text.
    """

    value: Fraction
    decimals: int | None
    is_fraction: bool
    percent: bool
    base: str


_PLAIN = r"(?:\d{1,1000}(?:\.\d{0,1000})?|\.\d{1,1000})"
_POWER = r"(?:\s*\^\s*(?:\{\s*(?P<?b>[+-]?\d{1,4})\s*\}|\(\s*(?P<?p>[+-]?\d{1,4})\s*\)|(?P<?d>-?\d{1,4})))?"
_SCIENTIFIC = (
    r"(?:[eE](?P<?e>[+-]?\d{1,4})"
    r"|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*(?P<?t>[+-]?\d{1,4})\s*\}|\(?\s*(?P<?u>[+-]?\d{1,4})\s*\)?))?"
)


def _atom(name: str) -> str:
    return rf"(?P<{name}s>[+-]?)\s*(?P<{name}n>{_PLAIN})" + (_SCIENTIFIC + _POWER).replace("P<?", f"P<{name}")


def _braced(name: str) -> str:
    return rf"(?:\{{\s*{_atom(name)}\s*\}}|\s*(?P<{name}1>\d))"


_WHOLE = r"(?P<sign>[+-]?)\s*"
_ONE = re.compile(_WHOLE + _atom("x"))
_RATIO = re.compile(_WHOLE + _atom("x") + r"\s*/\s*" + _atom("y"))
_FRAC = re.compile(_WHOLE + r"(?:(?P<w>\d{1,100})\s*)?\\frac\s*" + _braced("x") + r"\s*" + _braced("y"))
_MIXED = re.compile(_WHOLE + r"(?P<w>\d{1,100})\s+(?:and )?(?P<xn>\d{1,100})\s*/\s*(?P<yn>\d{1,100})")
_TAIL = re.compile(
    r"(?P<mark>(?:\s*(?P<percent>\\?%|percent(?:age points?)?\b|pct\b))?"
    r"(?:\s*_\s*(?:\{\s*(?P<b1>\w+)\s*\}|(?P<b2>\d+)))?)"
)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*({TEXT}\{{)?\s*({'|'.join(_SCALES)})s?\b((?:\s*\}})?)", re.I)
_REPEATING = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>\d{0,50})\.(?P<once>\d{0,50})\\overline\s*\{\s*(?P<cycle>\d{1,50})\s*\}"
)
_SPACED = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?: \d{3})+)(?![\d/])")


def join_thousands(text: str) -> str:
    """Write `32 348` as one number."""
    return _SPACED.sub(lambda match: match.group().replace(" ", ""), text)


def as_number(text: str) -> Number | None:
    """Read one rational number exactly, with an optional unit, percent sign or base; None for anything else."""
    text = re.sub(r"^(?:-?)\{(.*)\}$", r"\1", text) if text.startswith("{") else text
    text = join_thousands(text)
    text = re.sub(r"^\((.*)\)$", r"\1", text) if re.fullmatch(r"\([^(),]*\)", text) else text
    if repeating := _REPEATING.fullmatch(text):
        return Number(_repeating_value(repeating), None, True, False, "")
    for pattern in (_MIXED, _FRAC, _RATIO, _ONE):
        match = pattern.match(text)
        if match is None:
            continue
        behind = re.sub(TEXT + r"\{\s*(percent|%|\\%|pct)\s*\}", r"\1", text[match.end() :])
        scale, behind = _scale(behind)
        tail = _TAIL.match(behind)
        rest = behind[tail.end("mark") :] if tail else behind
        if rest.strip() and strip_unit("1" + rest) != "1":
            continue
        number = _number(match.groupdict(), pattern is _ONE, tail)
        if number is None or scale == 1:
            return number
        return number._replace(value=number.value * scale, decimals=None)
    return None


def _scale(text: str) -> tuple[int, str]:
    """Read the words at the start that multiply a number, as `hundred thousand`; return their product and the rest."""
    product = 1
    while scale := _SCALE.match(text):
        product *= _SCALES[scale[2].lower()]
        # "\\text{ million dollars}": the dollars stay text
        text = ("\\text{" if scale[1] and not scale[3] else " ") + text[scale.end() :]
    return product, text


def _repeating_value(match: re.Match[str]) -> Fraction:
    r"""Return the value of a repeating decimal: `0.1\overline{6}` is 1/6."""
    once, cycle = match["once"], match["cycle"]
    value = Fraction(int(match["whole"] + once or 0) + Fraction(int(cycle), 10 ** len(cycle) - 1), 10 ** len(once))
    return -value if match["sign"] == "-" else value


def _number(parts: dict[str, str | None], plain: bool, tail: re.Match[str] | None) -> Number | None:
    value = _value(parts, "x")
    if not plain:
        below = _value(parts, "y")
        if value is None or not below:
            return None
        value = value / below
    if value is None:
        return None
    value = value + int(parts.get("w") or 0)
    if parts["sign"] == "-":
        value = -value
    digits = parts.get("xn") or ""
    decimals = len(digits.partition(".")[2]) if plain and "." in digits else None
    base = (tail["b1"] or tail["b2"] or "") if tail else ""
    is_fraction = not plain or any(parts.get(key) for key in ("xb", "xp", "xd"))
    return Number(value, decimals, is_fraction, bool(tail and tail["percent"]), base)


def _value(parts: dict[str, str | None], name: str) -> Fraction | None:
    if parts.get(f"{name}1"):
        return Fraction(int(parts[f"{name}1"] or 0))
    value = Fraction((parts.get(f"{name}n") or "0").rstrip("."))
    exponent = int(parts.get(f"{name}e") or parts.get(f"{name}t") or parts.get(f"{name}u") or 0)
    power = next((int(parts[key] or 0) for key in (f"{name}b", f"{name}p", f"{name}d") if parts.get(key)), 1)
    if abs(exponent) > 1000 or abs(power) > 1000 or (abs(power) > 1 and value > 10**12):
        return None
    if power < 0 and value == 0:
        return None
    value = (value * Fraction(10) ** exponent) ** power
    return -value if parts.get(f"{name}s") == "-" else value


def same_number(gold: Number, answer: Number) -> bool:
    """Compare two numbers exactly; a decimal with six significant digits or more may be a rounded fraction.

    A percent sign on only one of them is ignored or means hundredths: 10 %, 10 and 0.1 are right for 10 %.
    """
    if answer.base and answer.base != gold.base and not (answer.base == "10" and not gold.base):
        return False
    if gold.percent == answer.percent:
        return _close(gold, answer)
    percent, other = (gold, answer) if gold.percent else (answer, gold)
    return percent.value == other.value or _close(percent._replace(value=percent.value / 100), other)


def _close(first: Number, second: Number) -> bool:
    if first.value == second.value:
        return True
    short, long = sorted((first, second), key=lambda number: 10**6 if number.decimals is None else number.decimals)
    if short.decimals is None or abs(short.value) * 10**short.decimals < 10**5:
        return False
    unit = Fraction(1, 10**short.decimals)
    difference = abs(long.value) - abs(short.value)
    if long.is_fraction and long.value * short.value > 0 and 0 <= difference < unit:
        return True  # truncated instead of rounded
    longer = long.is_fraction or (long.decimals is not None and long.decimals > short.decimals)
    return longer and abs(first.value - second.value) <= unit / 2
