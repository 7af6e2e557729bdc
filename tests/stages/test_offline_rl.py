"""Offline RL on a tiny model: it learns, every knob counts, and how a step is split changes nothing."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from recorder import Recorder

from lit_rft.callbacks import AtomicCheckpointIO
from lit_rft.generation import SamplingSettings
from lit_rft.models import frozen_features
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    IQLUpdate,
    NonFiniteLossError,
    OptimizerSettings,
    SarsaUpdate,
)
from lit_rft.stages.core import critics
from lit_rft.testing.tiny import make_model, make_tokenizer
from lit_rft.testing.tiny_stage import (
    ADAPTERS,
    AGENT,
    FLAT,
    SPLITS,
    differs,
    fit,
    make_loader,
    make_offline,
    make_stage,
    trained,
    updated,
)  # fmt: skip


def after(model: Path, *, steps: int = 2, **options: Any) -> dict[str, Any]:
    """The trained weights after two steps."""
    stage = make_offline(model, **options)
    agent = options.get("agent", AGENT)
    fit(stage, make_loader(model, outcomes=True, agent=agent), steps)
    return updated(stage)


@pytest.mark.parametrize("agent", [AGENT, FLAT])
def test_critics_and_actor_learn_one_batch(tiny_model_folder: Path, agent: Any) -> None:
    recorder = Recorder()
    critic = CriticSettings(learning_rate=1e-2, discount=0.0)  # fixed targets
    stage = make_offline(tiny_model_folder, agent=agent, critic_update=IQLUpdate(10.0), critic=critic)
    loader = make_loader(tiny_model_folder, agent=agent, episodes=2, outcomes=True)
    fit(stage, loader, 40, callbacks=[recorder])
    first, last = recorder.logged[0], recorder.logged[-1]
    for level in agent.levels:
        assert last[f"train/{level}/policy_loss"] < 0.8 * first[f"train/{level}/policy_loss"]
        assert last[f"train/{level}/q_loss"] < 0.3 * first[f"train/{level}/q_loss"]
        for name in ("q_mean", "value_mean", "advantage_mean", "advantage_std", "weight_mean", "clamped_fraction"):
            assert f"train/{level}/{name}" in last
        assert 0 < last[f"train/{level}/weight_entropy"] <= 1 + 1e-6
    assert not any(f"train/{level}/q_loss" in last for level in {"high", "low", "flat"}.difference(agent.levels))


def test_what_should_train_does_and_the_rest_does_not(tiny_model_folder: Path) -> None:
    stage = make_offline(tiny_model_folder)
    stage.configure_model()
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    fit(stage, make_loader(tiny_model_folder, outcomes=True), 3)
    for name, parameter in stage.named_parameters():
        unused = "heads.2" in name  # of a flat policy
        moved = not torch.equal(parameter, before[name])
        expected = ("lora" in name or name.startswith("critic.")) and not unused
        assert moved is expected, name


def test_the_critics_change_nothing_but_the_weights_of_the_actors_loss(tiny_model_folder: Path) -> None:
    """A huge temperature makes all weights 1: with the sum over tokens the actor's step is that of SFT."""
    offline = make_offline(tiny_model_folder, critic_update=IQLUpdate(1e9))
    fit(offline, make_loader(tiny_model_folder, outcomes=True), 2)
    sft = make_stage(tiny_model_folder, average_tokens=False)
    fit(sft, make_loader(tiny_model_folder, outcomes=True), 2)
    actor = {name: p for name, p in trained(offline).items() if name.startswith("policy.")}
    for name, parameter in trained(sft).items():
        torch.testing.assert_close(actor[name], parameter, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("settings", ["frozen", "adapted", "release", "policy"])
def test_micro_batches_and_packing_change_nothing(
    tiny_model_folder: Path, settings: str, split: BatchingSettings
) -> None:
    options: dict[str, Any] = {"critic_update": SarsaUpdate()} if settings == "release" else {}
    if settings == "policy":
        options["value_actions"] = "policy"
    if settings == "adapted":
        options["critic"] = CriticSettings(learning_rate=1e-2, features="adapted")
    plain = after(tiny_model_folder, **options)
    other = after(tiny_model_folder, **options, batching=split)
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], rtol=1e-3, atol=5e-5)


