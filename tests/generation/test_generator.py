"""The kept cache equals re-encoding the whole history, and a conversation's samples are its own."""

import itertools
import logging
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from lit_rft.generation import Completion, ConversationGenerator, SamplingSettings
from lit_rft.generation.decoder import Decoder
from lit_rft.generation.recompute import RecomputeDecoder, make_decoder
from lit_rft.generation.sampling import inverse_cdf, truncate_distribution
from lit_rft.testing.tiny import make_model, with_adapters

GPT_NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 16}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "qwen2_moe": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2},
    **(WITHOUT_CACHE := {"mamba": {"state_size": 4}, "bloom": {}, "gpt_neo": GPT_NEO}),
}
ADAPTED = [(name, True) for name in ("llama", "qwen2", "gemma2", "mistral")]
END = 2


def _prompt(rng: random.Random, low: int = 1, high: int = 30) -> list[int]:
    return [rng.randrange(3, 270) for _ in range(rng.randint(low, high))]


def _tags(ids: list[int]) -> str:
    return "".join(f"<{token}>" for token in ids)


def _talk(generator: ConversationGenerator, names: Iterable[str], rounds: int) -> dict[str, list[Completion]]:
    """Several rounds in which each conversation reads its own prompts, whoever else is there."""
    slots = {name: generator.open(name) for name in names}
    randoms = {name: random.Random(name) for name in slots}
    said: dict[str, list[Completion]] = {name: [] for name in slots}
    for _ in range(rounds):
        sampled = generator.sample({slot: _prompt(randoms[name]) for name, slot in slots.items()})
        for name, slot in slots.items():
            said[name].append(sampled[slot])
    return said


@pytest.mark.parametrize(("architecture", "adapted"), [*((name, False) for name in ARCHITECTURES), *ADAPTED])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probs_equal_a_recomputation_over_the_whole_history(
    architecture: str, temperature: float, adapted: bool
) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    model = with_adapters(model) if adapted else model
    generator = ConversationGenerator(model, END, SamplingSettings(9, temperature), num_slots=5)
    rng = random.Random(0)
    slots = [generator.open(str(i)) for i in range(4)]
    history: dict[int, list[int]] = {slot: [] for slot in slots}
    for turn in range(4):
        present = slots if turn != 1 else slots[::2]  # some sit a turn out
        if turn == 2:  # one ends, its slot goes to a new one
            generator.close(slots[1])
            assert generator.open("new") == slots[1]
            history[slots[1]] = []
        prompts = {slot: _prompt(rng) for slot in present}
        sampled = generator.sample(prompts)
        for slot in present:
            history[slot] += prompts[slot]
            start = len(history[slot])
            history[slot] += sampled[slot].ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([history[slot]])).logits[0].float()
            log_probs = (logits / (temperature or 1.0)).log_softmax(-1)
            expected = [log_probs[i - 1, history[slot][i]].item() for i in range(start, len(history[slot]))]
            assert sampled[slot].log_probs == pytest.approx(expected, abs=1e-4)
            if temperature == 0:
                assert sampled[slot].ids == [int(log_probs[i - 1].argmax()) for i in range(start, len(history[slot]))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_cannot_use_the_cache_does_without_and_says_so_once(
    architecture: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    if architecture == "mamba" and dtype == torch.bfloat16:
        pytest.skip("without kernels of its own transformers' Mamba needs float32")
    model = make_model(architecture, **ARCHITECTURES[architecture]).to(dtype)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        decoders = [make_decoder(model, 2, END) for _ in range(2)]
    without = architecture in WITHOUT_CACHE
    assert [isinstance(decoder, RecomputeDecoder) for decoder in decoders] == [without] * 2
    said = [record.message for record in caplog.records if record.name.startswith("lit_rft")]
    assert len(said) == without and all("recomputes the full prefix at every sampled token" in line for line in said)


def test_recomputation_equals_the_cache() -> None:
    """The same answers, slots shared, freed and used again, in passes of any size."""
    model, rng = make_model().double(), random.Random(0)
    decoders = [Decoder(model, 4, END), RecomputeDecoder(model, 4, END), RecomputeDecoder(model, 4, END)]
    decoders[2].max_prefill_tokens = 1
    prompts = {0: _prompt(rng), 3: _prompt(rng), 2: _prompt(rng)}
    found = []
    for decoder in decoders:
        with torch.no_grad(), decoder.ready():
            rows = [decoder.read(prompts)[slot] for slot in (0, 2, 3)]
            decoder.cache.copy_prefix(3, [1], len(prompts[3]))
            rows += list(decoder.step([0, 1, 2, 3], [5, 6, 7, 8]))
            decoder.cache.clear(0)
            rows += [decoder.read({0: [9, 10]})[0], *decoder.step([1, 0], [11, 12])]
        found.append(torch.stack(rows))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-6)  # norms and rotations are float32 inside
    assert decoders[1].tokens_read == decoders[2].tokens_read > decoders[0].tokens_read


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}, {"top_p": 0.6}, {"stop_strings": ("<7", "2><")}], ids=str)
def test_a_conversation_does_not_depend_on_its_company(truncation: dict[str, Any]) -> None:
    model, sampling = make_model(), SamplingSettings(8, 1.0, **truncation)

    def talk(names: str) -> dict[str, list[Completion]]:
        slots = len(names)
        return _talk(ConversationGenerator(model, END, sampling, num_slots=slots, decode=_tags), names, 3)

    together = talk("abcd")
    for name in "abcd":
        alone = talk(name)[name]
        assert [s.ids for s in alone] == [s.ids for s in together[name]]


