"""Costs of training: tokens, environment steps and seconds, over interruptions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from online_run import make_data, make_online, run

from lit_rft.callbacks import RunCheckpoint, TrainingCosts
from lit_rft.sources import DynamicSampling, ReLIFT
from lit_rft.stages import BatchingSettings, MixedPolicyEpisodes, ObjectiveSettings
from lit_rft.testing.tiny_stage import FLAT, fit, make_loader, make_stage


def costs(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "costs_fit.json").read_text())
    return read


def test_tokens_of_all_optimiser_steps_count_without_padding(tiny_model_folder: Path, tmp_path: Path) -> None:
    loader = make_loader(tiny_model_folder, agent=FLAT, episodes=6, batch_size=3)
    tokens = sum(len(transcript) for episode in loader.episodes for transcript in episode)
    for steps, batching in ((2, BatchingSettings(1)), (4, BatchingSettings(2000, packing=True))):
        stage = make_stage(tiny_model_folder, agent=FLAT, batching=batching)
        fit(stage, loader, steps, callbacks=[TrainingCosts()], default_root_dir=tmp_path)
        assert costs(tmp_path)["tokens_trained"] == tokens * steps / 2
        assert costs(tmp_path)["optimizer_steps"] == steps and costs(tmp_path)["seconds"] > 0
        assert "env_steps" not in costs(tmp_path)  # nothing is played


@pytest.mark.parametrize("source", [None, DynamicSampling(2), ReLIFT()], ids=str)
def test_a_source_around_episodes_has_their_costs(source: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    made: Any = MixedPolicyEpisodes(objective=ObjectiveSettings(imitated_traces=1), source=source).source
    inner = made if source is None else made.source
    inner.episodes.env_steps, inner.episodes.tokens_read, inner.episodes.tokens_sampled = 7, 30, 20
    module: Any = SimpleNamespace(source=made)
    trainer: Any = SimpleNamespace(global_step=1, is_global_zero=True, default_root_dir=tmp_path)
    TrainingCosts().on_train_end(trainer, module)
    counts = {
        name: value for name, value in costs(tmp_path).items() if name.startswith(("env", "tokens_read", "tokens_s"))
    }
    assert counts == {"env_steps": 7, "tokens_read": 30, "tokens_sampled": 20}


def test_costs_include_the_steps_before_an_interruption(tiny_model_folder: Path, tmp_path: Path) -> None:
    def train(folder: Path, steps: int, **options: Any) -> Any:
        stage = make_online(tiny_model_folder)
        callbacks = [RunCheckpoint(every_n_steps=2), TrainingCosts()]
        run(stage, make_data(tiny_model_folder, tmp_path), folder, steps, callbacks=callbacks, **options)
        return stage

    stage = train(tmp_path / "whole", 4)
    whole = costs(tmp_path / "whole")
    assert whole["env_steps"] == stage.source.env_steps > 0
    assert whole["tokens_read"] > whole["tokens_sampled"] > 0 and whole["tokens_trained"] > 0
    train(tmp_path / "parts", 2)
    half = costs(tmp_path / "parts")
    train(tmp_path / "parts", 4, ckpt_path="last")
    parts = costs(tmp_path / "parts")
    assert all(half[name] < parts[name] for name in parts)
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
