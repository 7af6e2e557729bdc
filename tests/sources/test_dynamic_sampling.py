"""Dynamic sampling: which prompts are sampled, what is kept, and training with it."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_stage import make_grpo, make_prompts
from recorder import Recorder

from lit_rft import GRPO, SamplingSettings
from lit_rft.batches import EpisodeGroup, EpisodeGroupBatch, Prompt, PromptBatch
from lit_rft.datamodules import PromptLoader
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.losses import HPT
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.models.backbone import model_end_ids
from lit_rft.problems import Problem
from lit_rft.rollouts import CompletionSource, Policy, Rollout
from lit_rft.rollouts.episode_groups import EpisodeGroupSource
from lit_rft.sources import DynamicSampling
from lit_rft.sources.wrapped import num_groups, select_groups
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import ChatFormat, PromptFormat, completion_transcript


class Graded:
    """A source whose groups have given rewards, by the name of the prompt."""

    def __init__(self, rewards: dict[str, list[float]], imitated: bool = False) -> None:
        self.rewards, self.imitated, self.asked = rewards, imitated, []  # type: ignore[var-annotated]
        self.metrics: dict[str, torch.Tensor] = {}

    def __call__(self, policy: Any, batch: Any) -> list[Rollout]:
        names = [prompt.problem.id for prompt in batch.prompts]
        self.asked.append(names)
        self.metrics = {"score": torch.tensor(float(len(self.asked)))}
        transcript = completion_transcript("p", [5], [8, 2], 2)
        rollouts = [
            Rollout([transcript], name, group, False, True, reward)
            for group, name in enumerate(names)
            for reward in self.rewards[name]
        ]
        if self.imitated:
            rollouts += [Rollout([transcript], name, group, True, True, 9.0, counts_in_baseline=False)
                         for group, name in enumerate(names)]  # fmt: skip
        return rollouts


def actor(step: int = 0) -> Policy:
    return Policy(torch.nn.Linear(1, 1), None, step)  # type: ignore[arg-type]


def prompts(names: str) -> PromptBatch:
    return PromptBatch([Prompt(Problem(name, (), "1", ()), [5], [], [], []) for name in names])


MIXED, EQUAL = [1.0, 0.0], [1.0, 1.0]


def test_further_prompts_take_the_place_of_groups_without_a_signal() -> None:
    graded = Graded({"a": MIXED, "b": EQUAL, "c": [0.0, 0.0], "d": MIXED, "e": EQUAL, "f": MIXED, "g": MIXED}, True)
    source = DynamicSampling(3)(graded)
    rollouts = source(actor(), prompts("abcdefg"))
    assert graded.asked == [["a", "b", "c"], ["d", "e"], ["f"]]  # and no more than that
    assert [(r.text, r.group) for r in rollouts if r.counts_in_baseline] == [
        ("a", 0), ("a", 0), ("d", 3), ("d", 3), ("f", 5), ("f", 5),
    ]  # fmt: skip
    imitated = {r.text: r.group_reward for r in rollouts if not r.counts_in_baseline}
    assert imitated == {"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.5, "e": 1.0, "f": 0.5}  # for losses with a gate
    metrics = {name: float(value) for name, value in source.metrics.items()}
    assert metrics == pytest.approx({
        "sampled_groups": 6, "kept_groups": 3, "sampling_rounds": 3, "sampled_reward": 7 / 12,
        "score": (3 * 1 + 2 * 2 + 1 * 3) / 6,
    })  # fmt: skip


def test_the_batch_is_the_bound() -> None:
    graded = Graded({"a": EQUAL, "b": MIXED, "c": EQUAL})
    source = DynamicSampling(2)(graded)
    assert {r.text for r in source(actor(), prompts("abc"))} == {"b"}
    assert graded.asked == [["a", "b"], ["c"]] and float(source.metrics["kept_groups"]) == 1
    assert DynamicSampling(2)(Graded({"a": EQUAL}))(actor(), prompts("a")) == []
    with pytest.raises(ValueError, match=r"source.groups must be >= 1, got 0"):
        DynamicSampling(0)


def test_groups_of_episodes_are_selected_too() -> None:
    jobs = EpisodeJobs([], int, [])  # type: ignore[arg-type]
    batch = EpisodeGroupBatch([EpisodeGroup(EpisodeSpec(str(n), "t", "train"), []) for n in range(3)], jobs)
    chosen = select_groups(batch, [2, 0])
    assert isinstance(chosen, EpisodeGroupBatch) and [group.job.id for group in chosen.groups] == ["2", "0"]
    assert num_groups(batch) == 3 and chosen.jobs is jobs


def same_rewards(completions: Any, rows: Any) -> list[float]:
    return [1.0] * len(completions)


def test_a_problem_that_comes_again_in_a_later_round_has_other_completions(tiny_model_folder: Path) -> None:
    chat, model = ChatFormat(load_tokenizer(str(tiny_model_folder))), load_backbone(str(tiny_model_folder))
    chat.add_end_ids(model_end_ids(model))
    problem = Problem("p", ({"role": "user", "content": "Question?"},), "1", ())
    prompt = Prompt(problem, PromptFormat(chat.tokenizer).prompt_ids(problem.prompt), [], [], [])

    def sampled(rounds: int, dynamic: bool = True) -> list[list[str]]:
        """The completions of each round, one prompt in each: none has a signal."""
        texts: list[list[str]] = []
        source: Any = CompletionSource(
            lambda completions, rows: texts.append(list(completions)) or same_rewards(completions, rows),  # type: ignore[func-returns-value]
            SamplingSettings(6, 1.0), group_size=3,
        )  # fmt: skip
        policy = Policy(model, chat, step=3)
        (DynamicSampling(1)(source) if dynamic else source)(policy, PromptBatch([prompt] * rounds))
        return texts

    first, second, third = sampled(3)
    assert first != second and second != third and first != third
    assert [first] == sampled(1, dynamic=False)  # as without further rounds
    assert [first, second, third] == sampled(3)


def test_episodes_of_a_later_round_have_names_of_their_own() -> None:
    source, played = EpisodeGroupSource(None, SamplingSettings(), group_size=2), []  # type: ignore[arg-type,var-annotated]
    source.episodes.play = lambda policy, jobs, seed: played.append([job.id for job in jobs.jobs]) or []  # type: ignore[func-returns-value,method-assign]
    groups = [EpisodeGroup(EpisodeSpec("e", "t", "train"), [])] * 2
    DynamicSampling(1)(source)(actor(5), EpisodeGroupBatch(groups, EpisodeJobs([], int, [])))  # type: ignore[arg-type]
    assert played == [["e/5/0", "e/5/1"], ["e/5+1/0", "e/5+1/1"]]


# --- training --------------------------------------------------------------------------------------------------------


def vowels(completions: Any, rows: Any) -> list[float]:
    """1 for an answer with three vowels or more: many groups have equal rewards."""
    return [float(sum(letter in "aeiou" for letter in text) >= 3) for text in completions]


def make(model: Path, source: Any, **objective: Any) -> GRPO:
    L.seed_everything(0, verbose=False)
    return GRPO(
        PolicySettings(model=str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(**{"group_size": 4, "entropy_coef": 0.0, **objective}),
        SamplingSettings(max_new_tokens=8, temperature=1.0), reward=vowels, source=source,
    )  # fmt: skip


def loader(model: Path) -> PromptLoader:
    form = PromptFormat(load_tokenizer(str(model)))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", ()) for n in range(8)]
    return PromptLoader([Prompt(p, form.prompt_ids(p.prompt), [], [], []) for p in problems], batch_size=8)


def test_the_reward_rises_and_the_groups_are_counted(tiny_model_folder: Path) -> None:
    recorder, stage = Recorder(), make(tiny_model_folder, DynamicSampling(2), mini_batches=2)
    fit(stage, loader(tiny_model_folder), 40, callbacks=[recorder])
    rewards = [logged["train/sampled_reward"] for logged in recorder.logged]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    for logged in recorder.logged:
        assert logged["train/kept_groups"] <= 2 <= logged["train/sampled_groups"] <= 8
        assert logged["train/kept_groups"] == 0 or logged["train/no_signal_fraction"] == 0
    assert any(logged["train/sampled_groups"] > 2 for logged in recorder.logged)


def test_groups_matter_and_a_step_without_any_changes_nothing(tiny_model_folder: Path) -> None:
    runs = []
    for source in (None, DynamicSampling(1), DynamicSampling(3)):
        stage = make(tiny_model_folder, source, group_size=8)
        fit(stage, loader(tiny_model_folder), 1)
        runs.append(trained(stage))
    assert differs(runs[0], runs[1]) and differs(runs[1], runs[2])
    stage = make(tiny_model_folder, DynamicSampling(2))
    stage.source.source.reward = lambda completions, rows: [1.0] * len(completions)
    stage.configure_model()
    before = trained(stage)
    fit(stage, loader(tiny_model_folder), 1)
    assert stage.samples == [] and not differs(before, trained(stage), rtol=1e-3)


def test_hpt_imitates_the_prompts_that_are_left_out(tiny_model_folder: Path) -> None:
    def reward(completions: Any, rows: Any) -> list[float]:
        return [0.0 if row["id"] == "p0" else float(k % 2) for k, row in enumerate(rows)]

    metrics = []
    for source in (None, DynamicSampling(2)):
        stage = make_grpo(
            tiny_model_folder, objective={"traces_per_group": 0, "imitated_traces": 1}, loss=HPT(), reward=reward,
            source=source,
        )  # fmt: skip
        recorder = Recorder()
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1, callbacks=[recorder])
        metrics.append({name: recorder.logged[0][f"train/{name}"] for name in ("imitation_loss", "imitated_fraction")})
    assert metrics[0]["imitation_loss"] > 0 and metrics[1] == pytest.approx(metrics[0])
