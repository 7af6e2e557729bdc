r"""Find the answer in a completion: the last box or answer tag, else an anchored final answer; see docs/grading.md."""

from __future__ import annotations

import re

MAX_LINE = 400  # maximum characters of an anchored answer
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_JOINT = re.compile(r"[\s$,;.]*(?:\\text\s*\{\s*)?(?:and|or)?(?:\s*\})?[\s$,;]*")  # text between the boxes of one list
_ANSWER = r"(?:final|correct|right|best|numerical|exact)?[ ]?(?:answers?|ans)"
_MARKUP = r"[*_`#\s]{0,6}"
_IS = r"(?:\b(?:is|are|equals|would be|will be|must be)\b|[:=])"
_ANCHOR = re.compile(
    rf"(?:\b{_ANSWER}\b{_MARKUP}(?:(?:to|of|for)\b[^.\n:]{{1,80}}?)?[ ]?{_MARKUP}{_IS}"
    rf"|\bfinal answer\b[*_ ]{{0,4}}\n|^[ ]*\#\#\#\#)"
    rf"[ ]?(?:thus|therefore|simply|just|exactly|clearly)?{_MARKUP}:?{_MARKUP}",
    re.IGNORECASE | re.MULTILINE,
)
_WEAK_ANCHOR = re.compile(
    r"\b(?:result|solution|total|value|sum|product|probability|area|length|number)s?\b[^.\n:=]{0,60}?(?:\b(?:is|are|equals)\b|[:=])\s*"
    r"|\b(?:we get|we have|gives us|equals)\b\s*",
    re.IGNORECASE,
)
# hedges such as "if the answer is 5" or "I doubt that the answer is 5" assert no answer
_HEDGE = re.compile(
    r"\b(?:if|whether|unless|suppose|assuming|assume|doubt|unsure|not sure|unlikely|isn't|don't know|not know|cannot"
    r"|can't)\b"
)
_MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*([^*\n]+)\*\*|`([^`\n]+)`", re.DOTALL
)
_REASON = re.compile(
    r"\s*(?:,|;|\(|--|\u2014)?\s*\b(?:because|since|as|which|so|where|i\.e|that is|when|given|due|after|by"
    r"|(?:and |but )?not|rather than|instead of)\b"
    r"|\s+\(|\s+=(?=\s*\$)|;",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|[*\"')\]]*(?:\s|$))")
_NUMBER = re.compile(
    r"-?\\[dt]?frac\{[^{}]{1,60}\}\{[^{}]{1,60}\}"
    r"|(?<![\w.])[-\u2212]?(?:\d+(?: ?\d+)?/\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)(?:\s*\\?%)?"
)
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-HJ])\)?(?![A-Za-z'])")


def find_answer(text: str, lenient: bool = False) -> list[str]:
    """Find the answer of a completion.

    Args:
        text: the completion.
        lenient: also accept an unfinished box, a weakly anchored result, or the last number.

    Returns:
        Readings of one answer, from the longest to the shortest (one of them must be right); empty without an answer.
    """
    marked = _last_mark(text, lenient)
    if marked is not None:
        return [reading for reading in marked if reading.strip()]
    anchored = _after_anchor(text, _ANCHOR)
    if anchored:
        return anchored
    stripped = text.strip()
    is_short_line = stripped and "\n" not in stripped and len(stripped) <= MAX_LINE // 4
    readings = [stripped] if is_short_line else []
    if lenient:
        readings += (_after_anchor(text, _WEAK_ANCHOR) or []) + _last_number(text)
    return readings


def _last_mark(text: str, lenient: bool) -> list[str] | None:
    """Return the readings of the last box or answer tag: blank texts for an unfinished one; None without any."""
    tags = list(_TAGS.finditer(text))
    tag = tags[-1] if tags else None
    boxes = [match for match in _BOX.finditer(text) if tag is None or match.start() > tag.end()]
    matches: list[tuple[int, int, str]] = []
    for number, match in enumerate(reversed(boxes[-12:])):
        content, end = _box_content(text, match.end())
        if content is None:
            if number == 0:
                return [text[match.end() :].lstrip("{").split("\n")[0][:MAX_LINE]] if lenient else [""]
            continue
        if not content.strip() or content.strip(". ") == "" or content.strip() == r"\ldots":
            continue
        if matches and not _is_joint(text[end : matches[-1][0]]):
            break
        matches.append((match.start(), end, content))
    if matches:
        texts = list(dict.fromkeys(content for _, _, content in reversed(matches)))
        return [texts[0] if len(texts) == 1 else ", ".join(_strip_box(part) for part in texts)]
    if tag is not None:
        return _last_mark(tag.group(1), lenient) or _after_anchor(tag.group(1), _ANCHOR) or [tag.group(1).strip()]
    return None


def _is_joint(between: str) -> bool:
    return len(between) < 60 and bool(between.strip(" $")) and _JOINT.fullmatch(between) is not None


def _box_content(text: str, start: int) -> tuple[str | None, int]:
    r"""Return the content of a box whose brace opens at `start` (or the single token of `\boxed 5`), and its end."""
    if start >= len(text):
        return None, start
    if text[start] != "{":
        token = re.compile(r"-?[\w.]+|\\[a-zA-Z]+").match(text, start)
        return (token.group(), token.end()) if token else ("", start)
    depth, position = 0, start
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        position = brace.end()
        if depth == 0:
            return _strip_box(text[start + 1 : position - 1]), position
    return None, position


def _strip_box(content: str) -> str:
    """Return the content of a box in a box."""
    for _ in range(8):
        match = _BOX.match(content.strip())
        if match is None:
            break
        inner = content.strip()[match.end() :]
        if not (inner.startswith("{") and inner.endswith("}")):
            break
        content = inner[1:-1]
    return content


def _after_anchor(text: str, pattern: re.Pattern[str]) -> list[str] | None:
    """Return the readings of the text after the last anchor that asserts an answer."""
    anchors = [match for match in pattern.finditer(text) if _asserts(text, match)]
    if not anchors:
        return None
    rest = text[anchors[-1].end() :].lstrip()[: 10 * MAX_LINE]
    return _readings(rest) if rest else None


def _asserts(text: str, anchor: re.Match[str]) -> bool:
    """Return whether an anchor asserts an answer: it is neither conditional nor a question."""
    end = _SENTENCE_END.search(text[anchor.end() : anchor.end() + MAX_LINE].split("\n")[0])
    return not (_is_hedged(text, anchor.start()) or (end and end.group() == "?"))


def _is_hedged(text: str, start: int) -> bool:
    before = re.split(r"[.!?\n]", text[max(0, start - 60) : start])[-1]
    return _HEDGE.search(before.lower()) is not None


def _readings(rest: str) -> list[str]:
    """Return a line, its first sentence and the text before a reason; or its leading mathematics."""
    math = _MATH.match(rest)
    line = rest[: math.end()] + rest[math.end() :].split("\n")[0] if math else rest.split("\n")[0]
    line = line[:MAX_LINE].strip()
    readings = [line]
    end = _SENTENCE_END.search(line)
    sentence = line[: end.start()] if end else line
    readings.append(sentence)
    reason = _REASON.search(sentence, 1)
    short = sentence[: reason.start()] if reason else sentence
    readings.append(short)
    if math:
        after = line[math.end() :].strip(" .,;:!*")
        if not after or (reason and math.end() >= reason.start()) or _REASON.match(line, math.end()):
            readings.append(next(group for group in math.groups() if group is not None))
    return list(dict.fromkeys(reading.strip() for reading in readings if reading.strip()))


def _last_number(text: str) -> list[str]:
    """Return the last number or mathematics between dollars, and the last single capital letter."""
    last: dict[re.Pattern[str], re.Match[str]] = {}
    for pattern in (_MATH, _NUMBER, _LETTER):
        for match in pattern.finditer(text):
            last[pattern] = match
    math, number, letter = (last.get(pattern) for pattern in (_MATH, _NUMBER, _LETTER))
    if math and number and math.end() < number.start():
        math = None
    matches = [match for match in (math or number, letter) if match is not None]
    return [next((group for group in match.groups() if group is not None), match.group()) for match in matches]
