"""Ground truths verified against themselves."""

import logging
from dataclasses import dataclass

import pytest

from lit_rft.rewards import MathReward, RewardSum, unearnable, warn_of_unearnable


@dataclass
class Row:
    id: str
    ground_truth: str
    origin: str = ""


GOOD = ["7", r"\$18.90", r"\$32,\!348", "3 1/2", "listen", "(C)", r"\frac{3}{4}", "x=5", "0.00001"]
BAD = [r"\frac{1", "5}", "+", "$$"]


def test_ground_truths_that_cannot_be_earned_are_listed_with_file_and_row(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Row(f"p{i}", gold, f"data.jsonl:{i + 1}") for i, gold in enumerate(GOOD + BAD + BAD[:1])]
    reward = MathReward()
    try:
        entries = unearnable(rows, RewardSum([lambda completions, rows: [0.0] * len(rows), reward]))
        assert [entry.ground_truth for entry in entries] == BAD + BAD[:1]
        assert entries[0].origin == "data.jsonl:10" and entries[-1].id == "p13"
        assert reward.counts == {"right": 0, "wrong": 0, "unreadable": 0, "killed": 0}  # no completion was graded
        with caplog.at_level(logging.WARNING, "lit_rft"):
            assert warn_of_unearnable(rows, reward) == entries
        assert "5 of 14 ground truths" in caplog.text and r"data.jsonl:10: '\\frac{1': given back" in caplog.text
        assert unearnable(rows[:9], reward) == []
    finally:
        reward.close()


def test_other_rewards_set_their_own_rules() -> None:
    assert unearnable([Row("p", "{")], lambda completions, rows: [0.0]) == []
