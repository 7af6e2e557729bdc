"""Problems answered in validation, test and predict, and what is left of it."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_stage import ADAPTERS

from lit_rft.callbacks import AnswerTable, CompletionFiles, CompletionText
from lit_rft.datamodules import MathPromptDataModule
from lit_rft.rewards import MathReward, RewardError
from lit_rft.rollout import SamplingSettings
from lit_rft.stages import AnsweringSettings, MixedPolicyGRPO, ObjectiveSettings, OptimizerSettings, PolicySettings


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


@pytest.fixture
def files(tmp_path: Path) -> str:
    rows = [
        {"id": f"p{i}", "prompt": f"What is {i}+1?", "ground_truth": str(i + 1), "traces": [f"It is {i + 1}."],
         "source": "amc" if i % 3 else "math"}
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(model: Path, reward: Any = None, **answering: Any) -> MixedPolicyGRPO:
    L.seed_everything(0, verbose=False)
    settings = {"sampling": SamplingSettings(8, 1.0), "answers": 2, "answers_by_source": {"amc": 4}}
    return MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=ADAPTERS),
        OptimizerSettings(learning_rate=1e-3),
        ObjectiveSettings(group_size=4),
        SamplingSettings(8, 1.0),
        reward=reward or vowels,
        answering=AnsweringSettings(**{**settings, **answering}),
    )


def make_data(model: Path, files: str, **options: Any) -> MathPromptDataModule:
    settings = {"train_files": [files], "eval_files": [files], "batch_size": 2, "eval_batch_size": 2}
    return MathPromptDataModule(str(model), **{**settings, **options})


def trainer(folder: Path, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**settings, **options})


def test_test_reports_each_benchmark_and_their_mean(
    tiny_model_folder: Path, tmp_path: Path, files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = make(tiny_model_folder)
    (metrics,) = trainer(tmp_path, callbacks=[AnswerTable()]).test(
        stage, datamodule=make_data(tiny_model_folder, files)
    )
    assert len(stage.answers) == 2 * 2 + 4 * 4
    shares = {}
    for source in ("amc", "math"):
        rewards = [one.reward for one in stage.answers if one.source == source]
        shares[source] = sum(rewards) / len(rewards)
        assert metrics[f"test/average/{source}"] == pytest.approx(shares[source])
    assert metrics["test/average"] == pytest.approx(sum(shares.values()) / 2)
    assert "pass@k" in capsys.readouterr().out
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["amc"]["k"] == 4 and saved["mean"]["problems"] == 6 and saved["mean"]["low"] is None


def test_every_answering_knob_counts(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    def texts(**answering: Any) -> list[str]:
        stage = make(tiny_model_folder, **answering)
        trainer(tmp_path).test(stage, datamodule=make_data(tiny_model_folder, files), verbose=False)
        return [one.completion for one in stage.answers]

    base = texts()
    assert texts() == base == texts(slots=3)
    for knob in ({"seed": 1}, {"answers": 3}, {"answers_by_source": None}, {"sampling": SamplingSettings(8, 0.3)}):
        assert texts(**knob) != base


def test_predict_writes_completions_and_resumes(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    def predict(folder: Path, batches: int | None = None, **answering: Any) -> list[dict[str, Any]]:
        options = {"limit_predict_batches": batches} if batches else {}
        stage = make(tiny_model_folder, **answering)
        trainer(folder, callbacks=[CompletionFiles()], **options).predict(
            stage, datamodule=make_data(tiny_model_folder, files), return_predictions=False
        )
        return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]

    whole = predict(tmp_path / "whole")
    assert len(whole) == 1 + 2 * 2 + 4 * 4
    assert {"id", "completion", "reward", "ground_truth"} <= set(whole[1])
    first = predict(tmp_path / "parts", 1)
    path = tmp_path / "parts" / "completions.jsonl"
    path.write_text(path.read_text() + '{"id": "p2", "completion": "torn')  # killed while it wrote
    assert len(first) < len(whole)
    resumed = predict(tmp_path / "parts")
    assert sorted(map(str, resumed)) == sorted(map(str, whole))
    with pytest.raises(ValueError, match="another policy or sampling"):
        predict(tmp_path / "parts", seed=9)


def test_completions_are_told_in_tensorboard(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="tb", version="")
    fitting = trainer(tmp_path, logger=logger, callbacks=[CompletionText(), AnswerTable()], max_steps=3,
                      log_every_n_steps=1,
                      val_check_interval=3, check_val_every_n_epoch=None)  # fmt: skip
    fitting.fit(make(tiny_model_folder), datamodule=make_data(tiny_model_folder, files))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert any(tag.startswith("train/completions") for tag in events.Tags()["tensors"])
    assert any(tag.startswith("val/answers") for tag in events.Tags()["tensors"])
    assert {"train/reward", "train/no_signal_fraction", "val/average"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3]


def test_what_a_model_writes_does_not_break_the_table() -> None:
    from lit_rft.callbacks.answers import _markdown

    table = _markdown(["a"], [["x | y\n<script>alert(1)</script>`z`\x00" + "w" * 9999]])
    assert table.count("\n") == 2 and "<script" not in table and "`" not in table and len(table) < 6000


@pytest.mark.parametrize("bad", [{"answers": 0}, {"slots": 0}, {"answers_by_source": {"amc": 0}}], ids=str)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"answering\.\S+ must be >= 1, got 0"):
        AnsweringSettings(**bad)


def by_name(completions: list[str], prompts: Any, ground_truth: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
    """A reward function in TRL's form."""
    assert [int(prompt[-1]["content"][8]) + 1 for prompt in prompts] == list(map(int, ground_truth))
    assert all(ids and isinstance(ids[0], int) for ids in completion_ids) and set(kwargs["source"]) <= {"amc", "math"}
    return [float(len(text) % 2) for text in completions]


