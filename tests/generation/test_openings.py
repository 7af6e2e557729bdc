"""Shared openings are read once, and change no sample."""

import random
from typing import Any

import pytest
import torch

from lit_rft.generation import Completion, ConversationGenerator, SamplingSettings, sample_groups
from lit_rft.generation.decoder import Decoder
from lit_rft.generation.kv_cache import SlotCache
from lit_rft.generation.openings import Share, plan_shares
from lit_rft.models import FAST_PATHS, accelerate
from lit_rft.testing.tiny import make_model, with_adapters

END = 2
SLIDING = {"sliding_window": 16}
ARCHITECTURES = {"llama": {}, "qwen2": {}, "gemma2": SLIDING, "mistral": SLIDING, "bloom": {}}


def ids_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 270) for _ in range(length)]


SYSTEM = ids_of(100, 40)


def test_a_group_reads_its_prompt_once() -> None:
    prompt = ids_of(0, 50)
    assert plan_shares({}, dict.fromkeys(range(4), prompt)) == {0: Share()} | {
        slot: Share(0, 49, 1)
        for slot in range(1, 4)  # the last token is read: it gives the logits
    }


def test_groups_with_the_same_system_prompt_read_it_once() -> None:
    prompts = [SYSTEM + [group, *ids_of(group, 40)] for group in (3, 3, 4, 4, 5)]
    shares = plan_shares({}, dict(enumerate(prompts)))
    assert shares[4] == Share() and shares[0] == shares[2] == Share(4, 40, 1)
    assert shares[1] == Share(0, 80, 2) and shares[3] == Share(2, 80, 2)


def test_nested_openings_are_copied_from_the_longest() -> None:
    """The states of an episode, whose decisions are sampled again: one pass reads it, one more all others."""
    ids = ids_of(0, 400)
    shares = plan_shares({}, {slot: ids[: 100 * (1 + slot)] for slot in range(4)})
    assert shares == {3: Share()} | {slot: Share(3, 100 * (1 + slot) - 1, 1) for slot in range(3)}


def test_what_is_in_the_cache_takes_no_further_pass() -> None:
    new = SYSTEM + ids_of(1, 5)
    assert plan_shares({7: SYSTEM + [200] * 5}, {0: SYSTEM, 1: SYSTEM + [100] * 5})[1] == Share(7, 40, 0)
    assert plan_shares({7: SYSTEM + ids_of(2, 5)}, {0: new}) == {0: Share(7, 40, 0)}
    assert plan_shares({7: new}, {0: new, 1: new}) == {0: Share(7, 44, 0), 1: Share(7, 44, 0)}
    assert plan_shares({7: ids_of(3, 60)}, {0: new}) == {0: Share()}


def test_short_openings_are_not_worth_a_pass() -> None:
    for shared, copied in ((31, 0), (32, 32)):
        prompts = {slot: SYSTEM[:shared] + [3 + slot] * 9 for slot in (0, 1)}
        assert max(share.length for share in plan_shares({}, prompts).values()) == copied


@pytest.mark.parametrize("seed", range(20))
def test_plans_are_valid_and_find_the_longest(seed: int) -> None:
    """Random trees of openings; sources are read before, and agree in what is copied."""
    rng = random.Random(seed)
    trunks = [SYSTEM + ids_of(rng.randrange(3), 40) for _ in range(4)]
    ends = [ids_of(end, rng.randint(1, 9)) for end in range(7)]
    prompts = {slot: rng.choice(trunks)[: rng.randint(1, 80)] + rng.choice(ends) for slot in range(12)}
    cached = {slot: prompts.pop(slot) for slot in rng.sample(range(12), rng.randint(0, 6))}
    everything, shares = {**cached, **prompts}, plan_shares(cached, prompts)
    assert shares.keys() == prompts.keys()
    for slot, share in shares.items():
        if share.source is not None:
            assert 32 <= share.length < len(prompts[slot]) and share.step <= 2
            assert everything[share.source][: share.length] == prompts[slot][: share.length]
            assert share.step == (0 if share.source in cached else shares[share.source].step + 1)
        others = [common(ids, prompts[slot]) for other, ids in cached.items()]
        assert share.length >= max([length for length in others if length >= 32], default=0)


def common(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b) - 1) and a[length] == b[length]:
        length += 1
    return length


