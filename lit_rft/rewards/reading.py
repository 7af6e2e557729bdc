r"""Read an answer as what it is before any algebra: a choice, words, or an exact number; see docs/grading.md."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u2044": "/", "\u03c0": r"\pi ", "\u221a": r"\sqrt ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2260": r"\ne ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u00b0": r"^\circ ", "\u00b2": "^2", "\u00b3": "^3",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u03b8": r"\theta ",
    "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\uff0c": ",", "\uff05": "%",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
}  # fmt: skip
_SYMBOL_TABLE = str.maketrans(_SYMBOLS | {chr(0xFF10 + digit): str(digit) for digit in range(10)})
_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ("__", "__"))
_SPACING = re.compile(r"(?<!\\)\\[;:> ]|~|\\q?quad(?![a-zA-Z])|\\displaystyle|\\textstyle|\\phantom\{[^{}]*\}")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?")
TEXT = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*"
_TEXT_GROUP = re.compile(TEXT + r"\{([^{}]*)\}")
_CURRENCY = re.compile(r"\\?[$\u20ac\u00a3\u00a5\u20b9]|\\(?:euro|pounds)(?![a-zA-Z])|(?<![A-Za-z])(?:USD|EUR|US)(?![A-Za-z])\s*")
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_APPROXIMATELY = re.compile(r"^(?:(?:approximately|about|roughly|around|exactly|only|equal to|equals)\b|\\approx(?![a-zA-Z])|=)\s*", re.I)

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min gcd lcm det mod sqrt frac dfrac tfrac "
    "infinity inf theta alpha beta gamma delta sum int pmatrix bmatrix vmatrix matrix array begin end left right circ "
    "Re Im arg lambda sigma omega".split()
)
_CONNECTING = frozenset(
    "or and to not minus plus times over is are was were be by if than then but no nor neither either between with without "
    "wrong incorrect too because since".split()
)
_ABBREVIATIONS = frozenset(
    "cm mm km ft in yd mi kg mg lb lbs oz ml mL hr hrs min mins sec secs ms Hz eV keV MeV kJ kW mph kmh kph pm am cc sq cu "
    "nm um Pa kPa".split()
)
_LETTER_UNITS = frozenset("m s g h l L N J W V K C F A")
_BARE_UNIT = re.compile(r"[A-Za-z.]+(?:\^\{?-?\d\}?)?|[/*]|\\cdot|\\,")
_TEXT_UNIT = re.compile(TEXT + r"\{[^{}\d]*\}\s*(?:\^\s*\{?-?\d\}?)?\s*[/.]?\s*")
_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*[CF]?\s*$|\s*\\degree\s*$")


class Number(NamedTuple):
    """A number as it is written.

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


