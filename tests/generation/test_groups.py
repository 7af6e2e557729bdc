"""Groups of completions: the same as conversations one by one, whatever shares the cache; prompts are read once."""

from typing import Any

import pytest
import torch

from lit_rft.generation import SamplingSettings, sample_groups
from lit_rft.generation import groups as module
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.decoder import Decoder
from lit_rft.generation.generator import ConversationGenerator
from lit_rft.models import MergedWeights, model_end_ids
from lit_rft.testing.tiny import SHAPES, make_model, with_adapters

END = 2
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma": {},
    "gemma2": {"sliding_window": 12},
    "mistral": {"sliding_window": 12},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}

EACH_SHAPE = pytest.mark.parametrize("architecture", SHAPES)
ADAPTED = pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])


def make_prompts(number: int = 5) -> list[tuple[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    return [(f"p{n}", torch.randint(3, 272, (4 + 5 * n,), generator=generator).tolist()) for n in range(number)]


def one_by_one(model: Any, prompts: Any, sizes: Any, sampling: SamplingSettings, seed: int = 0) -> list[list[Any]]:
    groups = []
    for (name, ids), size in zip(prompts, sizes, strict=True):
        groups.append([])
        for number in range(size):
            generator = ConversationGenerator(model, END, sampling, num_slots=1, seed=seed)
            slot = generator.open(f"{name}/{number}")
            groups[-1].append(generator.sample({slot: ids})[slot])
    return groups


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_slots", [1, 3, 64])
def test_groups_equal_conversations_one_by_one(architecture: str, num_slots: int) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    prompts, sizes, sampling = make_prompts(), [3, 0, 4, 1, 2], SamplingSettings(9, 1.0)
    expected = one_by_one(model, prompts, sizes, sampling)
    found = sample_groups(model, prompts, sizes, sampling, END, max_concurrent=num_slots)
    assert [[one.ids for one in group] for group in found] == [[one.ids for one in group] for group in expected]
    for group, other in zip(found, expected, strict=True):
        for one, plain in zip(group, other, strict=True):
            assert one.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
            assert one.finished == plain.finished == (one.ids[-1] == END)


@EACH_SHAPE
@ADAPTED
def test_log_probs_equal_a_plain_pass(architecture: str, adapted: bool) -> None:
    model, prompts = make_model(architecture, **ARCHITECTURES[architecture]), make_prompts()
    model = with_adapters(model) if adapted else model
    for (_, ids), group in zip(
        prompts, sample_groups(model, prompts, [3] * 5, SamplingSettings(9, 0.7), END), strict=True
    ):
        for one in group:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*ids, *one.ids]])).logits[0] / 0.7
            log_probs = logits.log_softmax(-1)[len(ids) - 1 : -1]
            expected = log_probs.gather(-1, torch.tensor(one.ids)[:, None]).squeeze(-1)
            assert one.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


@EACH_SHAPE
@ADAPTED
def test_in_bf16_they_are_no_further_off_than_separate_passes(architecture: str, adapted: bool) -> None:
    """What is sampled in bf16, by a merged adapter out of the cache, against float32 of the same weights."""
    exact, half = make_model(architecture).bfloat16().float(), make_model(architecture).bfloat16()
    if adapted:
        exact, half = with_adapters(exact), with_adapters(half)
    half.load_state_dict(exact.state_dict())
    prompts, sampling = make_prompts(), SamplingSettings(24, 1.0)
    groups = sample_groups(half, prompts, [4] * 5, sampling, END, acting=MergedWeights(half).active)
    off: list[list[float]] = [[], []]
    for (_, ids), group in zip(prompts, groups, strict=True):
        for one in group:
            true, separate = (_plain_log_probs(model, ids, one.ids) for model in (exact, half))
            off[0] += (torch.tensor(one.log_probs) - true).tolist()
            off[1] += (separate - true).tolist()
    mine, other = (torch.tensor(values).square().mean().sqrt() for values in off)
    assert 0 < mine < 1.5 * other


@torch.no_grad()
def _plain_log_probs(model: Any, prompt: list[int], said: list[int]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0].float()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(said)[:, None]).squeeze(-1)


