"""The best of several samples: which one is kept, its context over turns, choices."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lit_rft.generation import SamplingSettings, TokenTrie, sample_groups
from lit_rft.generation.best_of import BestOfConversations
from lit_rft.testing import make_model

SAMPLING = SamplingSettings(5, 1.0)
PROMPT = [5, 9, 30, 31]


class Score:
    """The sum of an utterance's ids; keeps what it was given."""

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign
        self.given: list[tuple[list[int], list[int]]] = []

    def __call__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> torch.Tensor:
        self.given += [(list(context), list(ids)) for context, ids in pairs]
        return torch.tensor([float(self.sign * sum(ids)) for _, ids in pairs])


def make(number: int, score: Any, sampling: SamplingSettings = SAMPLING) -> BestOfConversations:
    return BestOfConversations(make_model(), [2], sampling, num_slots=2, number=number, score=score, seed=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sample_with_the_highest_score_is_kept(sign: int) -> None:
    score = Score(sign)
    sampler = make(6, score)
    found = sampler.sample({sampler.open("a"): PROMPT})[0]
    (group,) = sample_groups(make_model(), [("a/0", PROMPT)], [6], SAMPLING, [2], seed=1)
    assert found.ids == max((completion.ids for completion in group), key=lambda ids: sign * sum(ids))
    assert all(context == PROMPT for context, _ in score.given)
    assert sampler.tokens_sampled == sum(len(completion.ids) for completion in group)


def test_later_turns_read_what_was_kept() -> None:
    score = Score()
    sampler = make(4, score)
    slots = [sampler.open(name) for name in ("a", "b")]
    first = sampler.sample(dict.fromkeys(slots, PROMPT))
    score.given = []
    sampler.sample({slots[0]: [40], slots[1]: [41]})
    contexts = {tuple(context) for context, _ in score.given}
    assert contexts == {(*PROMPT, *first[slot].ids, new) for slot, new in zip(slots, (40, 41), strict=True)}
    sampler.forget(slots[0])
    score.given = []
    sampler.sample({slots[0]: PROMPT})
    assert {tuple(context) for context, _ in score.given} == {tuple(PROMPT)}
    sampler.close(slots[0])
    assert sampler.open("c") == slots[0]


def test_one_sample_needs_no_score() -> None:
    def refuse(pairs: Any) -> torch.Tensor:
        raise AssertionError

    sampler = make(1, refuse, SamplingSettings(5))
    assert sampler.sample({sampler.open("a"): PROMPT})[0].ids


def test_choices_limit_the_samples() -> None:
    score = Score()
    sampler = make(8, score)
    slots = [sampler.open(name) for name in ("a", "b")]
    found = sampler.sample(dict.fromkeys(slots, PROMPT), {slots[1]: TokenTrie([[7, 2], [8, 2]])})
    assert found[slots[1]].ids == [8, 2] and found[slots[0]].ids not in ([7, 2], [8, 2])


@pytest.mark.parametrize(
    ("number", "sampling", "message"),
    [(0, SAMPLING, "must be >= 1, got 0"), (2, SamplingSettings(5), "best of 2 greedy samples")],
)
def test_bad_settings_are_refused(number: int, sampling: SamplingSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(number, Score(), sampling)
