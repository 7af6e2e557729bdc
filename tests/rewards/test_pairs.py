"""A table of ground truths and completions: which are right by the strict and the lenient rule (docs/grading.md)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from lit_rft.rewards.verify import grade, ground_truth_kind

TABLE: dict[str, list[dict[str, Any]]] = defaultdict(list)
for line in Path(__file__).with_name("pairs.jsonl").read_text("utf-8").splitlines():
    row = json.loads(line)
    TABLE[row["note"]].append(row)
REAL: dict[str, list[str]] = json.loads(Path(__file__).with_name("ground_truths.json").read_text("utf-8"))
ALL_REAL = [gold for golds in REAL.values() for gold in golds]
NO = r"I had \boxed{%s}. No: \boxed{-1234567}"


def test_the_table_is_large() -> None:
    assert sum(map(len, TABLE.values())) >= 250
    assert sum(map(len, REAL.values())) == 613


@pytest.mark.parametrize("note", TABLE)
def test_pairs(note: str) -> None:
    wrong = [
        (row["gold"], row["text"], mode)
        for row in TABLE[note]
        for mode in ("strict", "lenient")
        if bool(grade(row["gold"], row["text"], lenient=mode == "lenient")) != row[mode]
    ]
    assert wrong == []


FORMS = [r"So \boxed{%s}.", "The answer is %s.", r"First I thought \boxed{-9}. No: \boxed{%s}"]


@pytest.mark.parametrize("form", FORMS)
def test_real_ground_truths_given_back_are_right(form: str) -> None:
    assert [gold for gold in ALL_REAL if not grade(gold, form % gold)] == []


def test_real_ground_truths_withdrawn_are_wrong() -> None:
    assert [gold for gold in ALL_REAL if grade(gold, NO % gold)] == []


def test_real_ground_truths_are_right_for_themselves_only() -> None:
    """Each distinct ground truth as the answer to the next ones of its benchmark."""
    for golds in REAL.values():
        distinct = list({gold.replace(" ", ""): gold for gold in golds}.values())
        for i, gold in enumerate(distinct):
            for other in distinct[i + 1 : i + 2]:
                assert not grade(gold, rf"\boxed{{{other}}}"), (gold, other)


def test_kinds_of_ground_truths() -> None:
    kinds = {gold: ground_truth_kind(gold) for gold in ALL_REAL}
    assert None not in kinds.values()
    assert kinds[r"\$18.90"] == kinds[r"\$32,\!348"] == kinds["025"] == kinds[r"137 \frac{1}{2}"] == "number"
    assert kinds[r"\text{Evelyn}"] == "words" and kinds[r"\text{(C)}"] == "choice" and kinds["p - q"] == "mathematics"
    assert ground_truth_kind(r"\frac{1") is None


def test_release_form_of_answers_is_graded_alike() -> None:
    for gold in ("42", r"\frac{3}{4}"):
        assert grade(gold, rf"<think>so \boxed{{7}}</think> \boxed{{{gold}}}")