def clean(text: str) -> str:
    r"""Remove what does not change the meaning: delimiters, spacing, currency, separators of thousands, the full stop."""
    text = text.translate(_SYMBOL_TABLE)
    text = re.sub(r"\s+", " ", text).strip()
    text = _unwrap(text)
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\}|\\,|\\!)\s*(?=\d{3}(?!\d))", "", text)
    text = text.replace(r"\!", "").replace("{,}", ",").replace(r"\,", " ")
    text = _SPACING.sub(" ", _SIZES.sub("", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = _CURRENCY.sub("", text)
    if not re.match(r"\s*(?:\\?[{\[(])", text):  # (100,200) is a pair
        text = _GROUPED.sub(lambda match: match.group().replace(",", ""), text)
    return _unwrap(re.sub(r"\s+", " ", text).strip())


def _unwrap(text: str) -> str:
    for _ in range(6):
        before = text
        text = re.sub(r"(?:\\?[.;,:]|\\\\|\s)+$", "", text) if not text.endswith("...") else text
        text = _APPROXIMATELY.sub("", text.strip())
        for left, right in _WRAPS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inner:
                text = inner.strip()
        whole = _TEXT_GROUP.fullmatch(text)
        if whole and re.search(r"\d", whole.group(1)):
            text = whole.group(1).strip()
        if text.count("**") == 1:  # half of a pair that the cut left
            text = text.strip("*").strip()
        if text == before:
            break
    return text


def flatten(text: str) -> str:
    r"""Replace \text{...} and its like by their content."""
    for _ in range(4):
        text, changes = _TEXT_GROUP.subn(r"\1", text)
        if not changes:
            break
    return text.strip()


def as_choice(text: str, lenient: bool = False) -> str | None:
    """Read one letter of a multiple choice, with or without the option's own text behind it: `C`, `(C)`, `C) 10 eV`."""
    letters = "A-Ja-j" if lenient else "A-J"
    plain = re.sub(r"^(?:the\s+)?(?:option|choice|answer|letter)\s*:?\s*", "", flatten(text), flags=re.I).strip(" *")
    plain = re.sub(r"^\{?\\(?:bf|rm|it)\s+", "", plain).strip("{} ")
    match = re.fullmatch(rf"\(([A-Ja-j])\)|([{letters}])[).:]?", plain)
    if match is None:
        match = re.match(rf"\(([A-J])\)\s*\S|([{letters}])(?:[):]|\.(?=\s)|\s+-(?=\s))\s*\S", plain)
    return next(group for group in match.groups() if group).upper() if match else None


def option_text(text: str) -> str | None:
    """Read what stands behind an option's letter: `10 eV` of `C) 10 eV`; None without a letter."""
    match = re.match(r"(?:\(([A-J])\)|[A-J][):]|[A-J]\.(?=\s))\s*(\S.*)$", flatten(text))
    return match.group(2) if match else None


def as_words(text: str) -> str | None:
    """Read words, without case, punctuation and superfluous spaces; None for anything with digits or operators in it."""
    marked = _TEXT_GROUP.search(text) is not None
    plain = flatten(text)
    if not re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[ '\".,;:!?()-])*", plain):
        return None
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", plain)
    if any(word in FUNCTIONS for word in words) and not marked:
        return None
    if re.search(r"\b(?:and|or)\b|,", plain) and all(len(word) == 1 or word in _CONNECTING for word in words):
        return None
    if not marked and not any(len(word) >= 3 or word.lower() in ("no", "on", "up") for word in words):
        return None
    if marked and all(len(word) == 1 for word in words):
        return None
    return " ".join(words).casefold()


def words_in(text: str) -> list[str]:
    """Words of three letters or more among mathematics: letters that are no product and no function."""
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}", " ", text)
    plain = re.sub(r"\\[a-zA-Z]+", " ", flatten(plain))
    return sorted(word.casefold() for word in re.findall(r"[^\W\d_]{3,}", plain) if word not in FUNCTIONS | {"and"})


def strip_unit(text: str) -> str:
    r"""Remove degrees and a unit that stands last: `5 \text{ cm}^2`, `5 apples`, `90^\circ`; a product (`2xy`) stays."""
    text = text.strip()
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text):
        text = _DEGREES.sub("", text)
    position = len(text)
    for match in re.finditer(TEXT, text):  # \text{...} up to the end
        rest, end = text[match.start() :], 0
        while (unit := _TEXT_UNIT.match(rest, end)) is not None and unit.end() > end:
            end = unit.end()
        if _is_bare_unit(rest[end:], spaced=True):
            position = match.start()
            break
    head, tail = text[:position].strip(), text[position:]
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", flatten(tail))}
    if tail and head and not (words & _CONNECTING) and head[-1] not in "=,+-*/^_(<>":
        return _DEGREES.sub("", head)
    match = re.search(r"(?<=[\d}!)])( ?)((?:[A-Za-z]+\.?(?:\^\{?-?\d\}?)?|[/*]| )+)$", text)
    if match and _is_bare_unit(match.group(2), spaced=bool(match.group(1))):
        head = text[: match.start()].strip()
        return head if not head.endswith(("=", ",")) else text
    return text


def _is_bare_unit(tail: str, spaced: bool) -> bool:
    """Whether words are a unit rather than a product of letters or a sentence."""
    words = re.findall(r"[A-Za-z]+", tail)
    if not words:
        return not tail.strip()
    if len(words) > 5 or {word.lower() for word in words} & _CONNECTING or any(word in FUNCTIONS for word in words):
        return False
    if all(word in _ABBREVIATIONS or (spaced and word in _LETTER_UNITS) for word in words):
        return True
    known = _ABBREVIATIONS | _LETTER_UNITS | {"per", "a", "an", "of", "the"}
    return spaced and all(
        word in known or (len(word) >= 3 and re.search("[aeiouAEIOU]", word) and word not in ("abc", "abcd"))
        for word in words
    )


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
_TAIL = re.compile(r"(?P<mark>\s*(?P<percent>\\?%|percent(?:age points?)?\b|pct\b)?(?:\s*_\s*(?:\{\s*(?P<b1>\w+)\s*\}|(?P<b2>\d+)))?)")


def as_number(text: str) -> Number | None:
    """Read one rational number exactly, with a unit, a percent sign or a base behind it; None for anything else."""
    text = re.sub(r"^(?:-?)\{(.*)\}$", r"\1", text) if text.startswith("{") else text
    text = re.sub(r"(?<![\d.,])([1-9]\d{0,2})((?: \d{3})+)(?![\d/])", lambda m: m.group(1) + m.group(2).replace(" ", ""), text)
    text = re.sub(r"^\((.*)\)$", r"\1", text) if re.fullmatch(r"\([^(),]*\)", text) else text
    for pattern in (_MIXED, _FRAC, _RATIO, _ONE):
        match = pattern.match(text)
        if match is None:
            continue
        behind = re.sub(TEXT + r"\{\s*(percent|%|\\%|pct)\s*\}", r"\1", text[match.end() :])
        tail = _TAIL.match(behind)
        rest = behind[tail.end("mark") :] if tail else behind
        if rest.strip() and strip_unit("1" + rest) != "1":
            continue
        return _number(match.groupdict(), pattern is _ONE, tail)
    return None


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
    return Number(value, decimals, not plain or any(parts.get(key) for key in ("xb", "xp", "xd")), bool(tail and tail["percent"]), base)


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

    A percent sign that only one of them has is ignored or means hundredths: 10 %, 10 and 0.1 are right for 10 %.
    """
    if answer.base and answer.base != gold.base and not (answer.base == "10" and not gold.base):
        return False
    if gold.percent == answer.percent:
        return _close(gold, answer)
    percent, other = (gold, answer) if gold.percent else (answer, gold)
    return percent.value == other.value or _close(percent._replace(value=percent.value / 100), other)


def _close(one: Number, other: Number) -> bool:
    if one.value == other.value:
        return True
    short, long = sorted((one, other), key=lambda number: 10**6 if number.decimals is None else number.decimals)
    if short.decimals is None or abs(short.value) * 10**short.decimals < 10**5:
        return False
    unit = Fraction(1, 10**short.decimals)
    difference = abs(long.value) - abs(short.value)
    if long.is_fraction and long.value * short.value > 0 and 0 <= difference < unit:
        return True  # cut off instead of rounded
    longer = long.is_fraction or (long.decimals is not None and long.decimals > short.decimals)
    return longer and abs(one.value - other.value) <= unit / 2
