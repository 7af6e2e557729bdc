"""Static steps: the same path as captured ones take on a GPU, computed each time instead of replayed."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_rft.generation import SamplingSettings, decoder, graphs, sample_groups
from lit_rft.generation.decoder import Decoder
from lit_rft.generation.graphs import StepGraphs, can_capture, rows_of_graph
from lit_rft.models.accel import FAST_PATHS, accelerate
from lit_rft.testing.tiny import make_model

END = 2


@pytest.mark.parametrize(("rows", "slots", "expected"), [(1, 64, 8), (8, 64, 8), (9, 64, 16), (33, 40, 40), (3, 4, 4)])
def test_rows_are_padded_to_few_sizes(rows: int, slots: int, expected: int) -> None:
    assert rows_of_graph(rows, slots) == expected


def static(model: Any, **settings: Any) -> Decoder:
    made = Decoder(model, 12, END)
    made.graphs = StepGraphs(model, END, capture=False, **settings)
    return made


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma3_text"])
def test_a_static_step_is_a_step(architecture: str) -> None:
    """Idle slots between the active ones, padding rows and a growing cache included."""
    model = make_model(architecture)
    both = [Decoder(model, 12, END), static(model, eager_steps=1)]
    found: list[list[torch.Tensor]] = []
    for one in both:
        with one.ready():
            one.read({slot: list(range(3, 6 + 2 * slot)) for slot in range(12)})
            said = [one.step([7, 2, 4], [5 + n, 9, 11]) for n in range(70)]  # behind the first 64 tokens of the cache
            said += [one.step(list(range(9)), list(range(20, 29))) for _ in range(3)]  # idle ones have kept theirs
        found.append(said)
    assert both[0].cache.lengths == both[1].cache.lengths and both[0].tokens_read == both[1].tokens_read
    for eager, fixed in zip(*found, strict=True):
        torch.testing.assert_close(fixed, eager, rtol=1e-4, atol=1e-4)


def test_static_steps_are_taken_after_some_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made = StepGraphs(make_model(), END, capture=False, eager_steps=2)
    made.keep_only_for("here")

    def step(rows: int) -> torch.Tensor | None:
        return made.step(lambda ids, positions: ids.float() + positions, [5], [3] * rows)

    assert [step(8) is None for _ in range(4)] == [True, True, False, False]
    assert step(16) is None
    found = step(8)
    assert found is not None and found.tolist() == [[8.0]]
    made.keep_only_for("here")
    assert step(8) is not None
    made.keep_only_for("elsewhere")
    assert step(8) is None


@torch.no_grad()
def test_completions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen2")
    prompts = [("a", list(range(3, 12))), ("b", list(range(20, 43)))]

    def completions() -> list[Any]:
        return sample_groups(model, prompts, [6, 5], SamplingSettings(20, 1.0), END, seed=1, max_concurrent=9)

    expected = completions()
    monkeypatch.setattr(decoder, "can_capture", lambda model: True)
    monkeypatch.setattr(decoder, "StepGraphs", lambda *given: StepGraphs(*given, capture=False, eager_steps=1))
    for group, same in zip(completions(), expected, strict=True):
        for one, other in zip(group, same, strict=True):
            assert one.ids == other.ids
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_a_step_that_cannot_be_captured_is_left_to_the_caller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    made = StepGraphs(model, END, eager_steps=0)

    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs.StaticStep, "_record", refuse)
    with caplog.at_level(logging.WARNING):
        assert [made.step(lambda ids, positions: ids, [5], [3]) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1 and "not permitted" in caplog.text
    assert model in graphs._refused


def test_nothing_is_captured_on_a_cpu() -> None:
    assert not can_capture(make_model())


def test_the_switch_turns_graphs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = SimpleNamespace(data=torch.zeros(1), device=torch.device("cuda"))

    def captured(choice: Any) -> bool:
        model = make_model()
        accelerate(model, choice)
        with monkeypatch.context() as patched:
            patched.setattr(model, "parameters", lambda: iter([weight]))
            return can_capture(model)

    assert captured("auto")
    assert not captured("off")
    assert not captured([name for name in FAST_PATHS if name != "cuda_graphs"])
