r"""Grade a completion against a ground truth: exactly where its answer can be read, else with Math-Verify.

Runs in killable processes only (`rewards.pool`): Math-Verify's own time limits (signals of the main thread) are off.
Its LaTeX parser evaluates nothing; its parser of plain expressions, which uses `eval`, is not used.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Eq, Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Tuple

from lit_rft.rewards.answers import find_answer
from lit_rft.rewards.numbers import as_number, join_thousands, same_number
from lit_rft.rewards.reading import (
    as_choice,
    as_words,
    clean,
    flatten,
    option_text,
    strip_unit,
    words_in,
)

# silences the warning that its time limits are off: the pool has its own
logging.getLogger("math_verify").setLevel(logging.ERROR)

# Units are removed by `strip_unit`: Math-Verify's own rule reads the c of 2c as one.
_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    ),
)
_EQUALS = re.compile(r"(?<![<>!\\:])=|\\approx(?![a-zA-Z])|\\equiv(?![a-zA-Z])")
_NAME = re.compile(
    r"(?:\\?[a-zA-Z]+(?:\s*_\s*(?:\w|\{\w+\}))?|\\angle\s*[A-Z]+)"
    r"(?:\s*\(\s*\\?[a-z](?:\s*,\s*\\?[a-z])*\s*\))?'*"
)
_VERBATIM = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}:\d{2}(?::\d{2})?(?:\s*[apAP]\.?[mM]\.?)?")  # dates and times
_LETTER = re.compile(r"[^\W\d_]")  # compared with case: n is not N
_NO_MATHEMATICS = re.compile(r"(?<![\d_^])\d+(?:\.\d+)? \d|\b0[xX][0-9a-fA-F]")  # misread as a sum, and as a product
# LaTeX takes one character for the root or exponent; answers mean all of it: \sqrt18, 2^10, x^-1, 2^0.5
_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d+(?:\.\d+)?)")
_EXPONENT = re.compile(r"\^\s*(-(?:\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z_])|\\pi(?![a-zA-Z]))|\d{2,}(?:\.\d+)?|\d\.\d+)")
_DECIMAL_EXPONENT = re.compile(r"(?<=\^)\{\s*(-?)(\d{1,20})\.(\d{1,20})\s*\}")
_MEMBER = re.compile(r"^\s*\\?[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_TOLERANCE = 1e-12  # relative, between numbers that are not decimals
_DECIMAL_TOLERANCE = 1.01e-6


def grade(gold: str, completion: str, lenient: bool = False) -> bool | None:
    """Grade a completion.

    Args:
        gold: the ground truth.
        completion: text of the completion.
        lenient: see `find_answer`.

    Returns:
        Whether its answer is right; None if it has none.
    """
    readings = find_answer(completion, lenient)
    if not readings:
        return None
    return any(same_answer(gold, reading, lenient) for reading in readings)


def ground_truth_kind(gold: str) -> str | None:
    """Classify a ground truth: "choice", "words", "number", "mathematics", or None if only the same text can match."""
    expected = clean(_unboxed(gold))
    if as_choice(expected) is not None:
        return "choice"
    if as_number(expected) is not None:
        return "number"
    if as_words(expected) is not None:
        return "words"
    return "mathematics" if _parse(_value(strip_unit(expected))) else None


def same_answer(gold: str, answer: str, lenient: bool = False) -> bool:
    """Compare an answer with the ground truth: as text, choice, words, exact number, and finally with Math-Verify."""
    expected, given = clean(_unboxed(gold)), clean(_unboxed(answer))
    if not given:
        return False
    if _bare(expected) == _bare(given):
        return True
    if _VERBATIM.fullmatch(expected) or (_LETTER.fullmatch(_bare(expected)) and _LETTER.fullmatch(_bare(given))):
        return as_choice(expected) is not None and as_choice(given, lenient) == as_choice(expected)
    choice = as_choice(expected)
    if choice is not None:
        return as_choice(given, lenient) == choice
    option = option_text(given)
    if option is not None and option_text(expected) is None and same_answer(gold, option, lenient):
        return True
    words = as_words(expected)
    if words is not None:
        is_product = len(words) <= 3 and as_words(given) is None  # abc = a b c
        return _same_words(words, given, lenient) or (is_product and _same_value(expected, given))
    return _same_value(expected, given)


def _bare(text: str) -> str:
    """Remove text commands and spaces, except between digits: 3 1/2 is not 31/2."""
    return re.sub(r"(?<!\d)\s|\s(?!\d)", "", re.sub(r"\s+", " ", flatten(text)))


def _unboxed(text: str) -> str:
    match = re.fullmatch(r"\s*\$*\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*\.?\s*\$*\s*", text, re.DOTALL)
    return match.group(1) if match else text


def _same_words(words: str, given: str, lenient: bool) -> bool:
    answer = as_words(_value(given)) or as_words(given)
    if answer is None:
        return False
    if lenient:
        words, answer = (re.sub(r"^(?:it is |a |an |the )+", "", text) for text in (words, answer))
    return words == answer


def _same_value(expected: str, given: str) -> bool:
    if _EQUALS.search(given) and not _EQUALS.search(expected):
        value = _right_side(given)
        if value is None:
            return False
        given = value
    elif _EQUALS.search(expected) and not _EQUALS.search(given):
        expected = _right_side(expected) or expected
    names = [match.group().split() for match in map(_MEMBER.match, (expected, given)) if match]
    if len(names) == 2 and names[0] != names[1]:
        return False
    expected, given = _MEMBER.sub("", expected), _MEMBER.sub("", given)
    expected_number, given_number = as_number(expected), as_number(given)
    if expected_number is not None and given_number is not None:
        return same_number(expected_number, given_number)
    expected, given = strip_unit(expected), strip_unit(given)
    if not given or words_in(expected) != words_in(given):
        return False
    return _same_mathematics(expected, given)


def _value(text: str) -> str:
    """Return the right side of `x = 5`; other texts unchanged."""
    return (_right_side(text) or text) if _EQUALS.search(text) else text


def _right_side(text: str) -> str | None:
    """Return the side of an equation that gives the value of a name or of a calculation; None for other equations."""
    if re.search(r",|;|\b(?:and|or)\b|\\text", text):
        return text  # several equations
    *left, value = _EQUALS.split(text)
    if len(left) == 1 and _NAME.fullmatch(value.strip()) and not _NAME.fullmatch(left[0].strip()):
        left, value = [value], left[0]  # 12 = x
    first = re.sub(r"\\?text\{(.*)\}", r"\1", left[0]).strip()
    is_name = _NAME.fullmatch(first) is not None or re.fullmatch(r"[A-Za-z][A-Za-z ']{2,60}", first) is not None
    is_calculation = not re.search(r"[a-zA-Z]", re.sub(r"\\(?:frac|sqrt|times|cdot|pi|div|pm)", "", first))
    return value.strip() if is_name or is_calculation else None


def _same_mathematics(expected: str, given: str) -> bool:
    gold, answer = _parse(expected), _parse(given)
    if not gold or not answer:
        return False
    right = verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)
    return bool(right) and not any(_differ(first, second) for first, second in zip(gold, answer, strict=False))


def _parse(text: str) -> list[Any]:
    text = re.sub(r"(?<=\d)[eE]([+-]?\d+)(?!\w)", r" \\times 10^{\1}", text)
    text = re.sub(r"(?<![\d.^/{])(\d+) (\d+)/(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)  # 3 1/2
    text = join_thousands(re.sub(r"\\frac\s*(\d) (\d)", r"\\frac{\1}{\2}", text))
    if _NO_MATHEMATICS.search(text):
        return []
    text = text.replace("**", "^").replace("$", "")
    text = re.sub(r"(?<![\\\w])pi(?!\w)", r"\\pi ", text)
    text = re.sub(r"(?<![a-zA-Z])\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*(?=[({\d])", r"\\sqrt ", text)
    text = _ROOT.sub(r"\\sqrt\1{\2}", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    text = _DECIMAL_EXPONENT.sub(_as_fraction, text)  # Math-Verify finds 18^{0.5} unlike \sqrt{18}
    result: list[Any] = parse(f"${text}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    return result


def _as_fraction(match: re.Match[str]) -> str:
    sign, integer, decimals = match.groups()
    return rf"{{{sign}\frac{{{int(integer + decimals)}}}{{{10 ** len(decimals)}}}}}"


def _differ(gold: Any, answer: Any) -> bool:
    """Return whether two expressions differ although Math-Verify calls them equal (it rounds decimal places)."""
    pairs = _parts(gold, answer)
    try:
        return pairs is not None and any(_numbers_differ(first, second) for first, second in pairs)
    except (TypeError, ValueError, AttributeError, NotImplementedError):  # no values to compare
        return False


def _parts(gold: Any, answer: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return list(zip(gold.flat(), answer.flat(), strict=False))
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return [(gold.start, answer.start), (gold.end, answer.end)]
    if isinstance(gold, Tuple) and isinstance(answer, Tuple):
        return list(zip(gold.args, answer.args, strict=False))
    if isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet):
        if not all(_is_real_number(part) for part in (*gold.args, *answer.args)):
            return None
        by_size = [sorted(group.args, key=lambda part: float(part.evalf(17))) for group in (gold, answer)]
        return list(zip(*by_size, strict=False))
    return [(gold, answer)] if isinstance(gold, Basic) and isinstance(answer, Basic) else None


def _is_real_number(part: Any) -> bool:
    return bool(getattr(part, "is_number", False) and getattr(part, "is_real", False))


def _numbers_differ(first: Any, second: Any) -> bool:
    """Compare two expressions by value, at an arbitrary point if they have variables."""
    if isinstance(first, Eq) and isinstance(second, Eq) and first.lhs == second.lhs:
        first, second = first.rhs, second.rhs
    if not all(isinstance(part, Expr) for part in (first, second)):
        return False
    names = sorted({symbol.name for part in (first, second) for symbol in part.free_symbols})
    point = {name: Rational(1009 + 271 * i, 997) for i, name in enumerate(names)}
    values = []
    for part in (first, second):
        value = part.subs({symbol: point[symbol.name] for symbol in part.free_symbols}).doit().evalf(30)
        if not getattr(value, "is_number", False) or not value.is_finite:
            return False
        values.append(value)
    tolerance = _DECIMAL_TOLERANCE if first.atoms(Float) or second.atoms(Float) else _TOLERANCE
    return bool(abs(values[0] - values[1]) > tolerance * max(abs(values[0]), abs(values[1])))
