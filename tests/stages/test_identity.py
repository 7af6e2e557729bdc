"""A checkpoint knows its base model, adapter, chat format, stage and settings; others are refused."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft.agents import HierarchicalAgent, HierarchyPrompts
from lit_rft.callbacks import AdapterExport, AtomicCheckpointIO
from lit_rft.generation import SamplingSettings
from lit_rft.models import LoraSettings, load_backbone
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    HierarchicalSFT,
    MixedPolicyEpisodes,
    MixedPolicyGRPO,
    OfflineHierarchicalRL,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.stages.core.identity import digest, weights_fingerprint
from lit_rft.testing.tiny import CHATML, make_model, make_tokenizer
from lit_rft.testing.tiny_stage import ADAPTERS, AGENT, fit, make_loader, make_offline, make_stage, trained

UPPER = CHATML.replace("m['role'] }}", "m['role'] | upper }}").replace("<|im_start|>assistant", "<|im_start|>ASSISTANT")
RATE = OptimizerSettings(learning_rate=5e-3)


def save(stage: Any, path: Path) -> Path:
    """Write a checkpoint without training, of adapters that do act."""
    stage.configure_model()
    torch.manual_seed(7)
    for parameter in stage.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer = L.Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()], enable_progress_bar=False)
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(path)
    return path


def model_folder(folder: Path, seed: int = 0, template: str | None = CHATML, dtype: Any = None, **config: Any) -> Path:
    tokenizer = make_tokenizer(template)
    make_model(vocab_size=len(tokenizer), seed=seed, **config).to(dtype or torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def resume(stage: Any, model: Path, checkpoint: Path, steps: int = 2) -> Any:
    settings = {"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "logger": False, "limit_val_batches": 0}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(**settings, **quiet)
    trainer.fit(stage, make_loader(model), ckpt_path=str(checkpoint))
    return stage


def stages(model: Path) -> dict[str, Any]:
    """One of each, with settings other than the defaults."""
    policy = PolicySettings(str(model), ADAPTERS)
    acting = {"agent": AGENT}
    by_level = {"low": SamplingSettings(9, 0.5, stop_strings=("x",))}
    acting_by_level = ActingSettings(level_sampling=by_level)
    return {
        "sft": HierarchicalSFT(policy, RATE, acting_by_level, length_coef=0.25, **acting),
        "offline": OfflineHierarchicalRL(policy, critic=CriticSettings(per_level=False), **acting),
        "online": OnlineHighLevelFinetune(OnlineSettings(level_exploration=by_level), policy, RATE, **acting),
        "grpo": MixedPolicyGRPO(policy, sampling=SamplingSettings(9, 0.5, stop_strings=("x",))),
        "episodes": MixedPolicyEpisodes(policy, batching=BatchingSettings(packing=True), **acting),
    }


@pytest.mark.parametrize("name", ["sft", "offline", "online", "grpo", "episodes"])
def test_every_stage_loads_without_arguments(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = stages(tiny_model_folder)[name]
    path = save(stage, tmp_path / "a.ckpt")
    loaded = type(stage).load_from_checkpoint(path)
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in stage.named_parameters())
    assert loaded.hparams == stage.hparams and loaded.policy_settings.model == str(tiny_model_folder)
    assert loaded.optimizer_settings == stage.optimizer_settings
    for attribute in ("length_coef", "critic_settings", "sampling", "batching", "objective", "online", "acting"):
        if hasattr(stage, attribute):
            assert getattr(loaded, attribute) == getattr(stage, attribute)


def test_loading_needs_no_start_and_takes_other_arguments(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = save(make_stage(tiny_model_folder), tmp_path / "first.ckpt")
    second = make_stage(tiny_model_folder, policy={"start_from": str(first)})
    path = save(second, tmp_path / "second.ckpt")
    first.unlink()
    loaded = HierarchicalSFT.load_from_checkpoint(path, length_coef=0.5)
    assert loaded.length_coef == 0.5 and loaded.policy_settings.start_from is None
    assert all(torch.equal(value, trained(loaded)[name]) for name, value in trained(second).items())


def test_a_reward_of_the_users_own_is_named_and_left_to_its_default(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Mine:
        def __call__(self, completions: Any, rows: Any) -> list[float]:
            return [0.0] * len(completions)

    stage = MixedPolicyGRPO(PolicySettings(str(tiny_model_folder), ADAPTERS), reward=Mine())
    path = save(stage, tmp_path / "a.ckpt")
    loaded = MixedPolicyGRPO.load_from_checkpoint(path)
    assert "Mine" in caplog.text and "reward=" in caplog.text and not isinstance(loaded.reward, Mine)
    mine = Mine()
    assert MixedPolicyGRPO.load_from_checkpoint(path, reward=mine).reward is mine


def test_hyper_parameters_are_written_for_the_logger(tiny_model_folder: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1, logger=logger)
    text = (tmp_path / "hparams.yaml").read_text()
    assert "learning_rate: 0.005" in text and "rank: 4" in text and "!!" not in text


@pytest.mark.parametrize(
    ("seed", "lora", "template", "expected"),
    [
        (1, {}, CHATML, ["base model", "other weights"]),
        (0, {"alpha": 16}, CHATML, ["lora.alpha: 8 -> 16"]),
        (0, {"target_modules": ("q_proj",)}, CHATML, ["lora.target_modules", "q_proj"]),
        (0, {"rank": 2}, CHATML, ["lora.rank: 4 -> 2"]),
        (0, {}, UPPER, ["chat template"]),
        (0, {}, None, ["chat template", "end token <|im_end|> -> <|endoftext|>"]),
    ],
    ids=["model", "alpha", "targets", "rank", "template", "no template"],
)
@pytest.mark.parametrize("way", ["resume", "start"])
def test_another_policy_is_refused(
    way: str, seed: int, lora: dict[str, Any], template: str | None, expected: list[str], tmp_path: Path
) -> None:
    first = model_folder(tmp_path / "first")
    path = save(make_stage(first), tmp_path / "a.ckpt")
    other = model_folder(tmp_path / "other", seed, template)
    adapters = dataclasses.replace(ADAPTERS, **lora)
    with pytest.raises(ValueError, match="does not fit the model") as refused:
        if way == "resume":
            resume(make_stage(other, lora=adapters), other, path)
        else:
            make_stage(other, lora=adapters, policy={"start_from": str(path)}).configure_model()
    assert all(text in str(refused.value) for text in expected), refused.value


def test_another_configuration_of_the_same_weights_is_refused(tmp_path: Path) -> None:
    path = save(make_stage(model_folder(tmp_path / "first")), tmp_path / "a.ckpt")
    other = model_folder(tmp_path / "other", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    with pytest.raises(ValueError, match="rope"):
        make_stage(other, policy={"start_from": str(path)}).configure_model()


@pytest.mark.parametrize("lora", [ADAPTERS, None], ids=["adapters", "all weights"])
def test_the_same_model_in_another_folder_is_taken(lora: LoraSettings | None, tmp_path: Path) -> None:
    first, moved = model_folder(tmp_path / "first"), model_folder(tmp_path / "moved")
    stage = make_stage(first, lora=lora)
    path = save(stage, tmp_path / "a.ckpt")
    second = make_stage(moved, lora=lora, policy={"start_from": str(path)})
    second.configure_model()
    assert all(torch.equal(value, trained(second)[name]) for name, value in trained(stage).items())
    fit(stage, make_loader(first), 1).save_checkpoint(tmp_path / "b.ckpt")
    resume(make_stage(moved, lora=lora), moved, tmp_path / "b.ckpt")


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_the_fingerprint_is_of_the_base_model_alone(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "first")
    half = model_folder(tmp_path / "half", dtype=torch.bfloat16)
    plain = weights_fingerprint(load_backbone(str(folder)))
    assert plain == weights_fingerprint(load_backbone(str(folder), dtype=torch.bfloat16))
    assert plain == weights_fingerprint(load_backbone(str(folder), lora=ADAPTERS))
    assert plain == weights_fingerprint(load_backbone(str(half)))
    changed = load_backbone(str(folder))
    torch.nn.init.normal_(changed.get_decoder().layers[1].mlp.up_proj.weight)  # type: ignore[operator]
    assert plain != weights_fingerprint(changed)


def test_a_checkpoint_of_another_stage_is_refused_by_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = save(make_stage(tiny_model_folder), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"by the stage HierarchicalSFT, and this is OfflineHierarchicalRL") as refused:
        resume(make_offline(tiny_model_folder), tiny_model_folder, path)
    assert "policy.start_from" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"use HierarchicalSFT\.load_from_checkpoint"):
        OfflineHierarchicalRL.load_from_checkpoint(path)


def test_prompts_cannot_change_on_resume(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = save(make_stage(tiny_model_folder), tmp_path / "a.ckpt")
    agent = HierarchicalAgent(HierarchyPrompts("Think."))
    other = HierarchicalSFT(PolicySettings(str(tiny_model_folder), ADAPTERS), RATE, agent=agent)
    with pytest.raises(ValueError, match=r"prompts\.high: Plan\. -> Think\."):
        resume(other, tiny_model_folder, path)


def test_critics_of_other_features_are_no_start(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = save(make_offline(tiny_model_folder), tmp_path / "a.ckpt")
    options = {"critic": CriticSettings(features="adapted"), "policy": {"start_from": str(path)}}
    with pytest.raises(ValueError, match=r"set critic\.features=frozen"):
        make_offline(tiny_model_folder, **options).configure_model()


def test_optimizer_settings_changed_on_resume_take_effect(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    changed = OptimizerSettings(learning_rate=1e-4, weight_decay=0.5, warmup_steps=4)
    with caplog.at_level(logging.INFO, "lit_rft"):
        stage = resume(make_stage(tiny_model_folder, optimizer=changed), tiny_model_folder, tmp_path / "a.ckpt")
    (group,) = stage.trainer.optimizers[0].param_groups
    assert group["weight_decay"] == 0.5 and group["initial_lr"] == 1e-4
    assert stage.trainer.callback_metrics["train/learning_rate"] == pytest.approx(1e-4 * 3 / 5)  # of the step to come
    for text in ("optimizer.learning_rate: 0.005 -> 0.0001", "optimizer.weight_decay: 0.01 -> 0.5"):
        assert text in caplog.text


def test_a_changed_learning_rate_moves_the_weights_accordingly(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Adam's step is proportional to the learning rate: a hundredth of it moves a hundredth as far."""
    trainer = fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    moved = {}
    for rate in (5e-3, 5e-5):
        optimizer = OptimizerSettings(learning_rate=rate, weight_decay=0.0)
        stage = resume(make_stage(tiny_model_folder, optimizer=optimizer), tiny_model_folder, tmp_path / "a.ckpt")
        changes = [(value - before[name]).flatten() for name, value in trained(stage).items()]
        moved[rate] = torch.cat(changes).norm().item()
    assert moved[5e-5] == pytest.approx(moved[5e-3] / 100, rel=0.01)


