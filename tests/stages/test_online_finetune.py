"""Online fine-tuning on the corridor: frozen skills stay frozen, the rest trains, every knob counts."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from online_run import ACTING, make_data, make_online, run
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft._plain import to_plain
from lit_rft.envs import EpisodeSpec, PoolSettings
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.generation import SamplingSettings
from lit_rft.models.feature_cache import FeatureCache
from lit_rft.models.merging import MergedWeights
from lit_rft.rollouts import episode_runner
from lit_rft.stages import ActingSettings, CriticSettings, OnlineSettings, OptimizerSettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import let_adapters_act
from lit_rft.testing.tiny_stage import (
    ADAPTERS,
    FLAT_PLAYER,
    PLAYER,
    differs,
    fit,
    make_loader,
    make_stage,
    trained,
)


def test_low_level_skills_hold_layers_trained_in_full(tiny_model_folder: Path, tmp_path: Path) -> None:
    lora = dataclasses.replace(ADAPTERS, modules_to_save=["lm_head"])
    sft = make_stage(tiny_model_folder, lora=lora)
    fit(sft, make_loader(tiny_model_folder), 2).save_checkpoint(tmp_path / "sft.ckpt")
    head = trained(sft)["policy.base_model.model.lm_head.modules_to_save.default.weight"]
    stage = make_online(tiny_model_folder, lora=lora, policy={"start_from": str(tmp_path / "sft.ckpt")})
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    found = dict(stage.policy.named_parameters())
    assert torch.equal(found["base_model.model.lm_head.modules_to_save.frozen.weight"], head)
    assert not torch.equal(found["base_model.model.lm_head.modules_to_save.default.weight"], head)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["policy.base_model.model.lm_head.modules_to_save.frozen.weight"], head)


def test_without_a_start_skills_are_new_whatever_the_working_directory_holds(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_online(tiny_model_folder)
    other.configure_model()
    let_adapters_act(other.policy)
    other.policy.save_pretrained(tmp_path, selected_adapters=["frozen"])
    assert (tmp_path / "frozen" / "adapter_config.json").is_file()
    monkeypatch.chdir(tmp_path)
    stage = make_online(tiny_model_folder)
    stage.configure_model()
    skills = [p for name, p in stage.policy.named_parameters() if ".frozen." in name and "lora_B" in name]
    assert skills and not any(p.any() for p in skills)


def test_an_adapter_folder_with_damaged_skills_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = make_online(tiny_model_folder)
    first.configure_model()
    let_adapters_act(first.policy)
    first.policy.save_pretrained(tmp_path)
    again = make_online(tiny_model_folder, policy={"start_from": str(tmp_path)})
    again.configure_model()
    save_file({}, tmp_path / "frozen" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="frozen lacks 28 weights"):
        make_online(tiny_model_folder, policy={"start_from": str(tmp_path)}).configure_model()


def test_low_level_skills_stay_to_the_bit_and_the_rest_trains(tiny_model_folder: Path, tmp_path: Path) -> None:
    sft = make_stage(tiny_model_folder)
    fit(sft, make_loader(tiny_model_folder), 2).save_checkpoint(tmp_path / "sft.ckpt")
    stage = make_online(tiny_model_folder, seed=3, policy={"start_from": str(tmp_path / "sft.ckpt")})
    stage.configure_model()
    start = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    low = [name for name in start if ".frozen." in name]
    assert len(low) == len([name for name in start if ".default." in name]) > 0
    for name in low:
        assert torch.equal(start[name], trained(sft)[name.replace(".frozen.", ".default.")])
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 4)
    for name, parameter in stage.named_parameters():
        if name in low:
            assert parameter.grad is None and not parameter.requires_grad
            assert torch.equal(parameter, start[name])
        elif ".default." in name or ("critic." in name and "heads.0" in name):  # the high level's
            assert not torch.equal(parameter, start[name]), name
        else:
            assert torch.equal(parameter, start[name]), name


@pytest.mark.parametrize("merge", [True, False])
def test_each_level_acts_with_its_own_adapter(tiny_model_folder: Path, tmp_path: Path, merge: bool) -> None:
    """Other low-level skills: other actions, but the first subgoal, which is written before any, stays the same."""
    acting = ActingSettings(
        SamplingSettings(6), parallel_episodes=1, merge_adapters=merge, pool=PoolSettings(threads=True)
    )
    stage = make_online(tiny_model_folder, acting=acting, agent=dataclasses.replace(PLAYER, subgoal_steps=9))
    data = make_data(tiny_model_folder, tmp_path, tasks=["walk"], eval_split="test", eval_episodes_per_task=1)

    def play() -> list[Any]:
        options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(**options).test(stage, datamodule=data, verbose=False)
        return stage.evaluator.results[0].transcripts

    stage.configure_model()
    high, low = play()
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            if ".frozen." in name and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1.0)
    new_high, new_low = play()
    assert new_low.utterance_ids(0) != low.utterance_ids(0)
    assert new_high.utterance_ids(0) == high.utterance_ids(0)
    assert all(p.requires_grad == (".default." in n) for n, p in stage.named_parameters() if "lora_" in n)


def test_each_level_acts_with_its_own_sampling(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Both levels have the same adapter: they share its merged weights, but not their sampling."""
    data = make_data(tiny_model_folder, tmp_path, tasks=["walk"], eval_split="test", eval_episodes_per_task=2)

    def play(sampling: SamplingSettings, seed: int = 0, **levels: SamplingSettings) -> dict[str, list[list[int]]]:
        acting = dataclasses.replace(ACTING, sampling=sampling, seed=seed, level_sampling=levels)
        L.seed_everything(0, verbose=False)  # of the adapter
        stage = make_stage(tiny_model_folder, acting=acting, agent=PLAYER)
        options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        with patch.object(episode_runner, "MergedWeights", wraps=MergedWeights) as merge:
            L.Trainer(**options).test(stage, datamodule=data, verbose=False)
        assert merge.call_count == 1
        results = sorted(stage.evaluator.results, key=lambda result: result.episode.id)  # they end in any order
        assert results[0].episode.source.get("level_sampling", {}) == {k: to_plain(v) for k, v in levels.items()}
        said: dict[str, list[list[int]]] = {}
        for transcript in (t for result in results for t in result.transcripts):
            utterances = [transcript.utterance_ids(k) for k in range(len(transcript.utterance_ends))]
            said.setdefault(transcript.level, []).extend(utterances)
        return said

    warm, greedy = SamplingSettings(6, 1.0), SamplingSettings(3, 0.0)
    mixed = play(warm, low=greedy)
    assert max(map(len, mixed["low"])) <= 3 < max(map(len, mixed["high"]))
    assert mixed == play(greedy, high=warm) != play(warm)
    assert play(warm, high=greedy, low=greedy) == play(greedy, seed=1)  # without chance
    assert mixed["high"] != play(warm, seed=1, low=greedy)["high"]
    with pytest.raises(ValueError, match=r"acting\.level_sampling: .* has the levels high, low, got middle"):
        play(warm, middle=greedy)


