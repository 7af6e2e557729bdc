"""GRPO over episodes of a policy that chooses among admissible actions: sampling and training have one distribution."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command import main

from lit_rft.agents import AdmissibleActions, FlatAgent
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.envs.games import GuessNumber
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ActingSettings, MixedPolicyEpisodes, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS, differs, fit, speak_out, trained

SUITE = GymSuite(GuessNumber, {"highest": 20}, seeds={"train": 3, "dev": 2, "test": 2})


def make(model: Path, folder: Path) -> tuple[MixedPolicyEpisodes, EpisodeGroupDataModule]:
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(model), lora=ADAPTERS), OptimizerSettings(learning_rate=5e-3),
        ObjectiveSettings(group_size=4, traces_per_group=0, entropy_coef=0.1, kl_coef=0.1), SamplingSettings(6, 1.3),
        ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True)),
        FlatAgent("Act.", 900, admissible=AdmissibleActions(choose=True)),
    )  # fmt: skip
    return stage, EpisodeGroupDataModule(model=str(model), data_dir=str(folder), batch_size=3, suite=SUITE)


def test_old_log_probs_are_the_sampled_ones(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path)
    fresh, _ = make(tiny_model_folder, tmp_path)  # the weights before the step
    for module in (stage, fresh):
        speak_out(module)
    before = trained(stage)
    fit(stage, data, 1)
    assert differs(before, trained(stage))
    assert all(torch.isfinite(weight).all() for weight in trained(stage).values())
    assert stage.trainer.callback_metrics["train/invalid_answers"] == 0
    fresh.update.keep_old_log_probs(fresh.current_policy(), stage.samples)
    actions = {line for rollout in stage.samples for line in rollout.text.splitlines()}
    assert actions <= {str(number) for number in range(21)} and len(actions) > 3
    for rollout in stage.samples:
        for old, sampled, transcript in zip(
            rollout.old_log_probs, rollout.sampled_log_probs, rollout.transcripts, strict=True
        ):
            assert set(transcript.allowed) == set(range(transcript.num_decisions))
            torch.testing.assert_close(old, torch.tensor(sampled), rtol=1e-4, atol=1e-4)
            ends = [
                end - start for start, end in zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)
            ]
            assert max(ends) <= 2  # digits, and the end


def test_the_option_is_read_from_a_config_and_a_server_refuses_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    agent = {"class_path": "lit_rft.agents.FlatAgent", "init_args": {"admissible": {"choose": True, "limit": 5}}}
    suite = {"class_path": "lit_rft.envs.GymSuite", "init_args": {"env": "lit_rft.envs.games.GuessNumber"}}
    arguments: dict[str, Any] = {"policy": {"model": str(tiny_model_folder), "lora": {"rank": 4}}, "agent": agent}
    arguments |= {"objective": {"group_size": 2, "traces_per_group": 0}}
    arguments |= {"acting": {"server": {"url": "http://127.0.0.1:9"}}}
    config = {
        "trainer": {"default_root_dir": str(tmp_path), "max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0},
        "model": {"class_path": "lit_rft.stages.MixedPolicyEpisodes", "init_args": arguments},
        "data": {"class_path": "lit_rft.datamodules.EpisodeGroupDataModule", "init_args": {"suite": suite}},
    }
    with pytest.raises((SystemExit, ValueError), match=r"does not sample among given choices"):
        main(["fit", "-c", json.dumps(config)])