def test_an_adapter_folder_brings_its_own_settings(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export = AdapterExport(str(tmp_path / "a"))
    fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1, callbacks=[export])
    start = {"start_from": str(tmp_path / "a")}
    with pytest.raises(ValueError, match=r"alpha is 8 there, 16 here.*set policy\.lora") as refused:
        wrong = LoraSettings(rank=4, alpha=16, dropout=0.0, target_modules=("q_proj",))
        make_stage(tiny_model_folder, lora=wrong, policy=start).configure_model()
    assert "target_modules is" in str(refused.value) and "rank is" not in str(refused.value)
    make_stage(tiny_model_folder, lora=ADAPTERS, policy=start).configure_model()
    make_stage(tiny_model_folder, lora=None, policy=start).configure_model()
    with caplog.at_level(logging.INFO, "lit_rft"):
        stage = make_stage(tiny_model_folder, lora=LoraSettings(), policy=start)  # the defaults: nobody named them
        stage.configure_model()
    assert "brings its own settings: rank is 4 there, 16 here" in caplog.text
    other = model_folder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="does not fit the model: the base model is another one"):
        make_stage(other, policy=start).configure_model()
    path = save(stage, tmp_path / "b.ckpt")  # its LoRA settings are the folder's, which may be gone
    loaded = HierarchicalSFT.load_from_checkpoint(path)
    assert loaded.policy_settings.lora is not None and loaded.policy_settings.lora.rank == 4


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"exclude_modules": ["q_proj"]}),
        ("llama", {"exclude_modules": r".*\.mlp\..*"}),
        ("gpt2", {}),
        ("mixtral", {}),
    ],
)
def test_a_folder_with_the_adapter_of_the_same_settings_is_taken(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    lora = dataclasses.replace(ADAPTERS, target_modules="all-linear", **settings)
    make_model(architecture, vocab_size=len(make_tokenizer())).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    adapted: Any = load_backbone(str(tmp_path / "model"), lora=lora)
    adapted.save_pretrained(tmp_path / "adapter")
    start = {"start_from": str(tmp_path / "adapter")}
    make_stage(tmp_path / "model", lora=lora, policy=start).configure_model()
    for other in ({"target_modules": ["v_proj", "c_proj"]}, {"exclude_modules": ["k_proj", "c_proj"]}):
        with pytest.raises(ValueError, match=r"policy\.lora does not match the adapter"):
            make_stage(tmp_path / "model", lora=dataclasses.replace(lora, **other), policy=start).configure_model()


def test_arguments_that_a_stage_hands_on_are_recorded_with_their_defaults(tiny_model_folder: Path) -> None:
    """A run of the command line, which sets everything, is resumed by a program, which sets little."""
    policy = PolicySettings(str(tiny_model_folder))
    own, base = OnlineHighLevelFinetune(policy=policy), OfflineHierarchicalRL(policy)
    assert set(own.hparams) == {"online", "frozen_levels", *base.hparams} - {"best_of"}
    everything = OnlineHighLevelFinetune(policy=policy, agent=HierarchicalAgent())
    for stage in (own, everything):
        stage.configure_model()
    assert own.hparams == everything.hparams