def test_a_flat_policy_trains_as_a_whole(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_online(tiny_model_folder, agent=FLAT_PLAYER)
    stage.configure_model()
    before = trained(stage)
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    assert not any(".frozen." in name for name, _ in stage.named_parameters())
    assert differs({n: p for n, p in before.items() if "lora" in n}, trained(stage))
    assert {t.level for episode in stage.replay.episodes for t in episode} == {"flat"}


def test_a_schedule_needs_to_know_its_end(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.schedule=cosine needs a known number of steps"):
        make_online(tiny_model_folder, optimizer=OptimizerSettings(schedule="cosine"))


def test_exploration_of_a_level_that_the_agent_does_not_have_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"online\.level_exploration: .* has the levels flat, got low"):
        make_online(tiny_model_folder, agent=FLAT_PLAYER, online={"level_exploration": {"low": SamplingSettings()}})


@pytest.mark.parametrize(
    "long", [{"exploration": SamplingSettings(900)}, {"level_exploration": {"low": SamplingSettings(900)}}]
)
def test_exploration_without_room_in_the_context_is_refused(tiny_model_folder: Path, long: Any) -> None:
    with pytest.raises(ValueError, match=r"larger than online\.exploration\.max_new_tokens, got 900 and 900"):
        make_online(tiny_model_folder, online=long)


def test_freezing_skills_needs_lora(tiny_model_folder: Path) -> None:
    stage = make_online(tiny_model_folder, lora=None, critic=CriticSettings(features="adapted"))
    with pytest.raises(ValueError, match="freezing levels needs LoRA"):
        stage.configure_model()


def after_an_epoch(model: Path, folder: Path, stored: str, **online: Any) -> dict[str, torch.Tensor]:
    stage = make_online(model, online=online)
    options: dict[str, Any] = {"max_epochs": 1, "callbacks": [], "enable_checkpointing": False}
    run(stage, make_data(model, folder, train_files=[stored]), folder, -1, **options)
    return trained(stage)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path, stored: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return after_an_epoch(tiny_model_folder, tmp_path_factory.mktemp("base"), stored)


@pytest.mark.parametrize(
    "knob",
    [
        {"exploration": SamplingSettings(6, 0.5)},
        {"level_exploration": {"high": SamplingSettings(6, 0.5)}},
        {"buffer_episodes": 1},
        {"updates_per_episode": 2.0},
        {"batch_episodes": 1},
        {"offline_share": 0.0},
        {"seed": 5},
    ],
    ids=str,
)
def test_every_knob_counts(
    tiny_model_folder: Path, tmp_path: Path, stored: str, base: Any, knob: dict[str, Any]
) -> None:
    turned = after_an_epoch(tiny_model_folder, tmp_path, stored, **knob)
    assert any(not torch.equal(base[name], turned[name]) for name in base)


def test_exploration_of_all_levels_takes_the_place_of_the_common_one(
    tiny_model_folder: Path, tmp_path: Path, stored: str, base: Any
) -> None:
    by_level = dict.fromkeys(PLAYER.levels, SamplingSettings(6, 1.0))
    turned = {"exploration": SamplingSettings(6, 0.0), "level_exploration": by_level}
    same = after_an_epoch(tiny_model_folder, tmp_path, stored, **turned)
    assert all(torch.equal(base[name], same[name]) for name in base)


def test_what_does_not_fit_into_the_context_is_left_out(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_online(tiny_model_folder, agent=dataclasses.replace(PLAYER, max_length=160))
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    assert all(t.outcomes and len(t) <= 160 for episode in stage.replay.episodes for t in episode)


def test_features_of_episodes_that_left_the_buffer_are_forgotten(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_online(tiny_model_folder, online={"buffer_episodes": 2})
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 6)
    cache = stage.actor_critic.features.cache
    assert cache is not None and 0 < cache.size <= 2


def test_features_of_the_buffer_are_written_for_the_next_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    critic = CriticSettings(learning_rate=1e-2, cache_dir=str(tmp_path / "features"))
    stage = make_online(tiny_model_folder, critic=critic)
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 4)
    (folder,) = (tmp_path / "features").iterdir()
    written = FeatureCache(None, "")
    for file in folder.glob("*.safetensors"):
        written._index(file)
    assert written.size and stage.actor_critic.features.cache.size == written.size
    assert any(written.get(transcript) is not None for episode in stage.replay.episodes for transcript in episode)


def test_scores_are_logged_against_environment_steps(tiny_model_folder: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    stage = make_online(tiny_model_folder)
    logger = TensorBoardLogger(str(tmp_path), name="tb", version="")
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 4, logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    points = events.Scalars("online/score")
    assert len(points) == 2  # rounds
    assert 0 < points[0].step < points[1].step == stage.source.env_steps
    assert {"train/score", "train/buffer", "train/high/q_loss"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("train/high/q_loss")] == [2, 4]  # optimiser steps, not rounds
    assert not any(name.startswith("train/low") for name in events.Tags()["scalars"])


@pytest.mark.parametrize(
    "bad",
    [{"buffer_episodes": 0}, {"updates_per_episode": 0.0}, {"batch_episodes": 0}, {"offline_share": 1.5}],
    ids=str,
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"online.{next(iter(bad))}"):
        OnlineSettings(**bad)


def test_a_run_whose_environments_all_fail_stops(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_online(tiny_model_folder)
    with pytest.raises(RuntimeError, match=r"none of 2 episodes could be played \(.+\): there is nothing to"):
        run(stage, make_data(tiny_model_folder, tmp_path, suite=Broken()), tmp_path, 2)


def test_a_run_that_has_played_before_stops_at_the_third_failure_in_a_row(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    stage = make_online(tiny_model_folder)
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    source, policy = stage.source, stage.current_policy()
    jobs = [EpisodeSpec(f"walk/{number}", "walk") for number in range(2)]
    broken, sound = (EpisodeJobs(jobs, suite.make_env, ["walk"]) for suite in (Broken(), CorridorSuite()))
    for suites in ((broken, broken, sound), (broken, broken)):
        for suite in suites:
            source.play(policy, suite, seed=0)
            assert float(source.metrics["env_errors"]) == float(suite is broken)
    with pytest.raises(RuntimeError, match="none of 2 episodes could be played"):
        source.play(policy, broken, seed=0)


class Broken(CorridorSuite):
    def make_env(self) -> Any:
        env = super().make_env()
        env.step = failing
        return env


def failing(action: str) -> Any:
    raise RuntimeError("the server has gone")
