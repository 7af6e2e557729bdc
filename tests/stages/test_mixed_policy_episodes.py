"""Mixed-policy GRPO over episodes of the corridor; on ScienceWorld in tests/test_scienceworld_run.py."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts

from lit_rft.batches import EpisodeGroupBatch
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import PoolSettings
from lit_rft.episodes import Outcome, write_episodes
from lit_rft.generation import SamplingSettings
from lit_rft.rollouts import RolloutBatch
from lit_rft.stages import ActingSettings, BatchingSettings, MixedPolicyEpisodes, OptimizerSettings, PolicySettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, FLAT_PLAYER, PLAYER, differs, fit, speak_out, updated

ACTING = ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True))


def make(
    model: Path,
    folder: Path,
    *,
    objective: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[MixedPolicyEpisodes, EpisodeGroupDataModule]:
    L.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "exploration": SamplingSettings(6, 1.0),
        "acting": ACTING,
        "agent": PLAYER,
    }
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(model), lora=ADAPTERS),
        **{**settings, **grpo_parts(**{"group_size": 3, **(objective or {})}), **options},
    )
    wanted = {"train_episodes_per_task": 2, "batch_size": 2, "suite": CorridorSuite(), **(data or {})}
    return stage, EpisodeGroupDataModule(model=str(model), data_dir=str(folder), **wanted)


def after(model: Path, folder: Path, *, steps: int = 2, **options: Any) -> dict[str, torch.Tensor]:
    stage, data = make(model, folder, **options)
    fit(stage, data, steps)
    return updated(stage)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of expert episodes, which the first run collects."""
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path, experts: Path) -> dict[str, torch.Tensor]:
    return after(tiny_model_folder, experts)


@pytest.mark.parametrize("agent", [PLAYER, FLAT_PLAYER])
def test_groups_hold_played_episodes_and_an_experts(agent: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path, agent=agent)
    fit(stage, data, 1)
    assert [(one.group, one.off_policy) for one in stage.samples] == [(0, False), (0, False), (0, True)] + [
        (1, False), (1, False), (1, True)
    ]  # fmt: skip
    for one in stage.samples:
        assert {t.level for t in one.transcripts} == set(agent.levels)
        assert sum(map(len, one.sampled_log_probs)) == (0 if one.off_policy else one.length)
    experts = [one for one in stage.samples if one.off_policy]
    assert all(one.reward == 1.0 and one.advantage > 0 for one in experts)
    assert len({t.episode_id for one in stage.samples for t in one.transcripts}) == 6
    assert stage.source.env_steps > 0


def test_experts_of_two_files_with_the_same_ids_stay_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, data = make(tiny_model_folder, tmp_path, agent=FLAT_PLAYER)
    episodes = data.collect()
    left = [dataclasses.replace(e, steps=e.steps[:1], outcome=Outcome(1 / 3, False, False, True, "cut"), subgoals=[])
            for e in episodes]  # fmt: skip
    write_episodes(tmp_path / "right.jsonl", episodes)
    write_episodes(tmp_path / "left.jsonl", left)
    files = [str(tmp_path / name) for name in ("right.jsonl", "left.jsonl")]
    data = make(tiny_model_folder, tmp_path, data={"train_files": files, "agent": FLAT_PLAYER})[1]
    data.setup("fit")
    for group in data.groups:
        assert [(e.score, e.transcripts[0].num_decisions) for e in group.experts] == [(1.0, 3), (1 / 3, 1)]


def test_an_expert_in_a_group_and_outside_it_counts_as_both(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path, objective={"imitated_traces": 1})
    fit(stage, data, 1)
    rollouts = [one for one in (*stage.samples, *stage.update.imitated) if one.off_policy]
    assert [one.counts_in_baseline for one in rollouts] == [True, True, False, False]
    for micro in stage.update.split(stage.current_policy(), rollouts):
        values = RolloutBatch.of(micro, rollouts)
        tokens = {True: values.mask.sum(), False: values.imitated.sum()}  # type: ignore[union-attr]
        for counted, number in tokens.items():
            expected = sum(one.length for one in rollouts if one.counts_in_baseline == counted)
            assert int(number) == expected > 0


