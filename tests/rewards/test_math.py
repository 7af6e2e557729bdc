"""Rewards by Math-Verify: right answers in many forms, modes of grading, and sums of rewards."""

from collections.abc import Iterator

import pytest

from lit_rft.rewards import MathReward, RewardSum, Verdict, VerifierPool, text_after_thinking


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    made = VerifierPool(num_workers=2, time_limit=3.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("42", "The answer is $42$.", True),
        ("42", r"So \boxed{42}", True),
        ("$42$", r"\boxed{42.0}", True),
        ("42", r"\boxed{41}", False),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"$\frac{3}{4}$", r"\boxed{\frac{6}{8}}", True),
        (r"336^\circ", r"\boxed{336^\circ}", True),
        (r"336^\circ", r"\boxed{336}", True),
        (r"[0,1)", r"\boxed{[0, 1)}", True),
        (r"[0,1)", r"\boxed{[0, 1]}", False),
        (r"\{1,2,3\}", r"\boxed{\{3, 2, 1\}}", True),
        (r"(1,2)", r"\boxed{(1, 2)}", True),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
        (r"x^2+1", r"\boxed{1+x^2}", True),
        ("1000", r"\boxed{1{,}000}", True),
        ("10\\%", r"\boxed{10\%}", True),
    ],
)
def test_answers_are_compared_by_what_they_mean(pool: VerifierPool, gold: str, answer: str, right: bool) -> None:
    assert pool.verify([gold], [answer]) == [Verdict.RIGHT if right else Verdict.WRONG]


@pytest.mark.parametrize(
    ("label", "answer", "right"),
    [
        ("C", r"\boxed{C}", True),
        ("C", r"\boxed{\text{C}}", True),
        ("C", r"\boxed{C) the leaf}", True),
        ("C", "ANSWER: C", True),
        ("C", "The answer is (C).", True),
        ("C", r"\boxed{D}", False),
        ("C", r"\boxed{3}", False),
        ("3", r"\boxed{3}", True),  # some questions of ARC-c have the labels 1 to 4
        ("3", "ANSWER: 3", True),
        ("3", r"\boxed{C}", False),
        ("3", "ANSWER: 4", False),
    ],
)
def test_labels_of_options(pool: VerifierPool, label: str, answer: str, right: bool) -> None:
    assert pool.verify([label], [answer]) == [Verdict.RIGHT if right else Verdict.WRONG]


def test_the_releases_rule_looks_after_the_thinking() -> None:
    assert text_after_thinking("a</think>b</think>c") == "b</think>c"
    assert text_after_thinking("no mark") is None
    reward = MathReward(after_thinking=True)
    rows = [{"ground_truth": "42"}] * 4
    texts = [r"hm \boxed{42}</think> so \boxed{42}", r"\boxed{42}", r"\boxed{42}</think>", r"</think>\boxed{41}"]
    try:
        assert reward(texts, rows) == [1.0, 0.0, 0.0, 0.0]
        assert reward.counts == {"right": 1, "wrong": 1, "unreadable": 2, "killed": 0}
        assert reward.metrics() == {"unreadable": 2.0, "killed": 0.0}
    finally:
        reward.close()
    plain = MathReward()
    try:
        assert plain(texts, rows) == [1.0, 1.0, 1.0, 0.0]
        with pytest.raises(ValueError, match="expected a row with a ground_truth"):
            plain(["x"], [{"answer": "1"}])
    finally:
        plain.close()


def test_rewards_add_up_by_weight() -> None:
    def short(completions: list[str], rows: list[dict[str, str]]) -> list[float]:
        return [float(len(text) < 3) for text in completions]

    def known(completions: list[str], rows: list[dict[str, str]]) -> list[float]:
        return [float(row["x"] == text) for text, row in zip(completions, rows, strict=True)]

    total = RewardSum([short, known], [0.5, 2.0])
    assert total(["ab", "abc", "q"], [{"x": "ab"}, {"x": "abc"}, {"x": "-"}]) == [2.5, 2.0, 0.5]
    with pytest.raises(ValueError, match="expected one weight per reward function, got 2 functions, 1 weights"):
        RewardSum([short, known], [1.0])
    with pytest.raises(ValueError, match="returned 1 rewards for 2 completions"):
        RewardSum([lambda completions, rows: [1.0]])(["a", "b"], [{}, {}])
