"""What an online run keeps: its checkpoint, its replay, its frozen skills, its place among the episodes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from online_run import make_data, make_online, run

from lit_rft.models import LoraSettings
from lit_rft.rollouts import Rollout
from lit_rft.stages import (
    NonFiniteLossError,
)
from lit_rft.testing.tiny_stage import (
    make_stage,
)


@pytest.mark.parametrize("stop", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)])
def test_resuming_equals_never_having_stopped(tiny_model_folder: Path, tmp_path: Path, stored: str, stop: int) -> None:
    dropout = LoraSettings(rank=4, alpha=8, dropout=0.2, target_modules="all-linear")

    def go(folder: Path, steps: int, seed: int = 0, **options: Any) -> Any:
        stage = make_online(tiny_model_folder, lora=dropout)
        data = make_data(tiny_model_folder, tmp_path, train_files=[stored])
        L.seed_everything(seed, verbose=False)  # global random numbers come from the checkpoint
        run(stage, data, folder, steps, **options)
        return stage

    whole = go(tmp_path / "whole", 8)
    go(tmp_path / "parts", stop)
    resumed = go(tmp_path / "parts", 8, seed=7, ckpt_path="last")
    assert resumed.source.env_steps == whole.source.env_steps > 0
    assert resumed.replay.episodes == whole.replay.episodes
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_skills_survive_the_online_run_in_its_checkpoint_and_its_adapter(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    stage = make_online(tiny_model_folder)
    stage.configure_model()
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    stage.policy.save_pretrained(tmp_path / "adapter")
    for start in ("checkpoints/last.ckpt", "adapter"):
        again = make_online(tiny_model_folder, seed=4, policy={"start_from": str(tmp_path / start)})
        again.configure_model()
        for name, value in again.policy.state_dict().items():
            assert torch.equal(value, stage.policy.state_dict()[name]), name
        assert not any(p.requires_grad for n, p in again.named_parameters() if ".frozen." in n)
    offline = make_stage(tiny_model_folder, policy={"start_from": str(tmp_path / "checkpoints" / "last.ckpt")})
    with pytest.raises(ValueError, match="of an online stage and holds two adapters"):
        offline.configure_model()


def test_a_reward_that_is_not_finite_stops_before_it_is_kept(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_online(tiny_model_folder)
    run(stage, make_data(tiny_model_folder, tmp_path), tmp_path, 2)
    monkeypatch.setattr(Rollout, "has_finite_rewards", False)
    again = make_online(tiny_model_folder)
    with pytest.raises(NonFiniteLossError, match=r"a reward is not finite .* with the episodes or problems .*walk"):
        run(again, make_data(tiny_model_folder, tmp_path), tmp_path, 6, ckpt_path="last")
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["parts"]["replay"]
    assert kept == stage.replay.state_dict()


def test_rounds_play_every_episode_in_turn_and_keep_their_place(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, tmp_path, rounds=4, episodes_per_round=3)
    data.setup("fit")
    whole = [[job.id for job in batch.jobs.jobs] for _ in range(2) for batch in [*data.train_dataloader()]][:4]
    loader = data.train_dataloader()
    names = [[job.id for job in batch.jobs.jobs] for batch in loader]
    assert names == whole
    flat = [name.rsplit("/online", 1)[0] for part in names for name in part]
    assert sorted(flat[:4]) == sorted(set(flat))  # four variations, each once before any comes again
    second = [[job.id for job in batch.jobs.jobs] for batch in loader]  # the next epoch goes on
    assert not {name for part in second for name in part} & {name for part in names for name in part}
    resumed = data.train_dataloader()
    iterator = iter(loader := data.train_dataloader())
    next(iterator), next(iterator)
    resumed.load_state_dict(loader.state_dict())
    assert [[job.id for job in batch.jobs.jobs] for batch in resumed] == names[2:]