def test_the_seed_changes_the_samples() -> None:
    model = make_model()
    settings = SamplingSettings(8, 1.0)
    first, second = (
        _talk(ConversationGenerator(model, END, settings, num_slots=1, seed=seed), "a", 2) for seed in (0, 1)
    )
    assert [s.ids for s in first["a"]] != [s.ids for s in second["a"]]


def test_finished_rows_stop_and_are_counted() -> None:
    model = make_model()
    with torch.no_grad():  # every token leads to the end of turn
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[END] = 0
    bias = torch.nn.Linear(32, 272)
    torch.nn.init.zeros_(bias.weight), torch.nn.init.zeros_(bias.bias)
    bias.bias.data[END] = 50.0
    model.set_output_embeddings(bias)
    generator = ConversationGenerator(model, END, SamplingSettings(8, 1.0), num_slots=3)
    said = _talk(generator, "abc", 2)
    assert all(s.ids == [END] and s.finished for turns in said.values() for s in turns)
    assert generator.tokens_sampled == 6


def test_max_new_tokens_cuts_and_says_so() -> None:
    said = _talk(ConversationGenerator(make_model(), END, SamplingSettings(3), num_slots=1), "a", 2)["a"]
    assert all(len(s.ids) <= 3 and s.finished == (s.ids[-1] == END) for s in said)


def test_the_history_is_not_read_again() -> None:
    generator = ConversationGenerator(make_model(), END, SamplingSettings(4), num_slots=1)
    slot = generator.open("a")
    generator.sample({slot: list(range(3, 103))})
    before = generator.tokens_read
    assert before <= 104
    generator.sample({slot: [5, 6]})
    assert generator.tokens_read - before <= 2 + 4


def test_a_forgotten_conversation_starts_empty() -> None:
    model = make_model()
    generator = ConversationGenerator(model, END, SamplingSettings(5), num_slots=1)
    slot = generator.open("a")
    first = generator.sample({slot: [7, 8, 9]})[slot]
    generator.sample({slot: [11, 12]})
    generator.forget(slot)
    assert generator.sample({slot: [7, 8, 9]})[slot].ids == first.ids


def test_slots_and_prompts_are_checked() -> None:
    generator = ConversationGenerator(make_model(), END, SamplingSettings(2), num_slots=1)
    slot = generator.open("a")
    with pytest.raises(RuntimeError, match="slots are taken"):
        generator.open("b")
    with pytest.raises(ValueError, match="needs at least one new prompt id"):
        generator.sample({slot: []})


