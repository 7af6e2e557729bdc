"""DPO over episodes and over answers: the gradient of the joint loss, whatever the split; the reference; resume."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command import flags, main
from torch import Tensor

from lit_rft.datamodules.pairs import PairLoader, PreferenceBatch, PreferencePair
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.models.reference import reference_policy
from lit_rft.objectives import preference_loss
from lit_rft.stages import DPO, BatchingSettings, OptimizerSettings, PolicySettings, TrajectoryDPO
from lit_rft.testing.tiny import make_episode
from lit_rft.testing.tiny_stage import ADAPTERS, AGENT, FLAT, differs, fit, speak_out, updated
from lit_rft.transcripts import ChatFormat, PromptFormat, collate_padded, completion_transcript


def make_pairs(model: Path, agent: Any = AGENT, number: int = 3) -> list[PreferencePair]:
    """Episodes of several lengths; the rejected ones are longer."""
    chat = ChatFormat(load_tokenizer(str(model)))
    sides = [
        [agent.transcripts(make_episode(seed, 2 + seed % 3 + 2 * side), chat) for seed in range(number)]
        for side in range(2)
    ]
    return [PreferencePair(f"{n}", *both) for n, both in enumerate(zip(*sides, strict=True))]


def make_dpo(model: Path, **options: Any) -> TrajectoryDPO:
    L.seed_everything(0, verbose=False)
    lora = options.pop("lora", ADAPTERS)
    settings = {"optimizer": OptimizerSettings(learning_rate=5e-3), "agent": AGENT, **options}
    return TrajectoryDPO(PolicySettings(str(model), lora), **settings)


def after(model: Path, *, steps: int = 2, batch_size: int = 3, agent: Any = AGENT, **options: Any) -> dict[str, Tensor]:
    stage = make_dpo(model, agent=agent, **options)
    fit(stage, PairLoader(make_pairs(model, agent), batch_size=batch_size), steps)
    return updated(stage)


class Gradients(L.Callback):
    """Gradients of the first step, and the metrics of all."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.logged: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def joint_loss(stage: TrajectoryDPO, pairs: list[PreferencePair], beta: float) -> Tensor:
    """The loss of all pairs in one graph, trajectory by trajectory."""
    assert stage.policy is not None and stage.chat is not None

    def log_ratio(transcripts: Any) -> Tensor:
        total = torch.zeros(())
        for transcript in transcripts:
            batch = collate_padded([transcript], pad_id=0)

            def tokens(batch: Any = batch) -> Tensor:
                given = {"end_of_turn_id": stage.chat.end_of_turn_id, "chunk_tokens": 64, "ends": False}  # type: ignore[union-attr]
                return utterance_log_probs(stage.policy, batch, **given).tokens.sum()  # type: ignore[arg-type]

            with reference_policy(stage.policy):  # type: ignore[arg-type]
                reference = tokens()
            total = total + tokens() - reference
        return total

    sides = [torch.stack([log_ratio(getattr(pair, name)) for pair in pairs]) for name in ("chosen", "rejected")]
    return preference_loss(*sides, beta=beta).loss


@pytest.mark.parametrize("agent", [AGENT, FLAT], ids=["hierarchical", "flat"])
@pytest.mark.parametrize("batching", [BatchingSettings(1), BatchingSettings(4000), BatchingSettings(900, packing=True)])
def test_the_gradient_is_that_of_the_joint_loss(agent: Any, batching: Any, tiny_model_folder: Path) -> None:
    pairs = make_pairs(tiny_model_folder, agent)
    stage = make_dpo(tiny_model_folder, agent=agent, batching=batching, beta=0.3,
                     optimizer=OptimizerSettings(learning_rate=1e-12, max_grad_norm=0))  # fmt: skip
    stage.configure_model()
    speak_out(stage)  # adapters that differ from the reference: pairs of different margins
    recorder = Gradients()
    fit(stage, PairLoader(pairs, batch_size=3), 1, callbacks=[recorder])
    trained = {n: p for n, p in stage.named_parameters() if p.requires_grad}
    loss = joint_loss(stage, pairs, 0.3)
    expected = torch.autograd.grad(loss, list(trained.values()))
    assert recorder.gradients.keys() == trained.keys()
    for (name, gradient), plain in zip(recorder.gradients.items(), expected, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=2e-3, atol=1e-6, msg=name)
    assert recorder.logged[0]["train/loss"] == pytest.approx(float(loss), rel=1e-4)


