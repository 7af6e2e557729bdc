"""An agent outside the library trains through the command line, given by its class path."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import main
from plugins.thinking_agent import ThinkingAgent
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.agents import FlatAgent, Tags
from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.stages import HierarchicalSFT
from lit_rft.testing.tiny import make_episode

AGENT = {"class_path": "plugins.thinking_agent.ThinkingAgent", "init_args": {"max_length": 900}}


def command(backbone: Path, folder: Path, stage: str, data: str, **more: Any) -> list[str]:
    config = {
        "base": "episodes.yaml",
        "trainer": {
            "default_root_dir": str(folder / stage), "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0,
            "accelerator": "cpu", "precision": "32-true",
        },
        "model": {
            "class_path": f"lit_rft.stages.{stage}",
            "init_args": {
                "policy": {"model": str(backbone), "lora": {"rank": 4}},
                "optimizer": {"learning_rate": 0.01},
                "agent": AGENT,
                "acting": {"sampling": {"max_new_tokens": 6}, "parallel_episodes": 2},
                **more.pop("model", {}),
            },
        },
        "data": {"class_path": f"lit_rft.datamodules.{data}", "init_args": {"batch_size": 2, **more}},
    }  # fmt: skip
    return ["-c", json.dumps(config)]


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_it_trains_on_stored_episodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_episodes(tmp_path / "a.jsonl", [make_episode(seed, 3) for seed in range(4)])
    files = [str(tmp_path / "a.jsonl")]
    main(["fit", *command(tiny_model_folder, tmp_path, "HierarchicalSFT", "TrajectoryDataModule", train_files=files)])
    events = scalars(tmp_path / "HierarchicalSFT")
    assert {"train/thinking/loss", "train/thinking/log_likelihood"} <= set(events.Tags()["scalars"])
    checkpoint = torch.load(tmp_path / "HierarchicalSFT" / "checkpoints" / "last.ckpt", weights_only=True)
    settings = {"prompt": ThinkingAgent().prompt, "max_length": 900}
    assert checkpoint["agent"] == {**AGENT, "init_args": settings} == checkpoint["hyper_parameters"]["agent"]


def test_it_trains_on_episodes_that_it_plays(tiny_model_folder: Path, tmp_path: Path) -> None:
    suite = {"class_path": "lit_rft.testing.corridor.CorridorSuite"}
    model = {"objective": {"group_size": 2}, "exploration": {"max_new_tokens": 6, "temperature": 1.0}}
    fit = command(
        tiny_model_folder, tmp_path, "MixedPolicyEpisodes", "EpisodeGroupDataModule", model=model, suite=suite,
        data_dir=str(tmp_path), train_episodes_per_task=2,
    )  # fmt: skip
    main(["fit", *fit])
    events = scalars(tmp_path / "MixedPolicyEpisodes")
    assert len(events.Scalars("train/policy_loss")) == 2
    main(["predict", *fit, "--ckpt_path", "last", "--trainer.limit_predict_batches", "2"])
    played = list(read_episodes(tmp_path / "MixedPolicyEpisodes" / "episodes" / "predicted.jsonl"))
    assert len(played) == 2 and all(one.source["agent"] == AGENT["class_path"] for one in played)


def test_a_checkpoint_of_another_agent_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_episodes(tmp_path / "a.jsonl", [make_episode(seed, 3) for seed in range(4)])
    fit = command(
        tiny_model_folder, tmp_path, "HierarchicalSFT", "TrajectoryDataModule", train_files=[str(tmp_path / "a.jsonl")]
    )
    main(["fit", *fit])
    with pytest.raises(ValueError, match=r"is of the agent plugins\.thinking_agent\.ThinkingAgent, and this is .*Flat"):
        main(["fit", *fit, "--model.init_args.agent", "lit_rft.agents.FlatAgent", "--ckpt_path", "last"])
    with pytest.raises(ValueError, match=r"agent\.init_args\.prompt: .* -> Other"):
        main(["fit", *fit, "--model.init_args.agent.init_args.prompt", "Other", "--ckpt_path", "last"])


def test_an_answer_format_is_given_by_class_path_and_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_episodes(tmp_path / "a.jsonl", [make_episode(seed, 3) for seed in range(4)])
    tags = {"class_path": "lit_rft.agents.Tags", "init_args": {"tag": "move"}}
    agent = {"class_path": "lit_rft.agents.FlatAgent", "init_args": {"answer_format": tags, "keep_thoughts": False}}
    fit = command(
        tiny_model_folder, tmp_path, "HierarchicalSFT", "TrajectoryDataModule", model={"agent": agent},
        train_files=[str(tmp_path / "a.jsonl")],
    )  # fmt: skip
    main(["fit", *fit])
    path = tmp_path / "HierarchicalSFT" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["agent"]["init_args"]["answer_format"]
    assert saved == {"class_path": "lit_rft.agents.formats.Tags", "init_args": {"tag": "move"}}
    expected = FlatAgent(answer_format=Tags("move"), keep_thoughts=False)
    assert HierarchicalSFT.load_from_checkpoint(path).agent == expected
    other = "--model.init_args.agent.init_args.answer_format.init_args.tag"
    with pytest.raises(ValueError, match=r"answer_format\.init_args\.tag: move -> act"):
        main(["fit", *fit, other, "act", "--ckpt_path", "last"])