def talk(model: Any, shared: bool) -> tuple[list[Completion], int]:
    """Hold five conversations in four slots: two that begin alike, one that joins, one after another has ended."""
    accelerate(model, [name for name in FAST_PATHS if shared or name != "shared_openings"])
    generator = ConversationGenerator(model, END, SamplingSettings(6, 1.0), num_slots=4)
    prompts = {name: SYSTEM + ids_of(seed, 12) for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 0))}
    slots = {name: generator.open(name) for name in "abc"}
    said = list(generator.sample({slots[name]: prompts[name] for name in "abc"}).values())
    slots["d"] = generator.open("d")
    said += generator.sample({slots["a"]: ids_of(9, 3), slots["d"]: prompts["d"], slots["c"]: [5]}).values()
    generator.close(slots["a"])
    generator.forget(slots["b"])
    slots["e"] = generator.open("e")
    said += generator.sample({slots["b"]: ids_of(8, 45), slots["e"]: prompts["e"], slots["d"]: [7, 8]}).values()
    return said, generator.tokens_read


@pytest.mark.parametrize(("architecture", "adapted"), [*((name, False) for name in ARCHITECTURES), ("llama", True)])
def test_samples_are_the_same_and_fewer_tokens_are_read(architecture: str, adapted: bool) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    model = with_adapters(model) if adapted else model
    (said, few), (expected, many) = talk(model, True), talk(model, False)
    assert [part.ids for part in said] == [part.ids for part in expected]
    for part, other in zip(said, expected, strict=True):
        assert part.log_probs == pytest.approx(other.log_probs, abs=1e-6)
    # b copies 51 tokens of a's, c, d and e 40 or more; Bloom has no cache
    assert many - few == (0 if architecture == "bloom" else 51 + 40 + 40 + 40)


def test_prompts_of_groups_share_their_system_prompt() -> None:
    """More completions than slots, so that slots are used again with other prompts."""
    model = make_model()
    prompts = [(str(seed), SYSTEM + ids_of(seed, 10 + seed)) for seed in range(4)]
    groups = []
    for names in (FAST_PATHS, [name for name in FAST_PATHS if name != "shared_openings"]):
        accelerate(model, list(names))
        groups.append(sample_groups(model, prompts, [3] * 4, SamplingSettings(7, 1.0), END, max_concurrent=5))
    first, second = ([[completion.ids for completion in group] for group in side] for side in groups)
    assert first == second


@pytest.mark.parametrize("length", [63, 64, 65, 128])
def test_openings_may_fill_the_cache(length: int) -> None:
    """A cache grows by 64 tokens: a copy of all that it holds is one of overlapping memory."""
    model, ids = make_model(), ids_of(length, length)
    generator = ConversationGenerator(model, END, SamplingSettings(2), num_slots=3)
    a, b, c = (generator.open(name) for name in "abc")
    sampled = generator.sample({a: ids, b: [*ids, 7], c: ids})
    assert sampled[a].ids == sampled[c].ids and generator.tokens_read >= length + 2
    groups = sample_groups(model, [("a", ids)], [3], SamplingSettings(2), END)
    assert [completion.ids for completion in groups[0]] == [sampled[a].ids] * 3


def test_a_pass_that_failed_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), SYSTEM + ids_of(0, 5)
    generator = ConversationGenerator(model, END, SamplingSettings(3), num_slots=2)
    expected = generator.sample({generator.open("a"): ids})[0]
    slot, forward = generator.open("b"), Decoder._pass
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Decoder, "_pass", lambda *_: (_ for _ in ()).throw(MemoryError()))
        generator.sample({slot: ids})
    assert Decoder._pass is forward
    assert generator.sample({slot: ids})[slot].log_probs == pytest.approx(expected.log_probs, abs=1e-6)


def test_layers_that_share_keys_are_left_alone() -> None:
    """Of Gemma 3n, for example: the last layers never write to the cache."""
    cache = SlotCache(2, 2)
    cache.prepare([0], 2, torch.device("cpu"))
    cache.layers[0].update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    cache.commit([0], [2])
    cache.copy_prefix(0, [1], 1)
    assert cache.lengths == [2, 1]


def test_the_cache_knows_what_is_in_it() -> None:
    """A cleared slot has no opening: its row may be exchanged or written. A copy has what was copied."""
    cache = SlotCache(1, 3)
    store, keys = cache.layers[0], torch.zeros(1, 1, 4, 2)
    cache.prepare([0], 4, torch.device("cpu"))
    store.update(keys, keys)
    cache.commit([0], [4])
    cache.openings[0] = [5, 6, 7, 8]
    cache.copy_prefix(0, [1, 2], 3)
    assert cache.openings == [[5, 6, 7, 8], [5, 6, 7], [5, 6, 7]] and cache.lengths == [4, 3, 3]
    cache.clear(0)
    assert cache.openings[0] == [] and cache.lengths[0] == 0
