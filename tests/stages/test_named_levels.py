"""Agents of any number of levels with any names: weights, frozen levels, critics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_stage import ACTING, OPTIMIZER
from plugins.three_level_agent import ThreeLevelAgent

from lit_rft.datamodules import OnlineDataModule
from lit_rft.generation import SamplingSettings
from lit_rft.stages import (
    CriticSettings,
    HierarchicalSFT,
    OfflineHierarchicalRL,
    OnlineHighLevelFinetune,
    OnlineSettings,
    PolicySettings,
    SarsaUpdate,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, AGENT, differs, fit, make_loader, make_offline, make_stage, trained

THREE = ThreeLevelAgent()
LEVELS = THREE.levels
STAGES: list[type[Any]] = [HierarchicalSFT, OfflineHierarchicalRL, OnlineHighLevelFinetune]


def loss_of(model: Path, weights: dict[str, float] | None) -> tuple[float, dict[str, float]]:
    """The first step's loss, and its parts."""
    stage = make_stage(model, agent=THREE, level_weights=weights)
    logged = fit(stage, make_loader(model, agent=THREE), 1).callback_metrics
    return float(logged["train/loss"]), {level: float(logged[f"train/{level}/loss"]) for level in LEVELS}


def test_every_level_has_the_weight_of_its_name(tiny_model_folder: Path) -> None:
    for weights in (None, {"planner": 0.25, "critic": 0.0}, {"worker": 3.0}):
        loss, parts = loss_of(tiny_model_folder, weights)
        expected = sum((weights or {}).get(level, 1.0) * part for level, part in parts.items())
        assert loss == pytest.approx(expected, rel=1e-5) and all(parts.values())


@pytest.mark.parametrize("stage", STAGES)
def test_other_levels_and_weights_are_refused(stage: type[Any]) -> None:
    with pytest.raises(ValueError, match="level_weights: HierarchicalAgent has the levels high, low, got flat"):
        stage(agent=AGENT, level_weights={"flat": 1.0})
    with pytest.raises(ValueError, match="levels planner, worker, critic, got high, low"):
        stage(agent=THREE, level_weights={"high": 1.0, "worker": 1.0, "low": 1.0})
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"level_weights must be finite numbers >= 0, got \{'worker'"):
            stage(agent=THREE, level_weights={"worker": bad, "critic": 1.0})


@pytest.mark.parametrize("update", [None, SarsaUpdate()], ids=["iql", "sarsa"])
def test_offline_rl_trains_every_level(tiny_model_folder: Path, update: Any) -> None:
    stage = make_offline(tiny_model_folder, agent=THREE, critic_update=update)
    logged = fit(stage, make_loader(tiny_model_folder, agent=THREE, outcomes=True), 1).callback_metrics
    assert all(float(logged[f"train/{level}/policy_loss"]) for level in LEVELS)
    with_critic = {level for level in LEVELS if float(logged[f"train/{level}/q_loss"])}
    assert with_critic == (set(LEVELS) if update is None else {"planner"})  # the levels below: likelihood alone


@pytest.mark.parametrize(
    ("frozen", "training"),
    [(None, {"planner"}), (["planner"], {"worker", "critic"}), ([], set(LEVELS))],
    ids=["the first level", "the other levels", "all levels"],
)
def test_online_the_levels_that_are_not_frozen_train(
    tiny_model_folder: Path, tmp_path: Path, frozen: list[str] | None, training: set[str]
) -> None:
    stage = OnlineHighLevelFinetune(
        OnlineSettings(SamplingSettings(6, 1.0), 4, 1.0, 2), policy=PolicySettings(str(tiny_model_folder), ADAPTERS),
        optimizer=OPTIMIZER, agent=THREE, acting=ACTING, critic=CriticSettings(learning_rate=1e-2),
        frozen_levels=frozen,
    )  # fmt: skip
    stage.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    data: Any = OnlineDataModule(
        model=str(tiny_model_folder), data_dir=str(tmp_path), suite=CorridorSuite(), collect_tasks=["walk"], rounds=2,
        episodes_per_round=2,
    )  # fmt: skip
    trainer = fit(stage, data, 2)
    assert {t.level for episode in stage.replay.episodes for t in episode} == training
    logged = {name.split("/")[1] for name in trainer.callback_metrics if name.endswith("/policy_loss")}
    assert logged == training
    assert differs({n: p for n, p in before.items() if ".default." in n}, trained(stage))
    snapshot = {name: p for name, p in stage.named_parameters() if ".frozen." in name}
    assert bool(snapshot) == (training != set(LEVELS))
    assert all(torch.equal(parameter, before[name]) for name, parameter in snapshot.items())


def test_frozen_levels_must_be_the_agents_and_leave_one() -> None:
    with pytest.raises(ValueError, match=r"frozen_levels: ThreeLevelAgent has the levels .*, got low"):
        OnlineHighLevelFinetune(agent=THREE, frozen_levels=["low"])
    with pytest.raises(ValueError, match="must leave a level of the agent to train"):
        OnlineHighLevelFinetune(agent=THREE, frozen_levels=list(LEVELS))