def test_inverse_cdf_follows_the_distribution() -> None:
    probs = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = inverse_cdf(probs.expand(1000, -1), uniform)
    shares = torch.bincount(tokens, minlength=6) / 1000
    torch.testing.assert_close(shares, probs[0], atol=2e-3, rtol=0)
    assert inverse_cdf(probs, torch.tensor([1.0 - 1e-17], dtype=torch.float64)).item() == 4
    assert inverse_cdf(probs, torch.tensor([0.0], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("size", [1, 127, 128, 1000])
def test_inverse_cdf_equals_a_loop(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    probs = torch.rand(50, size, generator=generator) * (torch.rand(50, size, generator=generator) > 0.5)
    probs[:, 0] += 0.01
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    tokens = inverse_cdf(probs, uniform).tolist()
    for row, part, token in zip(probs.double().tolist(), uniform.tolist(), tokens, strict=True):
        cumulated = list(itertools.accumulate(row))
        assert token == next(place for place, mass in enumerate(cumulated) if mass > part * cumulated[-1])
        assert row[token] > 0


@pytest.mark.parametrize("spread", [0.01, 8.0], ids=["a nucleus of nearly all", "a small nucleus"])
def test_the_nucleus_equals_a_sorted_one(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = (torch.randn(3, 3000, generator=generator) * spread).softmax(-1)
    for top_k, top_p in ((0, 0.8), (7, 1.0), (2000, 0.8), (5000, 0.8)):
        kept = truncate_distribution(probs, top_k, top_p)
        for row, found in zip(probs.tolist(), kept.tolist(), strict=True):
            expected, mass = [0.0] * len(row), 0.0
            places = sorted(range(len(row)), key=lambda i: -row[i])[: top_k or None]
            whole = sum(row[place] for place in places)
            for place in places:
                if mass >= top_p * whole:
                    break
                expected[place] = row[place]
                mass += row[place]
            differ = [i for i in range(len(row)) if found[i] != expected[i]]
            assert len(differ) <= 1  # where the mass is reached, up to rounding


def test_top_k_and_top_p() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert truncate_distribution(probs, 2, 1.0).nonzero()[:, 1].tolist() == [1, 2]
    assert truncate_distribution(probs, 0, 0.65).nonzero()[:, 1].tolist() == [1, 2]
    assert truncate_distribution(probs, 0, 0.71).nonzero()[:, 1].tolist() == [1, 2, 3]
    assert truncate_distribution(probs, 0, 1e-6).nonzero()[:, 1].tolist() == [1]
    assert truncate_distribution(probs, 2, 0.5).nonzero()[:, 1].tolist() == [1]  # 4 / 7 of what two have
    assert truncate_distribution(probs, 3, 0.7).nonzero()[:, 1].tolist() == [1, 2]
    assert truncate_distribution(probs, 0, 1.0) is probs
    model = make_model()
    for settings in (SamplingSettings(6, 1.0, top_k=1), SamplingSettings(6, 1.0, top_p=1e-6)):
        only_best = _talk(ConversationGenerator(model, END, settings, num_slots=1), "a", 2)["a"]
        greedy = _talk(ConversationGenerator(model, END, SamplingSettings(6), num_slots=1), "a", 2)["a"]
        assert [s.ids for s in only_best] == [s.ids for s in greedy]


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_bad_settings_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingSettings(**bad)  # type: ignore[arg-type]


def test_attention_that_takes_no_masks_gives_way_while_sampling() -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        raise AssertionError("this attention is for training")

    AttentionInterface.register("training_only", refuses)
    model = make_model()
    expected = _talk(ConversationGenerator(model, END, SamplingSettings(4), num_slots=1), "a", 2)["a"]
    model.set_attn_implementation("training_only")
    said = _talk(ConversationGenerator(model, END, SamplingSettings(4), num_slots=1), "a", 2)["a"]
    assert [s.ids for s in said] == [s.ids for s in expected]
    assert model.config._attn_implementation == "training_only"
