"""The stage on a tiny model: it learns, every knob counts, and how a step is split changes nothing."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft.agents import FlatAgent, HierarchicalAgent
from lit_rft.batches import StepTranscripts
from lit_rft.models import LoraSettings
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    HierarchicalSFT,
    NonFiniteLossError,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.tiny_stage import (
    ADAPTERS,
    AGENT,
    FLAT,
    SPLITS,
    differs,
    fit,
    make_loader,
    make_stage,
    trained,
    updated,
)


def after(model: Path, *, loader: dict[str, Any] | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """The trained weights after two steps."""
    stage = make_stage(model, **options)
    fit(stage, make_loader(model, **(loader or {})), 2)
    return updated(stage)


@pytest.mark.parametrize("agent", [AGENT, FLAT])
def test_the_loss_falls_on_one_batch(tiny_model_folder: Path, agent: Any) -> None:
    losses = []

    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            losses.append(trainer.callback_metrics["train/loss"].item())

    stage = make_stage(tiny_model_folder, lora=None, agent=agent)
    fit(stage, make_loader(tiny_model_folder, agent=agent, episodes=2), 25, callbacks=[Recorder()])
    assert losses[-1] < 0.3 * losses[0]


def test_adapters_train_and_the_backbone_does_not(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    stage.configure_model()
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    fit(stage, make_loader(tiny_model_folder), 3)
    for name, parameter in stage.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad == ("lora" in name)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_micro_batches_and_packing_change_nothing(tiny_model_folder: Path, split: BatchingSettings) -> None:
    plain = after(tiny_model_folder, length_coef=0.1)
    other = after(tiny_model_folder, length_coef=0.1, batching=split)
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], rtol=1e-3, atol=2e-5)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, torch.Tensor]:
    return after(tiny_model_folder)


@pytest.mark.parametrize(
    "knob",
    [
        {"level_weights": {"high": 0.3}},
        {"level_weights": {"low": 0.3}},
        {"length_coef": 0.5},
        {"average_tokens": False},
        {"optimizer": OptimizerSettings(learning_rate=1e-3)},
        {"optimizer": OptimizerSettings(learning_rate=5e-3, weight_decay=0.5)},
        {"optimizer": OptimizerSettings(learning_rate=5e-3, max_grad_norm=1e-7)},
        {"optimizer": OptimizerSettings(learning_rate=5e-3, warmup_steps=10)},
        {"optimizer": OptimizerSettings(learning_rate=5e-3, schedule="cosine")},
        {"optimizer": OptimizerSettings(learning_rate=5e-3, schedule="linear")},
        {"lora": LoraSettings(4, 16, 0.0, "all-linear")},
        {"lora": LoraSettings(4, 8, 0.3, "all-linear")},
        {"loader": {"batch_size": 2}},
        {"loader": {"seed": 1}},
    ],
    ids=str,
)
def test_every_knob_changes_the_result(
    tiny_model_folder: Path, base: dict[str, torch.Tensor], knob: dict[str, Any]
) -> None:
    assert differs(base, after(tiny_model_folder, **knob))


def test_rank_and_targets_change_what_trains(tiny_model_folder: Path) -> None:
    def shapes(lora: LoraSettings) -> dict[str, torch.Size]:
        stage = make_stage(tiny_model_folder, lora=lora)
        stage.configure_model()
        return {name: p.shape for name, p in trained(stage).items()}

    plain = shapes(ADAPTERS)
    assert shapes(LoraSettings(2, 8, 0.0, "all-linear")) != plain
    assert set(shapes(LoraSettings(4, 8, 0.0, ("q_proj",)))) < set(plain)


def test_gradient_checkpointing_changes_no_result(tiny_model_folder: Path) -> None:
    plain = after(tiny_model_folder)
    again = after(tiny_model_folder, policy={"gradient_checkpointing": True})
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=1e-4, atol=1e-6)


def test_bf16_keeps_a_frozen_backbone_in_bf16_and_adapters_in_float32(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    fit(stage, make_loader(tiny_model_folder), 1, precision="bf16-mixed")
    dtypes = {name: p.dtype for name, p in stage.named_parameters()}
    assert {d for n, d in dtypes.items() if "lora" in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if "lora" not in n} == {torch.bfloat16}
    whole = make_stage(tiny_model_folder, lora=None)
    fit(whole, make_loader(tiny_model_folder), 1, precision="bf16-mixed")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_fp16_is_refused(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    with pytest.raises(ValueError, match="bf16-mixed or 32-true"):
        fit(stage, make_loader(tiny_model_folder), 1, precision="16-true")


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_episodes(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    stage.configure_model()
    good = trained(stage)
    next(p for n, p in stage.named_parameters() if "norm" in n).data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="find-plant/"):
        fit(stage, make_loader(tiny_model_folder), 1)
    assert all(torch.equal(good[name], weight) for name, weight in trained(stage).items())


def test_a_gradient_that_is_not_finite_stops_before_the_step(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    stage.configure_model()
    good = trained(stage)
    next(p for p in stage.parameters() if p.requires_grad).register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NonFiniteLossError, match="in a gradient"):
        fit(stage, make_loader(tiny_model_folder), 1)
    assert all(torch.equal(good[name], weight) for name, weight in trained(stage).items())


def test_an_empty_share_of_a_step_still_steps(tiny_model_folder: Path) -> None:
    stage = make_stage(tiny_model_folder)
    loader: Any = torch.utils.data.DataLoader([StepTranscripts([], {"high": 3, "low": 3, "flat": 0})], batch_size=None)
    trainer = fit(stage, loader, 1)
    assert trainer.global_step == 1


@pytest.mark.parametrize("bad", [{"level_weights": {"low": -0.1}}, {"length_coef": -1.0}])
def test_bad_weights_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        HierarchicalSFT(**bad)


@pytest.mark.parametrize(
    "bad",
    [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"max_grad_norm": -1.0}, {"warmup_steps": -1}],
)
def test_bad_optimizer_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        OptimizerSettings(**bad)


@pytest.mark.parametrize("bad", [{"parallel_episodes": 0}, {"parallel_episodes": -1}])
def test_bad_acting_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ActingSettings(**bad)


@pytest.mark.parametrize("agent", [HierarchicalAgent(max_length=10), FlatAgent(max_length=10)])
def test_a_context_without_room_for_an_utterance_is_refused(agent: Any) -> None:
    with pytest.raises(ValueError, match=r"agent\.max_length must be larger than .*max_new_tokens, got 10"):
        HierarchicalSFT(agent=agent)


def test_an_agent_whose_settings_no_checkpoint_could_keep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"agent must be a frozen dataclass, .*; got object"):
        HierarchicalSFT(agent=object())  # type: ignore[arg-type]


def test_an_unknown_model_says_what_a_name_may_be() -> None:
    stage = HierarchicalSFT(PolicySettings(model="/no/such/folder"))
    with pytest.raises(ValueError, match="smollm2-135m-instruct"):
        stage.configure_model()


def test_overfitting_repeats_the_first_batch(tiny_model_folder: Path) -> None:
    seen: list[list[str]] = []

    class Names(L.Callback):
        def on_train_batch_start(self, trainer: Any, stage: Any, batch: StepTranscripts, batch_idx: int) -> None:
            seen.append([transcript.episode_id for transcript in batch.transcripts])

    loader = make_loader(tiny_model_folder, batch_size=2)
    fit(make_stage(tiny_model_folder), loader, 4, overfit_batches=1, callbacks=[Names()])
    assert len(loader) == 3 and seen == [seen[0]] * 4
