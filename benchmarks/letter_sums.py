"""Sums of letters modulo 10: generated verifiable problems with step-by-step traces.

Sixteen letters have a fixed value each. A solution writes each letter with its value and the sum so far:

    sum FKBN    F33K47B63N58=8

The base policy (`base_rows`) has seen short sums with their steps, also in another wording (`add F+K`), and guesses for
longer ones: it has the skill in part, and rarely uses it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOP"
FAMILIAR, UNSEEN = LETTERS[:11], LETTERS[11:]  # letters of training prompts and demonstrations, and the others
_DIGITS = random.Random(0).sample([digit for digit in range(10) for _ in range(2)], len(LETTERS))
VALUES = dict(zip(LETTERS, _DIGITS, strict=True))
LENGTHS = (3, 4)  # letters per training prompt
ERRORS = ("form", "guess", "letters", "values", "sums")  # no answer; no steps; letters that the prompt does not have
TESTS = ("in distribution", "longer sums", "unseen letters", "other wording")


class FinalDigit:
    """Reward 1 if a completion ends with `=` and its row's ground truth, else 0."""

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        answers = [re.search(r"=(\d)\s*$", text) for text in completions]
        pairs = zip(answers, rows, strict=True)
        return [float(answer is not None and answer[1] == str(row["ground_truth"])) for answer, row in pairs]


def first_error(letters: str, text: str) -> str:
    """Return the first kind of error of an answer: one of `ERRORS`, or `right`."""
    match = re.fullmatch(r"((?:[A-P]\d\d)*)=(\d)\s*", text)
    if match is None:
        return "form"
    steps = [match[1][k : k + 3] for k in range(0, len(match[1]), 3)]
    if not steps:
        return "right" if match[2] == str(total(letters)) else "guess"
    written = "".join(step[0] for step in steps)
    if sorted(written) != sorted(letters):  # any order is right
        return "letters"
    if any(step[1] != str(VALUES[step[0]]) for step in steps):
        return "values"
    return "right" if "".join(steps) + f"={match[2]}" == trace(written) else "sums"


def prompt(letters: str, wording: int = 0) -> str:
    return f"sum {letters}" if wording == 0 else "add " + "+".join(letters)


def total(letters: str) -> int:
    return sum(VALUES[letter] for letter in letters) % 10


def trace(letters: str, wrong: random.Random | None = None) -> str:
    """Return a worked solution; a wrong one has another value for one of its letters, and another answer."""
    values = [VALUES[letter] for letter in letters]
    if wrong is not None:
        place = wrong.randrange(len(values))
        values[place] = (values[place] + wrong.randrange(1, 10)) % 10
    steps = [f"{letter}{value}{sum(values[: k + 1]) % 10}" for k, (letter, value) in
             enumerate(zip(letters, values, strict=True))]  # fmt: skip
    return f"{''.join(steps)}={sum(values) % 10}"


def row(letters: str, *, source: str, wording: int = 0, traces: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "id": f"{source}-{wording}-{letters}", "prompt": prompt(letters, wording), "source": source,
        "ground_truth": str(total(letters)), "traces": list(traces),
    }  # fmt: skip


def base_rows(number: int, seed: int, habit: float) -> list[dict[str, Any]]:
    """Return problems of the base policy: short sums with their steps, and guesses for longer ones.

    Args:
        number: of rows; repeats of a problem count once.
        seed: of the letters.
        habit: share of the longer sums with steps.
    """
    rng = random.Random(f"base {seed}")
    rows = []
    for _ in range(number):
        kind = rng.random()
        lengths = (1, 2, 3, 3) if kind < 0.4 else (1, 2, 2) if kind < 0.6 else (3, 4, 5, 6)
        text = "".join(rng.choice(LETTERS) for _ in range(rng.choice(lengths)))
        guesses = kind >= 0.6 and rng.random() >= habit
        answer = f"={rng.randrange(10)}" if guesses else trace(text)
        rows.append(row(text, source="base", wording=int(kind < 0.4), traces=[answer]))
    return rows


def _sums(rng: random.Random, lengths: Sequence[int], letters: str, number: int, without: set[str]) -> list[str]:
    """Draw different sums, none of them in `without`."""
    sums: dict[str, None] = {}
    while len(sums) < number:
        text = "".join(rng.choice(letters) for _ in range(rng.choice(lengths)))
        if text not in without:
            sums[text] = None
    return list(sums)


def held_out_rows(number: int, split: str) -> list[dict[str, Any]]:
    """Return `number` problems of each test, of the split `dev` or `test`."""
    rng = random.Random(f"held out {split}")
    kinds = ((LENGTHS, FAMILIAR, 0), ((max(LENGTHS) + 1,), FAMILIAR, 0), (LENGTHS, UNSEEN, 0), (LENGTHS, FAMILIAR, 1))
    return [
        row(text, source=source, wording=wording)
        for source, (lengths, letters, wording) in zip(TESTS, kinds, strict=True)
        for text in _sums(rng, lengths, letters, number, set())
    ]


def training_rows(prompts: int, demonstrations: int, seed: int, wrong: float = 0.0) -> list[dict[str, Any]]:
    """Return training prompts; the first ones have a demonstration, of which a share is wrong.

    The prompts of a seed are the same for each number of demonstrations; none is held out.
    """
    held_out = {text["prompt"] for split in ("dev", "test") for text in held_out_rows(HELD_OUT, split)}
    rng = random.Random(f"train {seed}")
    sums = _sums(rng, LENGTHS, FAMILIAR, prompts, {text.removeprefix("sum ") for text in held_out})
    slips = random.Random(f"wrong {seed}")
    number_wrong = round(wrong * demonstrations)
    rows = []
    for place, text in enumerate(sums):
        traces = [trace(text, slips if place < number_wrong else None)] if place < demonstrations else []
        rows.append(row(text, source="train", traces=traces))
    return rows


HELD_OUT = 300  # problems of each test
