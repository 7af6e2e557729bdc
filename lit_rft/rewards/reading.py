r"""Read an answer without algebra: a choice or words, with or without a unit; see docs/grading.md."""

from __future__ import annotations

import re

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u2044": "/", "\u03c0": r"\pi ", "\u221a": r"\sqrt ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2260": r"\ne ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u00b0": r"^\circ ",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u03b8": r"\theta ",
    "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\uff0c": ",", "\uff05": "%",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
}  # fmt: skip
_SYMBOL_TABLE = str.maketrans(_SYMBOLS | {chr(0xFF10 + digit): str(digit) for digit in range(10)})
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_EXPONENT = re.compile(rf"(\u207b?)([{_SUPERSCRIPTS}]+)")  # x to the minus 2, in one or more characters
_DIGITS = str.maketrans(_SUPERSCRIPTS, "0123456789")
_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ("__", "__"))
_SPACING = re.compile(r"(?<!\\)\\[;:> ]|~|\\q?quad(?![a-zA-Z])|\\displaystyle|\\textstyle|\\phantom\{[^{}]*\}")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?")
TEXT = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*"
_TEXT_GROUP = re.compile(TEXT + r"\{([^{}]*)\}")
_CURRENCY = re.compile(
    r"\\?[$\u20ac\u00a3\u00a5\u20b9]|\\(?:euro|pounds)(?![a-zA-Z])|(?<![A-Za-z])(?:USD|EUR|US)(?![A-Za-z])\s*"
)
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_APPROXIMATELY = re.compile(
    r"^(?:(?:approximately|about|roughly|around|exactly|only|equal to|equals)\b|\\approx(?![a-zA-Z])|=)\s*", re.I
)


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


FUNCTIONS = _set_of(
    "pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min gcd lcm det mod sqrt frac "
    "dfrac tfrac infinity inf theta alpha beta gamma delta sum int pmatrix bmatrix vmatrix matrix array begin end left "
    "right circ Re Im arg lambda sigma omega"
)
_CONNECTING = _set_of(
    "or and to not minus plus times over is are was were be by if than then but no nor neither either between with "
    "without wrong incorrect too because since divided multiplied"
)
_PARTS = "half|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|hundredth|thousandth|millionth|billionth"
_CHANGES_VALUE = re.compile(  # "5 tenths" is not 5; "5 fifth graders" and "5 meters squared" are
    rf"\s*(?:(?:{_PARTS}|quarter)(?:\s*$|s?\s+of\b)|(?:{_PARTS})s\b|halves\b|squared\b|cubed\b|factorial\b"
    r"|(?:dozen|hundred|thousand|million|billion|trillion|quadrillion|lakh|crore)s?\b)",
    re.I,
)
_ABBREVIATIONS = _set_of(
    "cm mm km ft in yd mi kg mg lb lbs oz ml mL hr hrs min mins sec secs ms Hz eV keV MeV kJ kW mph kmh kph pm am cc "
    "sq cu nm um Pa kPa"
)
_LETTER_UNITS = _set_of("m s g h l L N J W V K C F A")
_TEXT_UNIT = re.compile(TEXT + r"\{[^{}\d]*\}\s*(?:\^\s*\{?-?\d\}?)?\s*[/.]?\s*")
_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*[CF]?\s*$|\s*\\degree\s*$")


