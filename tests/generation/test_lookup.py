"""Drafts by look-up change no sample, and save passes."""

import random
from typing import Any

import pytest
import torch

from lit_rft.generation import Completion, ConversationGenerator, SamplingSettings
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.lookup import Lookup, draft_length
from lit_rft.models import FAST_PATHS, accelerate
from lit_rft.models.backbone import output_logits
from lit_rft.testing.tiny import make_model, with_adapters

END = 2


def slow_draft(ids: list[int], length: int) -> list[int]:
    for n in (2, 1):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + length]
    return []


@pytest.mark.parametrize("alphabet", [2, 5, 50])
def test_drafts_follow_the_last_occurrence(alphabet: int) -> None:
    rng, lookup, ids = random.Random(alphabet), Lookup(), []
    for _ in range(200):
        new = [rng.randrange(alphabet) for _ in range(rng.randint(1, 4))]
        ids += new
        lookup.extend(new)
        for length in (1, 2, 4):
            assert lookup.draft(length) == slow_draft(ids, length)


def test_many_rows_have_no_drafts() -> None:
    assert [draft_length(rows) for rows in (1, 8, 9, 16, 17, 64)] == [2, 2, 1, 1, 0, 0]


def few_tokens(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Compute logits with which all tokens but six are unlikely: some drafts are accepted by chance."""
    logits = output_logits(model, hidden)
    likely = torch.full_like(logits, -20.0)
    likely[:, 3:9] = 0.0
    likely[:, END] = -2.0
    return logits + likely


def play(model: Any, drafts: bool, sampling: SamplingSettings, **options: Any) -> tuple[list[list[Completion]], Any]:
    """Hold three conversations of four turns, with a few words that come again; one is truncated."""
    accelerate(model, [name for name in FAST_PATHS if drafts or name != "lookup_drafts"])
    generator = ConversationGenerator(
        model,
        END,
        sampling,
        num_slots=3,
        decode=lambda ids: "".join(f"<{token}>" for token in ids),
        read_out=few_tokens,
    )
    rng = random.Random(0)
    slots = [generator.open(name) for name in "abc"]
    said: list[list[Completion]] = [[] for _ in slots]
    for turn in range(4):
        present = slots if turn != 1 else slots[:2]
        if turn == 3:
            generator.forget(slots[0])
        prompts = {slot: [rng.randrange(3, 9) for _ in range(rng.randint(3, 12))] for slot in present}
        for slot, completion in generator.sample(prompts, **options).items():
            said[slot].append(completion)
    return said, (generator.passes, generator.tokens_read, generator.tokens_sampled)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "mistral"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(24),
        SamplingSettings(24, 1.0),
        SamplingSettings(24, 0.7, top_p=0.8),
        SamplingSettings(24, 1.0, stop_strings=("<5><",)),
    ],
    ids=str,
)
def test_samples_are_those_without_drafts(architecture: str, sampling: SamplingSettings) -> None:
    changes = {} if architecture in ("llama", "qwen2") else {"sliding_window": 16}
    model = make_model(architecture, **changes).double()
    if architecture == "qwen2":
        model = with_adapters(model)
    plain, (plain_passes, *plain_counts) = play(model, False, sampling)
    drafted, (passes, *counts) = play(model, True, sampling)
    assert passes < plain_passes, "no draft was accepted"
    assert counts == plain_counts  # tokens of rejected drafts are not counted
    for turns, expected in zip(drafted, plain, strict=True):
        for completion, other in zip(turns, expected, strict=True):
            assert completion.ids == other.ids and completion.finished == other.finished
            assert completion.log_probs == pytest.approx(other.log_probs, abs=1e-6)


def test_choices_are_those_without_drafts() -> None:
    model = make_model().double()
    trie = TokenTrie([[5, 6, 5, 6, END], [5, 6, 7, END], [8, END]])
    sampling = SamplingSettings(8, 1.0)
    options = {"choices": {0: trie, 1: trie}}
    plain, _ = play(model, False, sampling, **options)
    drafted, _ = play(model, True, sampling, **options)
    assert [[c.ids for c in turns] for turns in drafted] == [[c.ids for c in turns] for turns in plain]
