"""Rewards by Math-Verify: right answers in many forms, and nothing that a model can write does harm."""

import os
import signal
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


HARMFUL = {
    "tower of powers": r"\boxed{9^{9^{9^{9^9}}}}",
    "tower in python": r"\boxed{9**9**9**9}",
    "factorial": r"\boxed{(((99999!)!)!)!}",
    "a megabyte": "x" * 1_000_000,
    "a megabyte of digits": r"\boxed{" + "9" * 1_000_000 + "}",
    "deep nesting": r"\boxed{" + "{" * 5000 + "1" + "}" * 5000 + "}",
    "deep parentheses": r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{1+" * 300 + "1" + "}" * 300 + "}",
    "a bomb of braces": r"\boxed{" * 2000 + "1" + "}" * 2000,
    "null bytes": "\x00" * 1000 + r"\boxed{4\x002}",
    "surrogates": "\ud800\udfff \\boxed{42\ud800}",
    "control characters": "".join(map(chr, range(32))) * 50,
    "code": "__import__('os').system('touch /tmp/owned')",
    "latex code": r"\boxed{\input{/etc/passwd}}",
    "a huge sum": r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n}}",
    "a huge integral": r"\boxed{\int_0^1 x^{x^{x^{x}}} dx}",
    "many answers": r"\boxed{1} " * 20_000,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_that_a_model_writes_hangs_or_crashes(name: str, tmp_path: object) -> None:
    pool = VerifierPool(num_workers=1, time_limit=1.0)
    try:
        harmful, after = pool.verify(["42", "7"], [HARMFUL[name], r"\boxed{7}"])
        assert after is Verdict.RIGHT  # the next answer is judged as if nothing had been
        assert harmful is not Verdict.RIGHT or name in ("surrogates", "null bytes")
        assert not os.path.exists("/tmp/owned")
    finally:
        pool.close()


def test_many_answers_among_them_hangs_keep_their_order_and_are_counted() -> None:
    pool = VerifierPool(num_workers=2, time_limit=0.7)
    try:
        answers = [HARMFUL["tower of powers"] if i % 7 == 3 else rf"\boxed{{{i}}}" for i in range(21)]
        verdicts = pool.verify([str(i) for i in range(21)], answers)
        expected = [Verdict.RIGHT if i % 7 != 3 else None for i in range(21)]
        assert all(found is want for found, want in zip(verdicts, expected, strict=True) if want is not None)
        assert pool.killed == sum(verdict is Verdict.KILLED for verdict in verdicts)
    finally:
        pool.close()


def test_a_stopped_process_is_replaced() -> None:
    pool = VerifierPool(num_workers=1, time_limit=2.0)
    try:
        pool.verify(["1"], [r"\boxed{1}"])
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
        assert pool.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"]) == [Verdict.KILLED, Verdict.RIGHT]
        assert pool.killed == 1
    finally:
        pool.close()


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
        with pytest.raises(ValueError, match="needs a ground_truth"):
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
    with pytest.raises(ValueError, match="2 reward functions need as many weights, got 1"):
        RewardSum([short, known], [1.0])
    with pytest.raises(ValueError, match="returned 1 rewards for 2 completions"):
        RewardSum([lambda completions, rows: [1.0]])(["a", "b"], [{}, {}])


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="time_limit must be > 0"):
        VerifierPool(time_limit=0)
    with pytest.raises(ValueError, match="needs a ground truth"):
        VerifierPool().verify(["1"], [])