def clean(text: str) -> str:
    r"""Remove everything without meaning: delimiters, spacing, currency, separators of thousands, a full stop."""
    text = _EXPONENT.sub(lambda match: "^{" + "-" * len(match[1]) + match[2].translate(_DIGITS) + "}", text)
    text = text.translate(_SYMBOL_TABLE)
    text = re.sub(r"\s+", " ", text).strip()
    text = _unwrap(text)
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\}|\\,|\\!)\s*(?=\d{3}(?!\d))", "", text)
    text = text.replace(r"\!", "").replace("{,}", ",").replace(r"\,", " ")
    text = _SPACING.sub(" ", _SIZES.sub("", text))
    text = re.sub(r"(?<=\d) x (?=\d)", r" \\times ", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = _CURRENCY.sub("", text)
    if not re.match(r"\s*(?:\\?[{\[(])", text):  # (100,200) is a pair
        text = _GROUPED.sub(lambda match: match.group().replace(",", ""), text)
    return _unwrap(re.sub(r"\s+", " ", text).replace(r"\varnothing", r"\emptyset").strip())


def _unwrap(text: str) -> str:
    for _ in range(6):
        before = text
        text = re.sub(r"(?:\\?[.;,:]|\\\\|\s)+$", "", text) if not text.endswith("...") else text
        text = _APPROXIMATELY.sub("", text.strip())
        for left, right in _WRAPS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inner:
                text = inner.strip()
        match = _TEXT_GROUP.fullmatch(text)
        if match and re.search(r"\d", match.group(1)):
            text = match.group(1).strip()
        if text.count("**") == 1:  # half of a truncated pair
            text = text.strip("*").strip()
        text = re.sub(r"(?:__|`)$", "", text)
        if text == before:
            break
    return text


def flatten(text: str) -> str:
    r"""Replace \text{...} and similar commands by their content."""
    for _ in range(4):
        text, changes = _TEXT_GROUP.subn(r"\1", text)
        if not changes:
            break
    return text.strip()


def as_choice(text: str, lenient: bool = False) -> str | None:
    """Read one letter of a multiple choice, with or without the option's text after it: `C`, `(C)`, `C) 10 eV`."""
    letters = "A-Ja-j" if lenient else "A-J"
    plain = re.sub(r"^(?:the\s+)?(?:option|choice|answer|letter)\s*:?\s*", "", flatten(text), flags=re.I).strip(" *")
    plain = re.sub(r"^\{?\\(?:bf|rm|it)\s+", "", plain).strip("{} ")
    match = re.fullmatch(rf"\(([A-Ja-j])\)|([{letters}])[).:]?", plain)
    if match is None:
        match = re.match(rf"\(([A-J])\)\s*\S|([{letters}])(?:[):]|\.(?=\s)|\s+-(?=\s))\s*\S", plain)
        if match and _names_options(plain[match.end() - 1 :]):
            return None
    return next(group for group in match.groups() if group).upper() if match else None


def _names_options(text: str) -> bool:
    """Return whether an option's letter is followed by other letters or options: `(A)/(B)`, `A) 1, B) 2`."""
    if re.search(r"\b(?:all|both|none|neither|either|only)\b", text, re.I):  # `D) both (A) and (B)`
        return False
    is_letter = re.fullmatch(r"\W*\(?[A-J]\)?\W*", text) is not None
    return is_letter or re.search(r"(?:(?<=\s)|\()[A-J][):]", text) is not None


def option_text(text: str) -> str | None:
    """Return the text after an option's letter: `10 eV` of `C) 10 eV`; None without a letter."""
    match = re.match(r"(?:\(([A-J])\)|[A-J][):]|[A-J]\.(?=\s))\s*(\S.*)$", flatten(text))
    return match.group(2) if match else None


def as_words(text: str) -> str | None:
    """Read words, without case, punctuation and extra spaces; None for anything with digits or operators."""
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
    """Return the words of three letters or more in mathematics: letters that are neither a product nor a function."""
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}", " ", text)
    plain = re.sub(r"\\[a-zA-Z]+", " ", flatten(plain))
    return sorted(word.casefold() for word in re.findall(r"[^\W\d_]{3,}", plain) if word not in FUNCTIONS | {"and"})


def strip_unit(text: str) -> str:
    r"""Remove degrees and a unit at the end: `5 \text{ cm}^2`, `5 apples`, `90^\circ`; a product (`2xy`) stays."""
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
    if tail and head and not _changes_value(flatten(tail)) and head[-1] not in "=,+-*/^_(<>":
        return _DEGREES.sub("", head)
    bare = re.search(r"(?<=[\d}!)])( ?)((?:[A-Za-z]+\.?(?:\^\{?-?\d\}?)?|[/*]| )+)$", text)
    if bare and _is_bare_unit(bare.group(2), spaced=bool(bare.group(1))):
        head = text[: bare.start()].strip()
        return head if not head.endswith(("=", ",")) else text
    return text


def _is_bare_unit(tail: str, spaced: bool) -> bool:
    """Return whether words are a unit rather than a product of letters or a sentence."""
    words = re.findall(r"[A-Za-z]+", tail)
    if not words:
        return not tail.strip()
    if len(words) > 5 or _changes_value(tail) or any(word in FUNCTIONS for word in words):
        return False
    if all(word in _ABBREVIATIONS or (spaced and word in _LETTER_UNITS) for word in words):
        return True
    known = _ABBREVIATIONS | _LETTER_UNITS | {"per", "a", "an", "of", "the"}
    return spaced and all(
        word in known or (len(word) >= 3 and re.search("[aeiouAEIOU]", word) and word not in ("abc", "abcd"))
        for word in words
    )


def _changes_value(unit: str) -> bool:
    """Return whether the words behind a number are more than a unit: `5 or 6`, `5 tenths`."""
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", unit)}
    return bool(words & _CONNECTING) or _CHANGES_VALUE.match(unit) is not None
