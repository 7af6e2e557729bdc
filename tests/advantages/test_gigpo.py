"""GiGPO against a slow loop, its knobs, and training on an environment whose states recur."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft.advantages import GiGPO
from lit_rft.agents import Agent, FlatAgent, HierarchicalAgent, HierarchyPrompts
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.episodes import Episode, Outcome, Step, Subgoal
from lit_rft.generation import SamplingSettings
from lit_rft.rollouts import GroupAdvantages, Rollout, RolloutBatch, assign_advantages
from lit_rft.stages import (
    ActingSettings,
    MixedPolicyEpisodes,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.testing.tiny_stage import FLAT_PLAYER, fit
from lit_rft.transcripts import ChatFormat, collate_padded, completion_transcript

FLAT = FlatAgent("Act.")
AGENT = HierarchicalAgent(HierarchyPrompts("Plan.", "Act."))
CHAT = ChatFormat(make_tokenizer())


def make_rollout(
    group: int, seen: str, rewards: list[float], agent: Agent = FLAT, goals: tuple[str, ...] = ()
) -> Rollout:
    """An episode whose observations are the letters of `seen`, the first one before any step.

    Args:
        goals: of subgoals of two steps each.
    """
    steps, score = [], 0.0
    for letter, reward in zip(seen[1:], rewards, strict=True):
        score += reward
        steps.append(Step(f"to {letter}", letter, reward, score, True))
    spans = [Subgoal(2 * k, min(2 * k + 2, len(steps)), goal, True, "events") for k, goal in enumerate(goals)]
    episode = Episode("e", "env", "1", "t", "train", {"kind": "policy"}, "Go.", seen[0], steps, spans,
                      Outcome(score, False, False, True, "step_limit"))  # fmt: skip
    return Rollout(agent.transcripts(episode, CHAT), "", group, False, True, score, episode=episode, agent=agent)


def make_rollouts() -> list[Rollout]:
    return [
        make_rollout(0, "abac", [0.0, 0.5, 0.0]),
        make_rollout(0, "ab", [1.0]),
        make_rollout(0, "aca", [0.0, -1.0]),
        make_rollout(7, "abc", [0.25, 0.5]),
        make_rollout(7, "axb", [0.0, 0.0]),
    ]


@pytest.mark.parametrize(("weight", "discount", "scale"), [(1.0, 0.95, True), (0.5, 0.5, False), (2.0, 1.0, True)])
def test_decisions_equal_a_slow_loop(weight: float, discount: float, scale: bool) -> None:
    rollouts = make_rollouts()
    advantages = GiGPO(weight, discount, scale)(rollouts)
    places = [(i, t) for i, rollout in enumerate(rollouts) for t in range(len(rollout.episode.steps))]  # type: ignore[union-attr]

    def state(i: int, t: int) -> tuple[int, str]:
        episode = rollouts[i].episode
        assert episode is not None
        return rollouts[i].group, episode.steps[t - 1].observation if t else episode.initial_observation

    def following(i: int, t: int) -> float:
        episode = rollouts[i].episode
        assert episode is not None
        return sum(discount ** (k - t) * episode.steps[k].reward for k in range(t, len(episode.steps)))

    def spread(values: list[float]) -> float:
        return statistics.stdev(values) + 1e-6 if len(set(values)) > 1 else 1.0

    nonzero = 0
    for i, t in places:
        others = [rollout.reward for rollout in rollouts if rollout.group == rollouts[i].group]
        expected = (rollouts[i].reward - statistics.mean(others)) / spread(others)
        equal = [following(*place) for place in places if state(*place) == state(i, t)]
        step = (following(i, t) - statistics.mean(equal)) / (spread(equal) if scale else 1.0)
        nonzero += abs(step) > 1e-3
        assert advantages[i][0][t] == pytest.approx(expected + weight * step, abs=1e-5)
    assert nonzero >= 5


@pytest.mark.parametrize(
    "knob",
    [{"step_weight": 0.2}, {"discount": 0.1}, {"scale_by_std": False},
     {"episode_advantages": GroupAdvantages(scale_by_std=False)}],
    ids=lambda knob: next(iter(knob)),
)  # fmt: skip
def test_every_knob_counts(knob: dict[str, Any]) -> None:
    assert GiGPO(**knob)(make_rollouts()) != GiGPO()(make_rollouts())


def test_states_that_do_not_recur_leave_the_episodes_advantages() -> None:
    rollouts = [make_rollout(0, "abc", [0.0, 1.0]), make_rollout(0, "xyz", [0.0, 0.0])]
    expected = GroupAdvantages()(rollouts).tolist()
    assert GiGPO()(rollouts) == [[[value] * 2] for value in expected]
    assert GiGPO(0.0)(make_rollouts())[0] == [[GroupAdvantages()(make_rollouts()).tolist()[0]] * 3]


def test_levels_and_subgoals_are_part_of_a_state() -> None:
    rollouts = [
        make_rollout(0, "abdc", [0.0, 0.0, 1.0], AGENT, ("up", "on")),
        make_rollout(0, "abdc", [0.0, 0.5, 0.0], AGENT, ("down", "on")),
    ]
    high, low = 0, 1
    step = GiGPO(1.0, 1.0, scale_by_std=False, episode_advantages=lambda rollouts: torch.zeros(len(rollouts)))
    values = step(rollouts)
    assert values[0][high] == pytest.approx([0.25, 0.5]) and values[1][high] == pytest.approx([-0.25, -0.5])
    # the first two actions are for different subgoals, the third for the same one
    assert values[0][low] == pytest.approx([0.0, 0.0, 0.5]) and values[1][low] == pytest.approx([0.0, 0.0, -0.5])


def test_nothing_is_earned_after_the_last_step() -> None:
    """A last utterance that produced no step has the return 0 in its state."""
    rollouts = [make_rollout(0, "ab", [0.5]), make_rollout(0, "abb", [0.0, 1.0])]
    rollouts[0].transcripts[0].append_prompt([30])
    rollouts[0].transcripts[0].append_utterance([11, 2])
    step = GiGPO(1.0, 1.0, scale_by_std=False, episode_advantages=lambda rollouts: torch.zeros(len(rollouts)))
    (unfinished,), (finished,) = step(rollouts)
    assert unfinished == pytest.approx([-0.25, -0.5]) and finished == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize(
    ("settings", "message"), [({"step_weight": -1.0}, "step_weight"), ({"discount": 1.5}, "discount")], ids=str
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GiGPO(**settings)


def test_completions_are_refused() -> None:
    completion = Rollout([completion_transcript("p", [5], [8, 2], 2)], "", 0, False, True)
    with pytest.raises(ValueError, match="GiGPO compares the decisions of episodes"):
        GiGPO()([completion])


# --- advantages per decision or token, in a batch --------------------------------------------------------------------


def test_decisions_reach_their_tokens() -> None:
    rollouts = make_rollouts()[:2]
    assign_advantages(rollouts, lambda _: [[[1.0, 2.0, 3.0]], [[-1.0]]])
    transcripts = [rollout.transcripts[0] for rollout in rollouts]
    batch = RolloutBatch.of(collate_padded(transcripts, 0), rollouts)
    assert batch.advantages.shape == batch.mask.shape and (batch.advantages[~batch.mask] == 0).all()
    rows = [set(row[mask].tolist()) for row, mask in zip(batch.advantages, batch.mask, strict=True)]
    assert rows == [{1.0}, {2.0}, {3.0}, {-1.0}]
    assert rollouts[1].advantage == -1.0 and rollouts[0].has_advantage
    lengths = [int(n) for n in batch.mask.sum(1)]
    assert rollouts[0].advantage == pytest.approx((lengths[0] + 2 * lengths[1] + 3 * lengths[2]) / sum(lengths[:3]))


def test_tokens_may_differ_and_rollouts_may_have_one_advantage() -> None:
    first, second = make_rollouts()[:2]
    values = [float(n) for n in range(first.length)]
    first.set_advantages([values])
    second.set_advantages(0.5)
    batch = RolloutBatch.of(collate_padded([first.transcripts[0], second.transcripts[0]], 0), [first, second])
    assert batch.advantages[:3][batch.mask[:3]].tolist() == values
    assert set(batch.advantages[3][batch.mask[3]].tolist()) == {0.5}
    first.set_advantages(0.25)
    plain = RolloutBatch.of(collate_padded([first.transcripts[0], second.transcripts[0]], 0), [first, second])
    assert plain.advantages.tolist() == [0.25, 0.25, 0.25, 0.5]


def test_wrong_numbers_are_refused() -> None:
    rollout = make_rollouts()[0]
    with pytest.raises(ValueError, match=r"each of 3 decisions or \d+ tokens of a transcript, got 2"):
        rollout.set_advantages([[1.0, 2.0]])
    with pytest.raises(ValueError, match="advantages of 1 transcripts, got 2"):
        rollout.set_advantages([[1.0] * 3, [1.0] * 3])


def test_equal_values_per_decision_have_the_same_loss_as_one_per_rollout() -> None:
    rollouts = make_rollouts()[:2]
    once = [dataclasses.replace(rollout, advantage=value) for rollout, value in zip(rollouts, (0.5, -2.0), strict=True)]
    each = make_rollouts()[:2]
    assign_advantages(each, lambda _: [[[0.5] * 3], [[-2.0]]])
    batches = [RolloutBatch.of(collate_padded([r.transcripts[0] for r in rs], 0), rs) for rs in (once, each)]
    torch.testing.assert_close(batches[0].advantages[:, None] * batches[0].mask, batches[1].advantages)


# --- training --------------------------------------------------------------------------------------------------------


class Scores(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reward"]))


def train(model: Path, folder: Path, steps: int, advantages: Any) -> tuple[MixedPolicyEpisodes, list[float]]:
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(model), lora=None),
        OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=8, traces_per_group=0, entropy_coef=0.0),
        SamplingSettings(6, 1.0),
        ActingSettings(SamplingSettings(6), parallel_episodes=8, pool=PoolSettings(threads=True)),
        FLAT_PLAYER,
        advantages=advantages,
    )
    suite = GymSuite("vowels_env.Vowels", step_limit=2, seeds={"train": 2, "dev": 1, "test": 1})
    data = EpisodeGroupDataModule(
        model=str(model), suite=suite, data_dir=str(folder), train_episodes_per_task=2, batch_size=2
    )
    scores = Scores()
    fit(stage, data, steps, callbacks=[scores])
    return stage, scores.values


def test_the_reward_rises(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    stage, rewards = train(tiny_model_folder, tmp_path, 16, GiGPO())
    # the two turns of an episode have different advantages
    assert any(len(set(rollout.token_advantages[0])) > 1 for rollout in stage.samples)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3, rewards
