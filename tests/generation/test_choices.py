"""Sampling among given utterances: probabilities are the model's, renormalised, in sampling and in training."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch

from lit_rft.generation import ConversationGenerator, SamplingSettings, ServedConversations, TokenTrie, sample_groups
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.testing.tiny import make_model, with_adapters
from lit_rft.transcripts import Transcript, collate_packed, collate_padded

END = 2
# with common beginnings, one within another but for the end, and of one token
CHOICES = [[5, 6, 7, END], [5, 6, END], [5, 8, END], [9, END], [9, 5, 6, 7, 8, END], [END]]
PROMPTS = [[11, 12, 13], [20, 21, 22, 23, 24], [30]]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def enumerated(model: Any, prompt: list[int], choices: list[list[int]], temperature: float = 1.0) -> dict[Any, float]:
    """The probability of each choice by brute force in float64: token by token, each against all that could follow."""
    double = model.double()
    probabilities = {}
    for choice in choices:
        log_prob = 0.0
        for length, token in enumerate(choice):
            following = sorted({c[length] for c in choices if c[:length] == choice[:length] and len(c) > length})
            with torch.no_grad():
                logits = double(torch.tensor([[*prompt, *choice[:length]]])).logits[0, -1] / temperature
            values = [math.exp(float(logits[t])) for t in following]
            log_prob += math.log(math.exp(float(logits[token])) / sum(values))
        probabilities[tuple(choice)] = math.exp(log_prob)
    model.float()
    return probabilities


def sample(model: Any, number: int, sampling: SamplingSettings, **options: Any) -> list[tuple[list[int], Any]]:
    """Completions of the prompts, `number` of each, all conversations at once."""
    pairs = [prompt for prompt in PROMPTS for _ in range(number)]
    generator = ConversationGenerator(model, END, sampling, num_slots=len(pairs), **options)
    slots = [generator.open(str(n)) for n in range(len(pairs))]
    trie = TokenTrie(CHOICES)
    sampled = generator.sample(dict(zip(slots, pairs, strict=True)), dict.fromkeys(slots, trie))
    return [(prompt, sampled[slot]) for slot, prompt in zip(slots, pairs, strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_sampled_log_probs_equal_brute_force_and_sum_to_one(model: Any, temperature: float) -> None:
    expected = {tuple(p): enumerated(model, p, CHOICES, temperature) for p in PROMPTS}
    seen = set()
    for prompt, completion in sample(model, 40, SamplingSettings(8, temperature)):
        assert completion.finished and completion.ids in CHOICES
        assert math.exp(sum(completion.log_probs)) == pytest.approx(
            expected[tuple(prompt)][tuple(completion.ids)], rel=1e-4
        )
        seen.add(tuple(completion.ids))
    assert len(seen) >= 4
    for probabilities in expected.values():
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-12)


def test_training_log_probs_equal_brute_force_for_every_choice(model: Any) -> None:
    """In float64, padded and packed, with the sum over the choices, beside a free utterance."""
    double, trie = make_model().double(), TokenTrie(CHOICES)
    transcripts = []
    for prompt, choice in itertools.product(PROMPTS, CHOICES):
        transcript = Transcript("flat", END, str(len(transcripts)))
        transcript.append_prompt(prompt)
        transcript.append_utterance(choice, trie.allowed_along(choice))
        transcripts.append(transcript)
    free = Transcript("flat", END, "free")
    free.append_prompt(PROMPTS[0])
    free.append_utterance(CHOICES[0])
    expected = [p for prompt in PROMPTS for p in enumerated(model, prompt, CHOICES, 0.7).values()]
    for batch in (collate_padded([*transcripts, free], 0), collate_packed([*transcripts, free], 0, 40)):
        values = utterance_log_probs(
            double, batch, end_of_turn_id=END, temperature=0.7, chunk_tokens=5, ends=False, entropy=True
        )
        found = {
            t.episode_id: float(row.detach().sum().exp())
            for t, row in zip(batch.transcripts, values.tokens, strict=True)
        }
        assert [found[str(n)] for n in range(len(expected))] == pytest.approx(expected, rel=1e-9)
        for start in range(0, len(expected), len(CHOICES)):
            assert sum(found[str(start + n)] for n in range(len(CHOICES))) == pytest.approx(1.0, abs=1e-12)
        alone = utterance_log_probs(
            double, collate_padded([free], 0), end_of_turn_id=END, temperature=0.7, ends=False, entropy=True
        )
        row = [t.episode_id for t in batch.transcripts].index("free")
        torch.testing.assert_close(values.tokens[row][: len(CHOICES[0])], alone.tokens[0])
        torch.testing.assert_close(values.entropy[row][: len(CHOICES[0])], alone.entropy[0])
        assert torch.isfinite(values.entropy).all()
        # where one token only can follow, there is nothing to learn: at the end of [9, 5, 6, 7, 8, END]
        sure = [t.episode_id for t in batch.transcripts].index("4")
        assert values.tokens[sure][2:6].abs().max() < 1e-12 and values.entropy[sure][2:6].abs().max() < 1e-12
        double.zero_grad()
        (values.tokens.sum() + values.entropy.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in double.parameters() if p.grad is not None)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_the_renormalised_distribution(frozen: bool) -> None:
    """With a frozen output layer, whose gradients take a fast path otherwise, and with one that trains."""
    model = with_adapters(make_model()).double() if frozen else make_model().double()
    trie, prompt, choice = TokenTrie(CHOICES), PROMPTS[1], CHOICES[0]
    transcript = Transcript("flat", END)
    transcript.append_prompt(prompt)
    transcript.append_utterance(choice, trie.allowed_along(choice))
    batch = collate_padded([transcript], 0)
    utterance_log_probs(model, batch, end_of_turn_id=END, ends=False).tokens.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(torch.tensor([[*prompt, *choice]])).logits[0, len(prompt) - 1 : -1]
    total = logits.new_zeros(())
    for position, (token, allowed) in enumerate(zip(choice, trie.allowed_along(choice), strict=True)):
        total = total + logits[position, token] - logits[position, allowed].logsumexp(-1)
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys() and len(gradients) > 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_greedy_takes_the_likeliest_allowed_token(model: Any) -> None:
    for prompt, completion in sample(model, 1, SamplingSettings(8)):
        ids: list[int] = []
        while not ids or ids[-1] != END:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            following = sorted({c[len(ids)] for c in CHOICES if c[: len(ids)] == ids})
            ids.append(max(following, key=lambda token: float(logits[token])))
        assert completion.ids == ids


@pytest.mark.parametrize("sampling", [SamplingSettings(8, 1.0, top_k=1), SamplingSettings(8, 1.0, top_p=1e-6)])
def test_truncation_is_of_the_allowed_tokens(model: Any, sampling: SamplingSettings) -> None:
    greedy = [completion.ids for _, completion in sample(model, 1, SamplingSettings(8))]
    assert [completion.ids for _, completion in sample(model, 1, sampling)] == greedy


def test_frequencies_are_the_probabilities(model: Any) -> None:
    probabilities = enumerated(model, PROMPTS[0], CHOICES)
    (group,) = sample_groups(
        model, [("p", PROMPTS[0])], [2000], SamplingSettings(8, 1.0), END, choices={0: TokenTrie(CHOICES)}
    )
    counts = Counter(tuple(completion.ids) for completion in group)
    for choice, probability in probabilities.items():
        assert counts[choice] / 2000 == pytest.approx(probability, abs=4 * math.sqrt(probability / 2000) + 1e-9)


def test_groups_choose_where_they_have_choices(model: Any) -> None:
    """The others are free, whatever is sampled beside them and in whatever order; slots are used again."""
    prompts, sampling = [(str(n), prompt) for n, prompt in enumerate(PROMPTS)], SamplingSettings(8, 1.0)
    free = sample_groups(model, prompts, [4, 4, 4], sampling, END)
    mixed = sample_groups(model, prompts, [4, 4, 4], sampling, END, choices={1: TokenTrie(CHOICES)}, max_concurrent=3)
    assert [mixed[n][k].ids for n in (0, 2) for k in range(4)] == [free[n][k].ids for n in (0, 2) for k in range(4)]
    expected = enumerated(model, PROMPTS[1], CHOICES)
    for completion in mixed[1]:
        assert math.exp(sum(completion.log_probs)) == pytest.approx(expected[tuple(completion.ids)], rel=1e-4)


def test_conversations_choose_in_each_turn(model: Any) -> None:
    """With the kept cache: a second turn, free this time, reads what was chosen in the first."""
    generator = ConversationGenerator(model, END, SamplingSettings(8, 1.0), num_slots=2)
    slots = [generator.open("a"), generator.open("b")]
    first = generator.sample({slots[0]: [11, 12], slots[1]: [13]}, {slots[0]: TokenTrie([[5, 6, END]])})
    assert first[slots[0]].ids == [5, 6, END] and first[slots[0]].log_probs == [0.0, 0.0, 0.0]
    assert first[slots[1]].ids[:2] != [5, 6]
    second = generator.sample({slots[0]: [14]}, {slots[0]: TokenTrie(CHOICES)})[slots[0]]
    expected = enumerated(model, [11, 12, 5, 6, END, 14], CHOICES)
    assert math.exp(sum(second.log_probs)) == pytest.approx(expected[tuple(second.ids)], rel=1e-4)


@pytest.mark.parametrize("bad", [[], [[]], [[5], [5, 6]], [[5, END], []]], ids=str)
def test_ambiguous_choices_are_refused(bad: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="none is the beginning of another"):
        TokenTrie(bad)


def test_what_leaves_the_trie_is_refused() -> None:
    assert TokenTrie([[5, END], [5, END]]).allowed_along([5, END]) == [[5], [END]]
    with pytest.raises(ValueError, match=r"token 7 at position 1 is none of the allowed \[6, 8\]"):
        TokenTrie(CHOICES).allowed_along([5, 7])


def test_choices_must_fit(model: Any) -> None:
    with pytest.raises(ValueError, match=r"an utterance to choose has 6 tokens, and sampling\.max_new_tokens is 5"):
        sample(model, 1, SamplingSettings(5))


def test_the_end_of_turn_has_no_probability_of_its_own(model: Any) -> None:
    transcript = Transcript("flat", END)
    transcript.append_prompt([11])
    transcript.append_utterance([5, 6, END], TokenTrie(CHOICES).allowed_along([5, 6, END]))
    with pytest.raises(ValueError, match="set length_coef to 0"):
        utterance_log_probs(model, collate_padded([transcript], 0), end_of_turn_id=END)


def test_a_server_refuses_choices() -> None:
    server: Any = None
    conversations = ServedConversations(server, "a", END, SamplingSettings(), num_slots=1)
    slot = conversations.open("a")
    with pytest.raises(ValueError, match=r"does not sample among given choices: unset acting\.server"):
        conversations.sample({slot: [1]}, {slot: TokenTrie(CHOICES)})


def test_transcripts_keep_what_was_allowed_when_they_are_cut() -> None:
    transcript = Transcript("flat", END, "e")
    trie = TokenTrie(CHOICES)
    for turn, choice in enumerate([CHOICES[0], CHOICES[1], CHOICES[3]]):
        transcript.append_prompt([11 + turn] * 4)
        transcript.append_utterance(choice, None if turn == 1 else trie.allowed_along(choice))
    assert set(transcript.allowed) == {0, 2}
    cut = transcript.truncated(len(transcript) - 1)
    assert (cut.dropped_turns, cut.allowed) == (1, {1: trie.allowed_along(CHOICES[3])})
    assert transcript.first_decisions(2).allowed == {0: trie.allowed_along(CHOICES[0])}
    allowed = collate_padded([cut], 0).allowed
    assert allowed is not None and allowed.shape == (len(CHOICES[1]) + len(CHOICES[3]), 3)
    assert (allowed[: len(CHOICES[1])] == -1).all()
    assert allowed[len(CHOICES[1]) :].tolist() == [[END, 5, 9], [END, 5, -1]]