def test_reward_functions_by_name_in_every_verb(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    stage = make(tiny_model_folder, reward=by_name)
    trainer(tmp_path, max_steps=1, limit_val_batches=1, num_sanity_val_steps=0, val_check_interval=1).fit(
        stage, datamodule=make_data(tiny_model_folder, files)
    )
    assert all(one.reward == float(len(one.text) % 2) for one in stage.samples)
    trainer(tmp_path).test(stage, datamodule=make_data(tiny_model_folder, files), verbose=False)
    assert all(one.reward == float(len(one.completion) % 2) for one in stage.answers) and stage.answers
    with pytest.raises(RewardError, match="cannot be called"):
        make(tiny_model_folder, reward=lambda texts, problems: [0.0])


class Killing:
    """Counts as `MathReward` does."""

    def __call__(self, completions: list[str], rows: Any) -> list[float]:
        self.number = len(completions)
        return [0.0] * len(completions)

    def metrics(self) -> dict[str, float]:
        return {"unreadable": 1.0, "killed": float(getattr(self, "number", 0))}


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_every_verb_counts_what_was_unreadable_or_killed(
    tiny_model_folder: Path, tmp_path: Path, files: str, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    stage = make(tiny_model_folder, reward=Killing())
    with caplog.at_level("INFO", "lit_rft"):
        getattr(trainer(tmp_path), verb)(stage, datamodule=make_data(tiny_model_folder, files))
    # six problems in three batches, 20 answers
    assert f"{verb}: 20 answers graded, 20 answers killed, 3 answers unreadable" in caplog.text
    assert "20 answers were killed in grading and count as wrong" in caplog.text


def test_ground_truths_that_cannot_be_earned_are_named_when_the_data_is_loaded(
    tiny_model_folder: Path, tmp_path: Path, files: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Path(files).open("a") as stream:
        stream.write(json.dumps({"id": "bad", "prompt": "What is 6+1?", "ground_truth": "\\frac{7"}) + "\n")
    stage = make(tiny_model_folder, reward=MathReward())
    trainer(tmp_path, limit_test_batches=1).test(stage, datamodule=make_data(tiny_model_folder, files), verbose=False)
    assert "1 of 7 ground truths" in caplog.text and r"'\\frac{7': given back in a box" in caplog.text
