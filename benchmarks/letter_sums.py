"""Sums of letters modulo 10: generated verifiable problems with step-by-step traces.

Sixteen letters have a fixed value each. A solution writes each letter with its value and the sum so far:

    sum FKBN    F33K47B63N58=8

The base policy (`base_rows`) has seen short sums with their steps, also in another wording (`add F+K`), and guesses for
longer ones: it has the skill in part, and rarely uses it.

A second family of problems adds and subtracts in turn, `alt FKBN` is 3 - 4 + 6 - 5:

    alt FKBN    F33K49B65N50=0
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOP"
FAMILIAR, UNSEEN = LETTERS[:11], LETTERS[11:]  # letters of training prompts and demonstrations, and the others
_DIGITS = random.Random(0).sample([digit for digit in range(10) for _ in range(2)], len(LETTERS))
VALUES = dict(zip(LETTERS, _DIGITS, strict=True))
LENGTHS = (3, 4)  # letters per training prompt
# not of the form of a solution; a wrong answer without steps; other letters than the prompt's, or another number of
# them; a wrong value; a wrong result. Of the second family also: another order; the results of sums
ERRORS = ("form", "guess", "letters", "values", "sums", "order", "rule")
TESTS = ("in distribution", "longer sums", "unseen letters", "other wording")
SECOND_FAMILY = "second family"  # a further test
SUM, ADD, ALTERNATE = range(3)  # wordings; the last is the second family


class FinalDigit:
    """Reward 1 if a completion ends with `=` and its row's ground truth, else 0."""

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        answers = [re.search(r"=(\d)\s*$", text) for text in completions]
        pairs = zip(answers, rows, strict=True)
        return [float(answer is not None and answer[1] == str(row["ground_truth"])) for answer, row in pairs]


def first_error(letters: str, text: str, wording: int = SUM) -> str:
    """Return the first kind of error of an answer: one of `ERRORS`, or `right`."""
    match = re.fullmatch(r"((?:[A-P]\d\d)*)=(\d)\s*", text)
    if match is None:
        return "form"
    steps = [match[1][k : k + 3] for k in range(0, len(match[1]), 3)]
    if not steps:
        return "right" if match[2] == str(total(letters, wording)) else "guess"
    written = "".join(step[0] for step in steps)
    if sorted(written) != sorted(letters):
        return "letters"
    if any(step[1] != str(VALUES[step[0]]) for step in steps):
        return "values"
    if wording == ALTERNATE and written != letters:  # sums may have any order
        return "order"
    answer = "".join(steps) + f"={match[2]}"
    if answer == trace(written, wording=wording):
        return "right"
    return "rule" if answer == trace(written) else "sums"


def prompt(letters: str, wording: int = SUM) -> str:
    return "add " + "+".join(letters) if wording == ADD else f"{'alt' if wording == ALTERNATE else 'sum'} {letters}"


def totals(values: Sequence[int], wording: int = SUM) -> list[int]:
    """Return the results so far, modulo 10, after each value."""
    signed = (-value if wording == ALTERNATE and place % 2 else value for place, value in enumerate(values))
    return [result % 10 for result in itertools.accumulate(signed)]


def total(letters: str, wording: int = SUM) -> int:
    return totals([VALUES[letter] for letter in letters], wording)[-1]


def trace(letters: str, wrong: random.Random | None = None, wording: int = SUM) -> str:
    """Return a worked solution; a wrong one has another value for one of its letters, and another answer."""
    values = [VALUES[letter] for letter in letters]
    if wrong is not None:
        place = wrong.randrange(len(values))
        values[place] = (values[place] + wrong.randrange(1, 10)) % 10
    results = totals(values, wording)
    steps = [f"{letter}{value}{result}" for letter, value, result in zip(letters, values, results, strict=True)]
    return f"{''.join(steps)}={results[-1]}"


def row(letters: str, *, source: str, wording: int = SUM, traces: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "id": f"{source}-{wording}-{letters}", "prompt": prompt(letters, wording), "source": source,
        "ground_truth": str(total(letters, wording)), "traces": list(traces),
    }  # fmt: skip


def base_rows(number: int, seed: int, habit: float, second_family: bool = False) -> list[dict[str, Any]]:
    """Return problems of the base policy: short sums with their steps, and guesses for longer ones.

    Args:
        number: of rows; repeats of a problem count once.
        seed: of the letters.
        habit: share of the longer sums with steps.
        second_family: let every other problem that is worded "sum" be one of the second family.
    """
    rng = random.Random(f"base {seed}")
    rows = []
    for _ in range(number):
        kind = rng.random()
        lengths = (1, 2, 3, 3) if kind < 0.4 else (1, 2, 2) if kind < 0.6 else (3, 4, 5, 6)
        text = "".join(rng.choice(LETTERS) for _ in range(rng.choice(lengths)))
        guesses = kind >= 0.6 and rng.random() >= habit
        guess = rng.randrange(10) if guesses else None
        wording = ADD if kind < 0.4 else ALTERNATE if second_family and rng.random() < 0.5 else SUM
        answer = trace(text, wording=wording) if guess is None else f"={guess}"
        rows.append(row(text, source="base", wording=wording, traces=[answer]))
    return rows


def _sums(rng: random.Random, lengths: Sequence[int], letters: str, number: int, without: set[str]) -> list[str]:
    """Draw different sums, none of them in `without`."""
    sums: dict[str, None] = {}
    while len(sums) < number:
        text = "".join(rng.choice(letters) for _ in range(rng.choice(lengths)))
        if text not in without:
            sums[text] = None
    return list(sums)


def held_out_rows(number: int, split: str, second_family: bool = False) -> list[dict[str, Any]]:
    """Return `number` problems of each test, of the split `dev` or `test`."""
    rng = random.Random(f"held out {split}")
    kinds = {
        "in distribution": (LENGTHS, FAMILIAR, SUM),
        "longer sums": ((max(LENGTHS) + 1,), FAMILIAR, SUM),
        "unseen letters": (LENGTHS, UNSEEN, SUM),
        "other wording": (LENGTHS, FAMILIAR, ADD),
    }
    if second_family:
        kinds[SECOND_FAMILY] = (LENGTHS, FAMILIAR, ALTERNATE)
    return [
        row(text, source=source, wording=wording)
        for source, (lengths, letters, wording) in kinds.items()
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