def test_utterances_for_the_values_are_other_ones_in_each_step(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    sample = critics.sample_decisions
    monkeypatch.setattr(
        critics, "sample_decisions", lambda *a, seed, **k: (seeds.append(seed), sample(*a, seed=seed, **k))[1]
    )
    after(tiny_model_folder, steps=3, value_actions="policy")
    assert len(set(seeds)) == 3


def test_utterances_for_the_values_have_the_limits_of_their_level(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level's limit of acting, at temperature 1."""
    lengths: dict[str, set[int]] = {"high": set(), "low": set()}
    sample = critics.sample_decisions

    def record(*arguments: Any, **options: Any) -> Any:
        sampled = sample(*arguments, **options)
        for state in sampled:
            lengths[state.level].add(len(state.utterance_ids(0)))
        assert options["level_sampling"]["low"].temperature == arguments[2].temperature == 1.0
        return sampled

    monkeypatch.setattr(critics, "sample_decisions", record)
    acting = ActingSettings(SamplingSettings(7, 0.5), level_sampling={"low": SamplingSettings(2, 0.5)})
    after(tiny_model_folder, value_actions="policy", acting=acting)
    assert max(lengths["high"]) == 7 and max(lengths["low"]) == 2


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, Any]:
    # episodes enough that some last subgoals are longer than a step
    return after(tiny_model_folder, steps=3, critic=CriticSettings(learning_rate=1e-2), critic_update=IQLUpdate(0.01))


@pytest.mark.parametrize(
    "knob",
    [
        {"critic_update": IQLUpdate(1.0)},
        {"critic_update": IQLUpdate(0.01, max_weight=1.01)},
        {"critic_update": IQLUpdate(0.01, expectile=0.95)},
        {"average_tokens": True},
        {"level_weights": {"high": 0.3}},
        {"level_weights": {"low": 0.3}},
        {"critic_update": SarsaUpdate()},
        {"value_actions": "policy"},
        {"critic": CriticSettings(learning_rate=2e-2)},
        {"critic": CriticSettings(learning_rate=1e-2, features="adapted")},
        {"critic": CriticSettings(learning_rate=1e-2, per_level=False)},
        {"critic": CriticSettings(learning_rate=1e-2, discount=0.5)},
        {"critic": CriticSettings(learning_rate=1e-2, discount_each="step")},
        {"critic": CriticSettings(learning_rate=1e-2, polyak_rate=0.9)},
        {"optimizer": OptimizerSettings(learning_rate=1e-3)},
    ],
    ids=str,
)
def test_every_knob_changes_the_result(tiny_model_folder: Path, base: dict[str, Any], knob: dict[str, Any]) -> None:
    defaults = {"critic": CriticSettings(learning_rate=1e-2), "critic_update": IQLUpdate(0.01)}
    turned = after(tiny_model_folder, steps=3, **{**defaults, **knob})
    if "critic" in knob and not knob["critic"].per_level:
        assert len(turned) < len(base)
        return
    tight = {name: (a, turned[name]) for name, a in base.items()}
    assert any(not torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in tight.values())


def test_actor_and_critics_have_learning_rates_of_their_own(tiny_model_folder: Path) -> None:
    base = after(tiny_model_folder)
    slow_actor = after(tiny_model_folder, optimizer=OptimizerSettings(learning_rate=1e-5))
    actor = [name for name in base if name.startswith("policy.")]
    critics = [name for name in base if name.startswith("critic.")]
    assert differs({n: base[n] for n in actor}, slow_actor)
    for name in critics:  # frozen features: the critics do not see the actor at all
        assert torch.equal(base[name], slow_actor[name])


def test_the_release_trains_its_low_level_by_likelihood_and_without_values(tiny_model_folder: Path) -> None:
    recorder = Recorder()
    stage = make_offline(tiny_model_folder, critic_update=SarsaUpdate())
    fit(stage, make_loader(tiny_model_folder, outcomes=True), 2, callbacks=[recorder])
    last = recorder.logged[-1]
    assert last["train/low/weight_mean"] == 1.0
    assert last["train/low/q_loss"] == last["train/low/value_loss"] == last["train/high/value_loss"] == 0.0
    assert last["train/high/q_loss"] > 0
    assert abs(last["train/high/weight_mean"]) < 0.5  # Q_target, which is still small


def test_frozen_features_are_computed_once_and_found_by_the_next_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    calls = []

    def counted(model: Any, batch: Any) -> Any:
        calls.append(len(batch.transcripts))
        return frozen_features(model, batch)

    def run() -> dict[str, torch.Tensor]:
        critic = CriticSettings(learning_rate=1e-2, cache_dir=str(tmp_path))
        return after(tiny_model_folder, steps=6, critic=critic)  # three epochs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_rft.stages.core.critics.frozen_features", counted)
        first = run()
        assert calls == [1] * 12  # six episodes of two levels, each alone and once
        second = run()
        assert len(calls) == 12
    memory = after(tiny_model_folder, steps=6)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], memory[name])


