"""ExGRPO: which completions are kept, which prompts come again, exact resume, and training."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from recorder import Recorder

from lit_rft import MixedPolicyGRPO, SamplingSettings
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules import PromptLoader
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import Rollout
from lit_rft.sources import DynamicSampling, ExGRPO
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import PromptFormat, completion_transcript


class Sampler:
    """A source of completions with given rewards; completion k of a prompt has the log-probability -k per token, in
    2 tokens or as many as `lengths` says."""

    traces_per_group = 1

    def __init__(self, rewards: dict[str, list[float]], lengths: tuple[int, ...] = ()) -> None:
        self.rewards, self.metrics, self.asked = rewards, {}, []  # type: ignore[var-annotated]
        self.lengths = dict(enumerate(lengths))

    def __call__(self, policy: Any, batch: PromptBatch) -> list[Rollout]:
        self.asked.append(list(batch.prompts))
        return [
            Rollout([completion_transcript(
                        prompt.problem.id, prompt.ids, [10 + k] * (self.lengths.get(k, 2) - 1) + [2], 2)],
                    f"answer {k}", group, False, True, reward, [[-float(k)] * self.lengths.get(k, 2)])
            for group, prompt in enumerate(batch.prompts)
            for k, reward in enumerate(self.rewards[prompt.problem.id])
        ]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Actor:
    device = torch.device("cpu")

    def __init__(self, occasion: str = "0") -> None:
        self.occasion = occasion


REWARDS = {
    "a": [0.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0], "c": [0.0, 0.0, 0.0], "d": [0.0, 0.0, 1.0],
    "x": [0.0] * 3, "y": [0.0] * 3,
}  # fmt: skip


def batch(names: str) -> PromptBatch:
    return PromptBatch([Prompt(Problem(n, (), "1", ()), [5], [[7, 2]], ["from the data"], [[]]) for n in names])


def ask(source: Any, names: str) -> list[Prompt]:
    source(Actor(), batch(names))
    prompts: list[Prompt] = source.source.asked[-1]
    return prompts


@pytest.mark.parametrize("inner", [None, DynamicSampling(2)], ids=["plain", "around another"])
def test_groups_without_room_for_a_trace_are_refused(inner: Any) -> None:
    def source(given: Any) -> Any:
        return ExGRPO()(given if inner is None else inner(given))

    MixedPolicyGRPO(objective=ObjectiveSettings(traces_per_group=1), source=source)
    with pytest.raises(ValueError, match=r"ExGRPO replays .* set objective.traces_per_group to 1 or more, got 0"):
        MixedPolicyGRPO(objective=ObjectiveSettings(traces_per_group=0), source=source)


def test_partly_solved_prompts_come_again_with_their_most_likely_right_completion() -> None:
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(REWARDS))
    first = ask(source, "abcd")
    assert [p.problem.id for p in first] == list("abcd") and not any(p.traces for p in first)
    assert set(source.buffer) == {"a", "d"} and float(source.metrics["replay_buffer"]) == 2
    second = ask(source, "xyxy")
    assert [p.problem.id for p in second[:2]] == ["x", "y"] and {p.problem.id for p in second[2:]} == {"a", "d"}
    replayed = {p.problem.id: (p.traces, p.trace_texts, p.trace_log_probs) for p in second[2:]}
    assert replayed["a"] == ([[11, 2]], ["answer 1"], [[-1.0, -1.0]])
    assert replayed["d"] == ([[12, 2]], ["answer 2"], [[-2.0, -2.0]])
    assert float(source.metrics["replayed_prompts"]) == 2


def test_completions_of_different_lengths_are_compared_per_token() -> None:
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(REWARDS, lengths=(2, 6, 2)))
    ask(source, "a")  # right: -1 in 6 tokens, and -2 in 2 tokens, whose sum is higher
    assert source.buffer["a"]["text"] == "answer 1"


def test_a_prompt_in_the_batch_is_not_replayed_and_a_solved_one_leaves() -> None:
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(dict(REWARDS)))
    ask(source, "ad")
    assert [p.problem.id for p in ask(source, "ax")] == ["a", "d"]
    source.source.rewards["d"] = [1.0, 1.0, 1.0]
    ask(source, "d")
    assert set(source.buffer) == {"a"}


def test_a_prompt_that_fails_again_keeps_its_completion_at_its_new_rate() -> None:
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(dict(REWARDS)))
    ask(source, "ac")
    assert source.buffer["a"]["rate"] == pytest.approx(2 / 3)
    source.source.rewards["a"] = [0.0, 0.0, 0.0]
    ask(source, "xa")
    assert source.buffer["a"]["rate"] == 0 and source.buffer["a"]["text"] == "answer 1" and "c" not in source.buffer


def test_a_kept_state_does_not_change_with_later_batches() -> None:
    """A signal during the update saves the state of before the batch, whose prompts are then sampled again."""
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(dict(REWARDS)))
    ask(source, "a")
    kept = source.state_dict()
    source.source.rewards["a"] = [0.0, 0.0, 0.0]
    ask(source, "a")
    assert source.buffer["a"]["rate"] == 0 and kept["buffer"]["a"]["rate"] == pytest.approx(2 / 3)


def test_the_draw_of_replays_depends_on_the_step_and_its_round() -> None:
    rewards = {name: [0.0, 1.0] for name in "abcdefgh"} | {"x": [0.0], "y": [0.0]}
    drawn: dict[str, set[str]] = {}
    for occasion in ("1", "1+1", "2", "3", "4"):
        for _ in range(2):  # of two sources that have seen the same
            source = ExGRPO(0.5, start_rate=0.0)(Sampler(rewards))
            ask(source, "abcdefgh")
            source(Actor(occasion), batch("xy"))
            drawn.setdefault(occasion, set()).add(source.source.asked[-1][1].problem.id)
    assert all(len(names) == 1 for names in drawn.values())
    assert len(set.union(*drawn.values())) > 1


def test_no_prompt_is_twice_in_a_batch_where_fewer_are_known_than_wanted() -> None:
    source = ExGRPO(0.5, start_rate=0.0)(Sampler(REWARDS))
    assert ask(source, "") == [] and not source.started
    ask(source, "d")
    assert [p.problem.id for p in ask(source, "xydc")] == list("xydc")


def test_medium_difficulty_is_drawn_most_often() -> None:
    rewards = {"m": [0.0, 1.0], "h": [0.0] * 9 + [1.0], "x": [0.0], "y": [0.0]}
    drawn = {"m": 0, "h": 0}
    for seed in range(60):
        source = ExGRPO(0.5, width=0.2, start_rate=0.0, seed=seed)(Sampler(rewards))
        ask(source, "mh")
        drawn[ask(source, "xy")[1].problem.id] += 1
    assert drawn["m"] > 2 * drawn["h"] > 0


@pytest.mark.parametrize("width", [0.02, 0.01, 1e-100])
def test_a_small_width_still_prefers_medium_difficulty(width: float) -> None:
    rewards = {"a": [0.0] * 7 + [1.0], "n": [0.0, 0.0, 1.0, 1.0, 1.0], "x": [0.0], "y": [0.0]}
    source = ExGRPO(0.5, width=width, start_rate=0.0)(Sampler(rewards))
    ask(source, "an")
    assert ask(source, "xy")[1].problem.id == "n"


def test_replay_starts_late_and_continues_from_a_checkpoint(tmp_path: Path) -> None:
    source = ExGRPO(0.5, start_rate=0.5)(Sampler(REWARDS))
    ask(source, "dccc")
    assert [p.problem.id for p in ask(source, "xy")] == ["x", "y"]  # too few are right
    ask(source, "ab")
    torch.save(source.state_dict(), tmp_path / "state.pt")
    resumed = ExGRPO(0.5, start_rate=0.5)(Sampler(REWARDS))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert ask(resumed, "xyxy") == ask(source, "xyxy")
    assert any(p.traces for p in source.source.asked[-1])
    with pytest.raises(ValueError, match=r"source.share must be in \[0, 1\]"):
        ExGRPO(1.5)


def replayed(seed: int = 0, **settings: Any) -> list[list[str]]:
    """Names of the prompts replayed in a fourth batch, by the settings and eight seeds."""
    rewards = {"m": [0.0, 0.4, 1.0, 1.0], "h": [0.0, 0.0, 0.0, 1.0], "l": [0.0, 0.4, 0.4, 0.4], "x": [0.0], "y": [0.0]}
    names = []
    for n in range(seed, seed + 8):
        source = ExGRPO(**{"share": 0.5, "start_rate": 0.2, **settings, "seed": n})(Sampler(rewards))
        for earlier in ("xy", "mh", "xyl"):
            ask(source, earlier)
        names.append([prompt.problem.id for prompt in ask(source, "xy") if prompt.traces])
    return names


@pytest.mark.parametrize(
    "knob", [{"share": 1.0}, {"width": 0.05}, {"right_reward": 0.3}, {"start_rate": 0.9}, {"seed": 100}], ids=str
)
def test_every_knob_changes_what_is_replayed(knob: dict[str, Any]) -> None:
    assert replayed() != replayed(**knob)


# --- training --------------------------------------------------------------------------------------------------------


def some_vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) >= 2) for text in completions]


def train(model: Path, source: Any, steps: int) -> tuple[MixedPolicyGRPO, list[dict[str, float]]]:
    form, prompts = PromptFormat(load_tokenizer(str(model))), []
    for n in range(6):
        problem = Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", ())
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), [], [], []))
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=6, traces_per_group=1, entropy_coef=0.0),
        SamplingSettings(max_new_tokens=8, temperature=1.0), reward=some_vowels, source=source,
    )  # fmt: skip
    recorder = Recorder()
    fit(stage, PromptLoader(prompts, batch_size=2), steps, callbacks=[recorder])
    return stage, recorder.logged


def test_the_reward_rises(tiny_model_folder: Path) -> None:
    _, logged = train(tiny_model_folder, ExGRPO(start_rate=0.0), 40)
    rewards = [metrics["train/reward"] for metrics in logged]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2, rewards
    assert max(metrics["train/replayed_prompts"] for metrics in logged) == 1


def test_the_share_changes_the_result(tiny_model_folder: Path) -> None:
    runs = [trained(train(tiny_model_folder, source, 8)[0])
            for source in (None, ExGRPO(0.5, start_rate=0.0), ExGRPO(1.0, start_rate=0.0))]  # fmt: skip
    assert differs(runs[0], runs[1]) and differs(runs[1], runs[2])