class Twice:
    """A loader whose batches have the same problem in both groups."""

    def __init__(self, data: EpisodeGroupDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[EpisodeGroupBatch]:
        for batch in self.data.train_dataloader():
            yield EpisodeGroupBatch([batch.groups[0], batch.groups[0]], batch.jobs)


def test_a_problem_twice_in_a_batch_makes_two_groups(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path)
    data.prepare_data()
    data.setup("fit")
    fit(stage, Twice(data), 1)
    assert [one.group for one in stage.samples] == [0, 0, 0, 1, 1, 1]
    played = [one.id for one in stage.samples if not one.off_policy]
    assert len(set(played)) == 4, played


def test_sampled_log_probs_are_those_of_the_training_pass(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path)
    fresh, _ = make(tiny_model_folder, tmp_path)  # the weights before the step
    for one in (stage, fresh):
        speak_out(one)
    fit(stage, data, 1)
    fresh.update.keep_old_log_probs(fresh.current_policy(), stage.samples)
    for one in stage.samples:
        for old, sampled in zip(one.old_log_probs, one.sampled_log_probs, strict=True):
            torch.testing.assert_close(old, torch.tensor(sampled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [{}, {"mini_batches": 2, "epochs": 2, "kl_coef": 0.1, "sft_coef": 0.1}], ids=str)
def test_micro_batches_change_nothing(
    objective: dict[str, Any], base: dict[str, torch.Tensor], tiny_model_folder: Path, experts: Path
) -> None:
    whole = after(tiny_model_folder, experts, objective=objective) if objective else base
    split = after(tiny_model_folder, experts, objective=objective, batching=BatchingSettings(1))
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=5e-5)


def test_packed_rows_change_nothing(base: dict[str, torch.Tensor], tiny_model_folder: Path, experts: Path) -> None:
    stage, data = make(tiny_model_folder, experts, batching=BatchingSettings(900, packing=True))
    fit(stage, data, 2)
    micro_batches = stage.update.split(stage.current_policy(), stage.samples)
    rows = [(len(micro.input_ids), len(micro.transcripts)) for micro in micro_batches]
    assert all(number == 1 for number, _ in rows) and max(number for _, number in rows) > 1
    for name, weight in base.items():
        torch.testing.assert_close(updated(stage)[name], weight, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(
    "bad", [{"medium_files": ["some.jsonl"]}, {"outcomes": True}, {"medium_per_expert": 1.0}], ids=str
)
def test_what_has_no_place_in_groups_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(bad))):
        EpisodeGroupDataModule(**bad)


@pytest.mark.parametrize(
    "knob",
    [
        {"objective": {"group_size": 4}},
        {"objective": {"traces_per_group": 0, "entropy_coef": 0.1}},
        {"objective": {"policy_shaping": None}},
        {"objective": {"normalizer": "max_length"}},
        {"objective": {"sft_steps": 1}},
        {"objective": {"sft_coef": 0.5, "traces_per_group": 0}},
        {"objective": {"importance_cap": 0.5}},
        {"exploration": SamplingSettings(6, 0.5)},
        {"agent": FLAT_PLAYER},
        {"seed": 1},
        {"data": {"batch_size": 1}},
    ],
    ids=str,
)
def test_every_knob_changes_the_result(
    knob: dict[str, Any], base: dict[str, torch.Tensor], tiny_model_folder: Path, experts: Path
) -> None:
    assert differs(base, after(tiny_model_folder, experts, **knob))


def test_an_environment_that_fails_leaves_the_experts_alone(tiny_model_folder: Path, tmp_path: Path) -> None:
    after(tiny_model_folder, tmp_path, steps=1)  # collects expert episodes
    (files,) = tmp_path.glob("expert-*.jsonl")
    stage, data = make(
        tiny_model_folder,
        tmp_path,
        objective={"entropy_coef": 0.0},
        data={"suite": CorridorSuite(die_in=0), "train_files": [str(files)]},
        acting=dataclasses.replace(ACTING, pool=PoolSettings()),  # in processes, which the environment kills
    )
    fit(stage, data, 1)
    failed = [one for one in stage.samples if one.episode is not None and one.episode.meta == {"variation": 0}]
    assert [(one.off_policy, one.advantage) for one in failed] == [(True, 0.0)]
    assert len(stage.samples) == 4  # the other group: two that were played, and an expert's
    assert float(stage.source.metrics["env_errors"]) == 0.5


def test_tasks_without_an_expert_are_counted(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    after(tiny_model_folder, tmp_path, steps=1)
    (files,) = tmp_path.glob("expert-*.jsonl")
    stage, data = make(tiny_model_folder, tmp_path, data={"train_files": [str(files)], "train_episodes_per_task": 4})
    fit(stage, data, 1)
    assert "4 of 8 tasks have no expert episode" in caplog.text
    assert sum(len(group.experts) for group in data.groups) == 4


def test_no_expert_at_all_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    after(tiny_model_folder, tmp_path, steps=1)
    (files,) = tmp_path.glob("expert-*.jsonl")
    rows = [json.loads(line) for line in files.read_text().splitlines()]
    files.write_text("".join(json.dumps({**row, "meta": {"variation": 99}}) + "\n" for row in rows))

    def train(**objective: Any) -> None:
        stage, data = make(tiny_model_folder, tmp_path, objective=objective, data={"train_files": [str(files)]})
        fit(stage, data, 1)

    for objective in ({}, {"traces_per_group": 0, "sft_coef": 0.1}):
        with pytest.raises(ValueError, match="needs expert episodes, but none of 4 matches one of the 4 problems"):
            train(**objective)
    train(traces_per_group=0)