@EACH_SHAPE
def test_a_merged_adapter_says_the_same(architecture: str) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    model = with_adapters(model)
    prompts, sampling = make_prompts(), SamplingSettings(9, 1.0)
    plain = sample_groups(model, prompts, [2] * 5, sampling, END)
    merged = sample_groups(model, prompts, [2] * 5, sampling, END, acting=MergedWeights(model).active)
    with model.disable_adapter():
        other = sample_groups(model, prompts, [2] * 5, sampling, END)
    ids = [[[one.ids for one in group] for group in found] for found in (plain, merged, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_prompt_is_read_once_and_slots_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = []
    original = module._GroupSampler.run
    monkeypatch.setattr(module._GroupSampler, "run", lambda self: (samplers.append(self), original(self))[1])
    model, prompts = make_model(), make_prompts()
    found = sample_groups(model, prompts, [8] * 5, SamplingSettings(6, 1.0), END, max_concurrent=64)
    (sampler,) = samplers
    steps = sum(len(one.ids) - 1 for group in found for one in group)
    assert sampler.decoder.tokens_read == sum(len(ids) for _, ids in prompts) + steps
    samplers.clear()
    again = sample_groups(model, prompts, [8] * 5, SamplingSettings(6, 1.0), END, max_concurrent=8)
    (sampler,) = samplers
    assert [[one.ids for one in group] for group in again] == [[one.ids for one in group] for group in found]
    assert len(sampler.decoder.cache.lengths) == 8
    assert sampler.decoder.tokens_read <= 2 * sum(len(ids) for _, ids in prompts) + steps  # never once a completion


def test_free_slots_are_filled_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged completions take far fewer steps than one wave after the other would; no logits but of last tokens."""
    model, prompts, slots = make_model(), make_prompts(), 8
    steps, rows = [], []
    original = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, *a: (steps.append(len(a[0])), original(self, *a))[1])
    sampling = SamplingSettings(40, 1.0, stop_token_ids=tuple(range(3, 272, 7)))
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[:-1].numel())
    )
    found = sample_groups(model, prompts, [12] * 5, sampling, END, max_concurrent=slots)
    hook.remove()
    lengths = [len(one.ids) for group in reversed(found) for one in group]  # the longest prompt begins
    waves = sum(max(lengths[n : n + slots]) for n in range(0, len(lengths), slots))
    assert len(steps) < 0.8 * waves and max(steps) == slots
    assert sum(rows) <= sum(steps) + 2 * len(prompts) + 16  # a prompt may be read twice; a trial of the cache


def test_stop_tokens_and_strings_end_a_completion() -> None:
    model, prompts = make_model(), make_prompts()
    plain = sample_groups(model, prompts, [4] * 5, SamplingSettings(12, 1.0), END)

    def decode(ids: list[int]) -> str:
        return "".join(f"<{token}>" for token in ids)

    stop = plain[2][1].ids[3]
    by_id = sample_groups(model, prompts, [4] * 5, SamplingSettings(12, 1.0, stop_token_ids=(stop,)), END)
    by_text = SamplingSettings(12, 1.0, stop_strings=(f"<{stop}>", "never"))
    found = sample_groups(model, prompts, [4] * 5, by_text, END, decode=decode)
    assert by_id == found != plain
    for group, whole in zip(by_id, plain, strict=True):
        for one, other in zip(group, whole, strict=True):
            end = other.ids.index(stop) + 1 if stop in other.ids else len(other.ids)
            assert one.ids == other.ids[:end] and one.finished == (other.finished or stop in other.ids)
    assert by_id[2][1].ids[-1] == stop and len(by_id[2][1].ids) <= 4
    pair = plain[2][1].ids[2:4]  # a string that no token holds alone
    across = SamplingSettings(12, 1.0, stop_strings=(f"{pair[0]}><{pair[1]}",))
    (ended,) = sample_groups(model, prompts[2:3], [2], across, END, decode=decode)
    assert ended[1].ids == plain[2][1].ids[:4] and ended[1].finished
    generator = ConversationGenerator(model, END, by_text, num_slots=1, decode=decode)
    slot = generator.open("p2/1")
    assert generator.sample({slot: prompts[2][1]})[slot].ids == found[2][1].ids
    with pytest.raises(ValueError, match="stop_strings need `decode`"):
        sample_groups(model, prompts, [1] * 5, by_text, END)
    with pytest.raises(ValueError, match="stop_strings must not be empty"):
        SamplingSettings(stop_strings=("",))


def test_seed_and_bad_numbers() -> None:
    model, prompts = make_model(), make_prompts(1)
    first, second = (sample_groups(model, prompts, [2], SamplingSettings(6, 1.0), END, seed=seed) for seed in (0, 1))
    assert [one.ids for one in first[0]] != [one.ids for one in second[0]]
    assert first[0][0].ids != first[0][1].ids
    assert sample_groups(model, [], [], SamplingSettings(6, 1.0), END) == []
    with pytest.raises(ValueError, match="expected one size per prompt, got 1 prompts and 2 sizes"):
        sample_groups(model, prompts, [1, 2], SamplingSettings(6, 1.0), END)
    with pytest.raises(ValueError, match="max_concurrent must be >= 1, got 0"):
        sample_groups(model, prompts, [1], SamplingSettings(6, 1.0), END, max_concurrent=0)


def test_every_end_token_of_the_model_ends_a_completion() -> None:
    model, prompts = make_model(), make_prompts()
    model.generation_config.eos_token_id = None
    free = sample_groups(model, prompts, [4] * 5, SamplingSettings(12, 1.0), END)
    lists = [one.ids for group in free for one in group if len(one.ids) > 4]
    first, second, third = lists[0][1], lists[1][2], lists[2][3]  # some tokens that are sampled in the middle
    for eos, given in (([first, second, third], END), (first, [END, second, third])):
        model.generation_config.eos_token_id = eos
        ended = sample_groups(model, prompts, [4] * 5, SamplingSettings(12, 1.0), given)
        one_by_one_ended = []
        for name, ids in prompts:
            for number in range(4):
                generator = ConversationGenerator(model, given, SamplingSettings(12, 1.0), num_slots=1)
                slot = generator.open(f"{name}/{number}")
                one_by_one_ended.append(generator.sample({slot: ids})[slot].ids)
        short = 0
        for group, free_group in zip(ended, free, strict=True):
            for one, whole in zip(group, free_group, strict=True):
                places = [i for i, token in enumerate(whole.ids) if token in (END, first, second, third)]
                end = places[0] + 1 if places else len(whole.ids)
                assert one.ids == whole.ids[:end]  # the end is counted, once, and nothing behind it
                assert len(one.log_probs) == end and one.finished == bool(places)
                short += end < len(whole.ids)
        assert short >= 3
        assert one_by_one_ended == [one.ids for group in ended for one in group]


def test_ends_are_those_of_the_generation_config() -> None:
    model = make_model()
    assert model_end_ids(model) == (2,)
    model.generation_config.eos_token_id = [7, 8]
    assert model_end_ids(model) == model_end_ids(with_adapters(model)) == (7, 8)
    model.generation_config.eos_token_id = None
    assert model_end_ids(model) == ()
    with pytest.raises(ValueError, match="at least one token"):
        sample_groups(model, make_prompts(), [1] * 5, SamplingSettings(2), [])


def test_choices_do_not_reach_the_next_prompt_of_their_slot() -> None:
    """A stop token ends a completion within its sequence; the prompt that follows in the slot is free."""
    model = make_model()
    prompts = [("long", [3] * 9), ("short", [4, 6])]
    sampling = SamplingSettings(4, 1.0, stop_token_ids=(5,))
    choices = {0: TokenTrie([[5, 7, END]])}
    together = sample_groups(model, prompts, [1, 1], sampling, END, max_concurrent=2, choices=choices)
    one_slot = sample_groups(model, prompts, [1, 1], sampling, END, max_concurrent=1, choices=choices)
    assert [[one.ids for one in group] for group in one_slot] == [[one.ids for one in group] for group in together]