@pytest.mark.parametrize("stop", [3, 4])
def test_resuming_equals_never_having_stopped(tiny_model_folder: Path, tmp_path: Path, stop: int) -> None:
    """In mid-epoch and at an epoch's end; targets and their place in training are part of it."""
    from lit_rft.callbacks import RandomState, RunCheckpoint

    def run(folder: Path, steps: int, ckpt_path: str | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
        lora = ADAPTERS.__class__(rank=4, alpha=8, dropout=0.2, target_modules="all-linear")
        stage = make_offline(tiny_model_folder, seed=seed, lora=lora)
        trainer = L.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            plugins=[AtomicCheckpointIO()], callbacks=[RandomState(), RunCheckpoint(every_n_steps=1)],
        )  # fmt: skip
        trainer.fit(stage, make_loader(tiny_model_folder, outcomes=True, batch_size=2), ckpt_path=ckpt_path)
        return {name: value.clone() for name, value in stage.state_dict().items() if "base_layer" not in name}

    whole = run(tmp_path / "whole", 7)
    run(tmp_path / "parts", stop)
    resumed = run(tmp_path / "parts", 7, ckpt_path="last", seed=5)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_it_starts_from_sft_from_an_adapter_or_from_offline_rl(tiny_model_folder: Path, tmp_path: Path) -> None:
    sft = make_stage(tiny_model_folder)
    trainer = fit(sft, make_loader(tiny_model_folder), 1)
    trainer.save_checkpoint(tmp_path / "sft.ckpt")
    assert sft.policy is not None
    sft.policy.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    for start in ("sft.ckpt", "adapter"):
        offline = make_offline(tiny_model_folder, seed=9, policy={"start_from": str(tmp_path / start)})
        offline.configure_model()
        weights = trained(offline)
        for name, parameter in trained(sft).items():
            assert torch.equal(weights[name], parameter)
    trainer = fit(offline, make_loader(tiny_model_folder, outcomes=True), 1)
    trainer.save_checkpoint(tmp_path / "offline.ckpt")
    again = make_offline(tiny_model_folder, seed=10, policy={"start_from": str(tmp_path / "offline.ckpt")})
    again.configure_model()
    for name, value in again.state_dict().items():
        assert torch.equal(value, offline.state_dict()[name]), name


def test_a_flat_policy_does_not_start_from_a_hierarchical_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1).save_checkpoint(tmp_path / "sft.ckpt")
    flat = make_offline(tiny_model_folder, agent=FLAT, policy={"start_from": str(tmp_path / "sft.ckpt")})
    with pytest.raises(ValueError, match=r"is of the agent lit_rft.*HierarchicalAgent, and this is lit_rft.*FlatAgent"):
        flat.configure_model()


def test_it_trains_in_bf16_mixed_and_refuses_bf16_true(tiny_model_folder: Path) -> None:
    stage = make_offline(tiny_model_folder)
    fit(stage, make_loader(tiny_model_folder, outcomes=True), 2, precision="bf16-mixed")
    assert {p.dtype for p in stage.critic.parameters()} == {torch.float32}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="bf16-true would keep the critics' values in three digits"):
        fit(make_offline(tiny_model_folder), make_loader(tiny_model_folder, outcomes=True), 1, precision="bf16-true")


def test_data_without_outcomes_and_models_without_a_frozen_backbone_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="have no outcomes"):
        fit(make_offline(tiny_model_folder), make_loader(tiny_model_folder), 1)
    with pytest.raises(ValueError, match=r"critic\.features=frozen needs LoRA"):
        make_offline(tiny_model_folder, lora=None).configure_model()
    adapted = make_offline(tiny_model_folder, lora=None, critic=CriticSettings(features="adapted"))
    fit(adapted, make_loader(tiny_model_folder, outcomes=True), 1)


def test_a_reward_that_is_not_finite_stops_before_the_step_and_names_the_episode(tiny_model_folder: Path) -> None:
    stage, loader = make_offline(tiny_model_folder), make_loader(tiny_model_folder, outcomes=True, batch_size=6)
    bad = loader.episodes[3][0]
    bad.outcomes[0] = bad.outcomes[0]._replace(reward=float("nan"))
    stage.configure_model()
    before = trained(stage)
    with pytest.raises(NonFiniteLossError, match=bad.episode_id):
        fit(stage, loader, 1)
    assert not differs(before, trained(stage))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"level_weights": {"high": -1.0}}, "level_weights"),
        ({"value_actions": "both"}, "value_actions must be"),
        ({"critic_update": SarsaUpdate(), "value_actions": "policy"}, "SarsaUpdate, which has no V"),
    ],
)
def test_bad_settings_are_refused(tiny_model_folder: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_offline(tiny_model_folder, **bad)


@pytest.mark.parametrize("bad", [{"learning_rate": 0}, {"discount": 1.2}, {"polyak_rate": -0.1}], ids=str)
def test_bad_critic_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"critic.{next(iter(bad))}"):
        CriticSettings(**bad)


@pytest.mark.parametrize("bad", [{"advantage_temperature": 0.0}, {"max_weight": 0.0}, {"expectile": 1.0}], ids=str)
def test_bad_settings_of_the_update_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"critic_update.{next(iter(bad))}"):
        IQLUpdate(**bad)


@pytest.mark.parametrize("features", ["frozen", "adapted"])
def test_critics_have_the_size_of_the_last_states(features: Any, tmp_path: Path) -> None:
    """OPT-350m's are projected to the size of the embedding."""
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    make_model("opt", len(make_tokenizer()), **sizes).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    fit(make_offline(tmp_path, critic=CriticSettings(features=features)), make_loader(tmp_path, outcomes=True), 1)