def test_the_first_step_starts_at_the_reference(tiny_model_folder: Path) -> None:
    recorder = Gradients()
    fit(make_dpo(tiny_model_folder), PairLoader(make_pairs(tiny_model_folder), batch_size=3), 1, callbacks=[recorder])
    logged = recorder.logged[0]
    assert logged["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert logged["train/margin"] == pytest.approx(0.0, abs=1e-6)


def test_the_margin_of_the_pairs_rises(tiny_model_folder: Path) -> None:
    recorder = Gradients()
    loader = PairLoader(make_pairs(tiny_model_folder), batch_size=3)
    fit(make_dpo(tiny_model_folder), loader, 8, callbacks=[recorder])
    last = recorder.logged[-1]
    assert last["train/accuracy"] == 1.0 and last["train/margin"] > 0.5
    assert last["train/loss"] < 0.6 * recorder.logged[0]["train/loss"]
    assert last["train/chosen_reward"] > last["train/rejected_reward"]


def test_swapped_pairs_are_learnt_the_other_way_round(tiny_model_folder: Path) -> None:
    pairs = make_pairs(tiny_model_folder)
    swapped = [PreferencePair(pair.id, pair.rejected, pair.chosen) for pair in pairs]
    stage = make_dpo(tiny_model_folder)
    fit(stage, PairLoader(swapped, batch_size=3), 8)
    metrics = stage.update.evaluate(stage.current_policy(), PreferenceBatch(pairs, len(pairs)))
    assert metrics["accuracy"] == 0 and metrics["margin"] < -0.5


def test_the_reference_does_not_change_within_an_iteration(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A second iteration starts from the first one's checkpoint, which is its reference."""
    loader = PairLoader(make_pairs(tiny_model_folder), batch_size=3)
    first = make_dpo(tiny_model_folder)
    trainer = fit(first, loader, 3, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    L.seed_everything(1, verbose=False)
    second = TrajectoryDPO(
        PolicySettings(str(tiny_model_folder), ADAPTERS, start_from=str(tmp_path / "first.ckpt")),
        OptimizerSettings(learning_rate=5e-3), agent=AGENT,
    )  # fmt: skip
    recorder = Gradients()
    fit(second, PairLoader(make_pairs(tiny_model_folder), batch_size=3), 3, callbacks=[recorder])
    assert recorder.logged[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    started = {name: p for name, p in first.named_parameters() if "lora_" in name}
    reference = {name.replace(".reference.", ".default."): p for name, p in second.named_parameters()
                 if ".reference." in name}  # fmt: skip
    assert reference.keys() == started.keys()
    for name, weight in reference.items():
        assert torch.equal(weight, started[name])
    assert differs(updated(second), updated(first))


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, torch.Tensor]:
    return after(tiny_model_folder)


@pytest.mark.parametrize("knob", [{"beta": 0.5}, {"label_smoothing": 0.2}])
def test_every_knob_changes_the_result(
    knob: dict[str, Any], tiny_model_folder: Path, base: dict[str, torch.Tensor]
) -> None:
    assert differs(base, after(tiny_model_folder, **knob), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batching", [BatchingSettings(1), BatchingSettings(900, packing=True)])
def test_micro_batches_change_nothing(batching: Any, tiny_model_folder: Path) -> None:
    whole, split = after(tiny_model_folder), after(tiny_model_folder, batching=batching)
    assert not differs(whole, split, rtol=1e-3, atol=1e-5)


def test_resume_equals_uninterrupted(tiny_model_folder: Path, tmp_path: Path) -> None:
    def loader() -> PairLoader:
        return PairLoader(make_pairs(tiny_model_folder), batch_size=2)

    whole = make_dpo(tiny_model_folder)
    fit(whole, loader(), 4)
    trainer = fit(make_dpo(tiny_model_folder), loader(), 2, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_dpo(tiny_model_folder)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=4, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **settings)
    trainer.fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    for name, weight in updated(whole).items():
        assert torch.equal(weight, updated(resumed)[name]), name


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"beta": 0.0}, "beta must be > 0, got 0.0"), ({"label_smoothing": 0.5}, "label_smoothing must be in"),
     ({"lora": None}, "needs LoRA")],
)  # fmt: skip
def test_what_is_refused(setting: dict[str, Any], message: str, tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_dpo(tiny_model_folder, **setting)


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_pairs(model: Path, number: int = 4) -> list[PreferencePair]:
    form = PromptFormat(load_tokenizer(str(model)))

    def side(n: int, text: str) -> Any:
        prompt = form.prompt_ids([{"role": "user", "content": f"Question {n}?"}])
        return [completion_transcript(f"{n}", prompt, form.completion_ids(text), form.end_of_turn_id)]

    return [PreferencePair(f"{n}", side(n, "yes it is"), side(n, "no")) for n in range(number)]


def test_answers_are_preferred_and_held_out_pairs_are_counted(tiny_model_folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    lora = LoraSettings(rank=4, alpha=8, dropout=0.1, target_modules="all-linear")
    stage = DPO(PolicySettings(str(tiny_model_folder), lora), OptimizerSettings(learning_rate=5e-3), beta=0.5)
    pairs = answer_pairs(tiny_model_folder, 6)
    trainer = fit(stage, PairLoader(pairs[:4], batch_size=4), 8, limit_val_batches=1.0)
    (metrics,) = trainer.validate(stage, PairLoader(pairs[4:], batch_size=1, shuffle=False), verbose=False)
    assert metrics["val/accuracy"] == 1.0 and metrics["val/margin"] > 0.2
    assert metrics["val/loss"] < math.log(2)


def test_margins_keep_their_digits_in_half_precision(tiny_model_folder: Path) -> None:
    """A margin is a small part of the log-probabilities of whole episodes."""
    margins = []
    for precision in ("32-true", "bf16-true"):
        loader = PairLoader(make_pairs(tiny_model_folder), batch_size=3)
        trainer = fit(make_dpo(tiny_model_folder), loader, 2, precision=precision)
        margins.append(trainer.callback_metrics["train/margin"].item())
    assert margins[1] == pytest.approx(margins[0], rel=0.1)


def test_pairs_of_files_train_and_are_evaluated_by_commands(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the callbacks of every run, of which one reports scores."""
    rows = [{"prompt": f"Question {n}?", "chosen": "yes it is", "rejected": "no"} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [part for name in ("train_files", "eval_files") for part in (f"--data.{name}", f"{tmp_path}/pairs.jsonl")]
    keys = flags(model__policy__model=tiny_model_folder, trainer__default_root_dir=tmp_path / "run",
                 trainer__accelerator="cpu", trainer__logger="false")  # fmt: skip
    given = ["-c", "policy.yaml", "--model", "DPO", "--data", "PreferenceDataModule", *pairs, *keys]
    main(["fit", *given, *flags(trainer__max_epochs=1, model__optimizer__learning_rate=0.05)])
    assert "validation, step 1" in capsys.readouterr().out
    main(["test", *given, "--ckpt_path", "last"])
    assert "accuracy" in capsys.readouterr().out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["mean"]
    assert scores["accuracy"] == 1.0 and 0 < scores["loss"] < math.log(2)
