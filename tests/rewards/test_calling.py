"""Reward functions in their two forms, and what they may return."""

import functools
from typing import Any

import pytest

from lit_rft.rewards import RewardError, RewardSum, compute_rewards
from lit_rft.rewards.calling import check_reward

ROWS = [{"id": "p1", "ground_truth": "1", "level": 3}, {"id": "p2", "ground_truth": "2"}]
TEXTS = ["1", "3"]
PROMPTS = [[{"role": "user", "content": "one?"}], [{"role": "user", "content": "two?"}]]
IDS = [[5], [6, 7]]


def by_truth(completions: Any, ground_truth: Any, **kwargs: Any) -> list[float]:
    return [float(text == truth) for text, truth in zip(completions, ground_truth, strict=True)]


def by_rows(completions: Any, rows: Any) -> list[float]:
    return by_truth(completions, [row["ground_truth"] for row in rows])


def without_the_rest(ground_truth: Any, completions: Any) -> list[float]:
    return by_truth(completions, ground_truth)


def anything(**kwargs: Any) -> list[float]:
    assert kwargs == {
        "prompts": PROMPTS, "completions": TEXTS, "completion_ids": IDS, "id": ["p1", "p2"],
        "ground_truth": ["1", "2"], "level": [3, None],
    }  # fmt: skip
    return by_truth(**kwargs)


def with_defaults(completions: Any, ground_truth: Any, unknown: float = 1.0) -> list[float]:
    return [unknown * reward for reward in by_truth(completions, ground_truth)]


def more_than_rows(completions: Any, rows: Any, prompts: Any, completion_ids: Any) -> list[float]:
    assert prompts == PROMPTS and completion_ids == IDS
    return by_rows(completions, rows)


class Called:
    def __call__(self, completions: Any, ground_truth: Any, **kwargs: Any) -> list[float]:
        return by_truth(completions, ground_truth)

    def method(self, prompts: Any, completions: Any, ground_truth: Any) -> list[float]:
        return by_truth(completions, ground_truth)


FORMS = [by_truth, by_rows, without_the_rest, anything, with_defaults, more_than_rows, Called(), Called().method]


@pytest.mark.parametrize("function", [*FORMS, functools.partial(by_truth, extra=1), RewardSum([by_truth])])
def test_each_form_gets_what_it_names(function: Any) -> None:
    assert compute_rewards(function, TEXTS, ROWS, PROMPTS, IDS) == [1.0, 0.0]
    assert compute_rewards(RewardSum([function, by_rows]), TEXTS, ROWS, PROMPTS, IDS) == [2.0, 0.0]
    assert compute_rewards(function, [], [], [], []) == []


async def asynchronous(completions: Any, rows: Any) -> list[float]:
    return [0.0]


def other_names(texts: Any, problems: Any) -> list[float]:
    return [0.0]


def rows_elsewhere(prompts: Any, completions: Any, rows: Any) -> list[float]:
    return [0.0]


def rows_by_name(completions: Any, *, rows: Any) -> list[float]:
    return [0.0]


def by_position(completions: Any, rows: Any, /) -> list[float]:
    return [0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (asynchronous, "asynchronous is async: expected a plain function"),
        (other_names, r"other_names\(texts: .*cannot be called: expected \(completions, rows\), or parameters by name"),
        (rows_elsewhere, "rows in another position"),
        (rows_by_name, "rows in another position"),
        (lambda: [0.0], "cannot be called"),
        (7, "int is not callable"),
        (dict, "cannot be called|no readable signature"),
    ],
)
def test_other_forms_are_refused_at_once(function: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        check_reward(function)
    with pytest.raises(RewardError, match=message):
        RewardSum([function])


def test_rows_by_position_only_are_given_by_position() -> None:
    assert compute_rewards(by_position, ["a"], [{}]) == [0.0]


def test_a_column_that_is_not_there_is_named() -> None:
    def solved(completions: Any, solution: Any) -> list[float]:
        return [0.0]

    message = "solved needs solution, which the problems do not have: expected one of completions, ground_truth, id"
    with pytest.raises(RewardError, match=message):
        compute_rewards(solved, TEXTS, ROWS)


def coroutine() -> Any:
    async def later() -> list[float]:
        return [0.0, 0.0]

    return later()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda: None, r"returned None \(NoneType\): expected a list of 2 numbers"),
        (lambda: 1.0, r"returned 1.0 \(float\): expected a list of 2 numbers"),
        (lambda: {"reward": [0.0, 1.0]}, r"returned .*\(dict\): expected a list"),
        (lambda: "10", r"returned '10' \(str\): expected a list"),
        (lambda: {0.0, 1.0}, r"returned .* \(set\): expected a list"),
        (lambda: (r for r in (0.0, 1.0)), r"returned .* \(generator\): expected a list"),
        (coroutine, "returned a coroutine: expected a list"),
        (lambda: [1.0], "returned 1 rewards for 2 completions"),
        (lambda: [1.0, 2.0, 3.0], "returned 3 rewards for 2 completions"),
        (lambda: [1.0, None], "returned None for completion 1 of problem p2: expected a number"),
        (lambda: [1.0, "1.0"], r"returned '1.0' \(str\) for completion 1 of problem p2: expected a number"),
        (lambda: [[1.0], [0.0]], r"returned \[1.0\] \(list\) for completion 0 of problem p1"),
        (lambda: [float("nan"), 1.0], "returned nan for completion 0 of problem p1: expected a finite number"),
        (lambda: [1.0, float("inf")], "returned inf for completion 1 of problem p2"),
        (lambda: [1.0, 10**400], r"returned 1000.*\.\.\. \(int\) for completion 1"),
        (lambda: [1.0, 1j], r"returned 1j \(complex\) for completion 1"),
    ],
)
@pytest.mark.filterwarnings("error")  # a coroutine that was never awaited
def test_what_is_no_number_per_completion_is_refused(result: Any, message: str) -> None:
    def bad(completions: Any, rows: Any) -> Any:
        return result()

    with pytest.raises(RewardError, match=rf"the reward function \S*bad {message}"):
        compute_rewards(bad, TEXTS, ROWS)
    if "None for" not in message:
        with pytest.raises(RewardError, match=message):
            RewardSum([bad])(TEXTS, ROWS)


def test_numbers_of_other_kinds_become_floats() -> None:
    import numpy as np
    import torch

    for result in ([True, 0], (1, 0.0), np.array([1, 0]), torch.tensor([1.0, 0.0]), [torch.tensor(1.0), np.float32(0)]):
        rewards = compute_rewards(lambda completions, rows, result=result: result, TEXTS, ROWS)
        assert rewards == [1.0, 0.0] and all(type(reward) is float for reward in rewards)


def test_none_means_does_not_apply_in_a_sum() -> None:
    def first_only(completions: Any, rows: Any) -> list[Any]:
        return [2.0, *[None] * (len(rows) - 1)]

    assert RewardSum([first_only, by_rows], [0.5, 1.0])(TEXTS, ROWS) == [2.0, 0.0]
    message = "no reward function applies to completion 1 of problem p2: all of .*first_only"
    with pytest.raises(RewardError, match=message):
        RewardSum([first_only])(TEXTS, ROWS)
