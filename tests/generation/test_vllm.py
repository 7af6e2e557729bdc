"""The client of a generation server, against a small one with a real model behind it, over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import END, PROMPTS, FakeVllm, adapted, folders, serving

from lit_rft.generation import (
    ConversationGenerator,
    Conversations,
    SamplingSettings,
    ServedAdapter,
    ServedConversations,
    ServerSettings,
    VllmServer,
    sample_groups,
)
from lit_rft.testing.tiny import make_model

NONE = ServedAdapter("none", "")


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(make_model())


@pytest.fixture
def server(fake: FakeVllm) -> Iterator[VllmServer]:
    with serving(fake) as url:
        yield VllmServer(ServerSettings(url, timeout=60))


def test_what_is_sampled_is_the_adapters(fake: FakeVllm, server: VllmServer) -> None:
    model = adapted()
    name = server.load(model.save_pretrained)
    found = server.sample_groups(name, PROMPTS, [3, 0, 2], SamplingSettings(9, 0.7), END)
    assert [len(group) for group in found] == [3, 0, 2]
    for (_, ids), group in zip(PROMPTS, found, strict=True):
        for one in group:
            assert one.finished == (one.ids[-1] == END) and len(one.ids) <= 9
            logits = model(torch.tensor([ids + one.ids])).logits[0, len(ids) - 1 : -1]
            expected = torch.log_softmax(logits / 0.7, -1).gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
            assert one.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
    base = sample_groups(make_model(), PROMPTS, [3, 0, 2], SamplingSettings(9, 0.7), END)
    assert [[one.ids for one in group] for group in found] != [[one.ids for one in group] for group in base]


def test_finished_completions_are_reported(server: VllmServer) -> None:
    """For the progress bar; those of a prompt arrive together, in any order of the prompts."""
    name, reported = server.load(adapted().save_pretrained), []
    for temperature in (0.7, 0.0):  # one of several greedy completions is sampled
        reported.append([])
        server.sample_groups(name, PROMPTS, [3, 0, 2], SamplingSettings(4, temperature), END,
                             report=lambda done, total: reported[-1].append((done, total)))  # fmt: skip
    assert all(calls in ([(3, 5), (5, 5)], [(2, 5), (5, 5)]) for calls in reported)


def test_stop_strings_end_completions(fake: FakeVllm, server: VllmServer) -> None:
    name = server.load(adapted().save_pretrained)
    (plain,) = server.sample_groups(name, PROMPTS[:1], [4], SamplingSettings(12, 1.0), END)
    stop = plain[0].ids[2]
    (found,) = server.sample_groups(name, PROMPTS[:1], [4], SamplingSettings(12, 1.0, stop_strings=(f"<{stop}>",)), END)
    for one, whole in zip(found, plain, strict=True):
        end = whole.ids.index(stop) + 1 if stop in whole.ids else len(whole.ids)
        assert one.ids == whole.ids[:end] and one.log_probs == pytest.approx(whole.log_probs[:end], abs=1e-4)
        assert one.finished == (whole.finished or stop in whole.ids)
    assert found[0].finished and len(found[0].ids) <= 3


def test_every_setting_reaches_the_server(fake: FakeVllm, server: VllmServer) -> None:
    name = server.load(adapted().save_pretrained)
    sampling = SamplingSettings(7, 0.3, top_k=5, top_p=0.9, stop_token_ids=(9,))
    server.sample_groups(name, PROMPTS[:1], [2], sampling, END, seed=3)
    server.sample_groups(name, PROMPTS[:1], [2], SamplingSettings(7, 0.3, stop_strings=("x",)), END, seed=4)
    (_, first), (_, second) = fake.requests[2:]  # after loading, and a look at the log-probabilities
    expected = {"model": name.name, "prompt": [5, 6, 7], "n": 2, "max_tokens": 7, "temperature": 0.3, "top_k": 5,
                "top_p": 0.9, "stop_token_ids": [END, 9], "stop": [], "ignore_eos": True, "return_token_ids": True,
                "repetition_penalty": 1.0}  # fmt: skip
    assert expected.items() <= first.items()
    assert second["top_k"] == -1 and second["stop"] == ["x"] and second["seed"] != first["seed"]


def test_every_end_token_reaches_the_server_and_is_taken_for_an_end(fake: FakeVllm, server: VllmServer) -> None:
    name = server.load(adapted().save_pretrained)
    (plain,) = server.sample_groups(name, PROMPTS[:1], [4], SamplingSettings(12, 1.0), END)
    other = plain[0].ids[1]
    (found,) = server.sample_groups(name, PROMPTS[:1], [4], SamplingSettings(12, 1.0), [END, other])
    conversations = ServedConversations(server, name, [END, other], SamplingSettings(12, 1.0), num_slots=1)
    slot = conversations.open("a")
    said = conversations.sample({slot: [5, 6, 7]})[slot]
    assert [request["stop_token_ids"] for _, request in fake.requests[-2:]] == [[END, other]] * 2
    assert found[0].ids == plain[0].ids[: plain[0].ids.index(other) + 1] and found[0].finished
    assert said.finished == (said.ids[-1] in (END, other))


def test_a_prompts_seed_is_its_own(fake: FakeVllm, server: VllmServer) -> None:
    name = server.load(adapted().save_pretrained)
    sampling = SamplingSettings(9, 1.0)
    both = server.sample_groups(name, PROMPTS[:2], [2, 2], sampling, END, seed=1)
    (alone,) = server.sample_groups(name, PROMPTS[1:2], [2], sampling, END, seed=1)
    assert [one.ids for one in both[1]] == [one.ids for one in alone]


def test_adapters_come_and_go(fake: FakeVllm, server: VllmServer, tmp_path: Path) -> None:
    server = VllmServer(replace(server.settings, adapter_dir=str(tmp_path / "served")))
    first, second = server.load(adapted(0).save_pretrained), server.load(adapted(1).save_pretrained)
    assert set(fake.adapters) == {first.name, second.name}
    assert all(folder.parent == tmp_path / "served" and folder.is_dir() for folder in folders(fake))
    server.unload(first)
    assert set(fake.adapters) == {second.name}
    server.unload(ServedAdapter("another process's", ""))
    server.unload(second)
    assert not fake.adapters and not list((tmp_path / "served").iterdir())


def drop_ids(answer: Any) -> Any:
    answer["choices"] = [{**choice, "token_ids": None} for choice in answer["choices"]]
    return answer


def drop_log_probs(answer: Any) -> Any:
    answer["choices"][0]["logprobs"] = None
    return answer


def drop_choice(answer: Any) -> Any:
    return {"choices": answer["choices"][1:]}


def cut(answer: Any) -> Any:
    choice = answer["choices"][0]
    choice |= {"token_ids": [9, 9], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "length"}
    return answer


def drop_end(answer: Any) -> Any:
    for choice in answer["choices"]:
        choice |= {"finish_reason": "stop", "token_ids": [*choice["token_ids"][:-1], 77]}
    return answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_ids, "expected token_ids"),
        (drop_log_probs, "expected a log-probability"),
        (drop_choice, "expected 2 completions from the server, got 1"),
        (drop_end, ", got 77"),
        (cut, "expected up to 5 tokens, got a completion cut after 2"),
    ],
)
def test_a_wrong_answer_is_refused(fake: FakeVllm, server: VllmServer, change: Any, message: str) -> None:
    name = server.load(adapted().save_pretrained)
    fake.change = change
    with pytest.raises(RuntimeError, match=message):
        server.sample_groups(name, PROMPTS[:1], [2], SamplingSettings(5, 1.0), END)


def test_an_end_in_the_last_place_is_an_end(fake: FakeVllm, server: VllmServer) -> None:
    def end(answer: Any) -> Any:
        for choice in answer["choices"]:
            choice |= {"token_ids": [9, END], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "length"}
        return answer

    name = server.load(adapted().save_pretrained)
    fake.change = end
    ((one,),) = server.sample_groups(name, PROMPTS[:1], [1], SamplingSettings(2, 1.0), END)
    assert one.finished and one.ids == [9, END]


def test_the_most_likely_completion_is_asked_for_once(fake: FakeVllm, server: VllmServer) -> None:
    name = server.load(adapted().save_pretrained)
    (group,) = server.sample_groups(name, PROMPTS[:1], [3], SamplingSettings(5), END)
    assert len(group) == 3 and group[0] == group[1] == group[2]
    assert fake.requests[-1][1]["n"] == 1


def test_other_log_probs_are_refused(fake: FakeVllm, server: VllmServer) -> None:
    fake.processed = False
    with pytest.raises(RuntimeError, match="--logprobs-mode processed_logprobs"):
        server.load(adapted().save_pretrained)
    server.close()
    assert not fake.adapters


def test_what_is_left_behind_goes_with_the_client(fake: FakeVllm) -> None:
    with serving(fake) as url:
        server = VllmServer(ServerSettings(url, timeout=60))
        server.load(adapted().save_pretrained)
        assert len(fake.adapters) == 1
        del server
        assert not fake.adapters and not folders(fake)[0].exists()


def test_a_server_that_has_gone_does_not_keep_a_run_from_ending(fake: FakeVllm, caplog: Any) -> None:
    with serving(fake) as url:
        server = VllmServer(ServerSettings(url, timeout=60))
        name = server.load(adapted().save_pretrained)
    server.unload(name)
    assert "from the server" in caplog.text and not folders(fake)[0].exists()


def test_sizes_and_prompts_are_checked(server: VllmServer) -> None:
    with pytest.raises(ValueError, match="expected one size per prompt, got 3 prompts and 1 sizes"):
        server.sample_groups(NONE, PROMPTS, [1], SamplingSettings(5), END)


def test_what_the_server_says_is_passed_on(fake: FakeVllm, server: VllmServer) -> None:
    fake.fault = lambda path, content: 400 if path == "/v1/completions" else None
    with pytest.raises(RuntimeError, match=r"rejected http\S+/v1/completions \(400\).*a fault"):
        server.sample_groups(NONE, PROMPTS[:1], [2], SamplingSettings(5, 1.0), END)


def test_no_server() -> None:
    with pytest.raises(RuntimeError, match="is `vllm serve` running there"):
        VllmServer(ServerSettings("http://127.0.0.1:9", timeout=5, patience=0.5)).load(adapted().save_pretrained)


@pytest.mark.parametrize(
    "settings", [{"url": "127.0.0.1:8000"}, {"timeout": 0}, {"patience": 0}, {"parallel_requests": 0}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"server.{next(iter(settings))}"):
        ServerSettings(**settings)


def test_conversations_equal_those_with_a_cache(server: VllmServer) -> None:
    """Greedily, turn by turn, with one that begins later, one that is forgotten and one that ends."""
    model = adapted()
    sampling = SamplingSettings(5)
    served = ServedConversations(server, server.load(model.save_pretrained), END, sampling, num_slots=2)
    cached = ConversationGenerator(model, END, sampling, num_slots=2)
    found: list[Any] = []
    for kind in (served, cached):
        generator: Conversations = kind
        one = generator.open("one")
        turns = [generator.sample({one: [5, 6]})]
        two = generator.open("two")
        turns.append(generator.sample({two: [7, 8, 9], one: [10]}))
        generator.forget(one)
        turns.append(generator.sample({one: [11, 12]}))
        generator.close(two)
        turns.append(generator.sample({generator.open("three"): [13, 14]}))
        found.append(turns)
    for mine, plain in zip(*found, strict=True):
        assert mine.keys() == plain.keys()
        for slot in mine:
            assert mine[slot].ids == plain[slot].ids and mine[slot].finished == plain[slot].finished
            assert mine[slot].log_probs == pytest.approx(plain[slot].log_probs, abs=1e-4)
    assert served.tokens_sampled == sum(len(one.ids) for turn in found[0] for one in turn.values())


def test_slots_of_served_conversations_are_limited(server: VllmServer) -> None:
    served = ServedConversations(server, NONE, END, SamplingSettings(5), num_slots=1)
    slot = served.open("one")
    with pytest.raises(RuntimeError, match="all 1 slots are taken"):
        served.open("two")
    with pytest.raises(ValueError, match="needs at least one new prompt id"):
        served.sample({slot: []})
    served.close(slot)
    assert served.open("two") == slot
