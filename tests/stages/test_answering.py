"""Problems answered in validation, test and predict, and what is left of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answering import make, make_data, trainer, write_rows
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks import CompletionText, ScoreTable
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.stages import AnsweringSettings


def test_test_reports_each_benchmark_and_their_mean(
    tiny_model_folder: Path, tmp_path: Path, files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = make(tiny_model_folder)
    (metrics,) = trainer(tmp_path, callbacks=[ScoreTable()]).test(stage, datamodule=make_data(tiny_model_folder, files))
    assert len(stage.evaluator.results) == 2 * 2 + 4 * 4
    shares = {}
    for source in ("amc", "math"):
        rewards = [one.reward for one in stage.evaluator.results if one.source == source]
        shares[source] = sum(rewards) / len(rewards)
        assert metrics[f"test/{source}/average"] == pytest.approx(shares[source])
    assert metrics["test/average"] == pytest.approx(sum(shares.values()) / 2)
    assert "pass@k" in capsys.readouterr().out
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["amc"]["k"] == 4 and saved["mean"]["problems"] == 6 and saved["mean"]["low"] is None


def test_every_answering_knob_counts(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    def texts(**answering: Any) -> list[str]:
        stage = make(tiny_model_folder, **answering)
        trainer(tmp_path).test(stage, datamodule=make_data(tiny_model_folder, files), verbose=False)
        return [one.completion for one in stage.evaluator.results]

    base = texts()
    assert texts() == base == texts(max_concurrent=3)
    numbers: list[dict[str, Any]] = [{"num_samples": 3}, {"num_samples_by_source": None}]
    for knob in ({"seed": 1}, *numbers, {"sampling": SamplingSettings(8, 0.3)}):
        assert texts(**knob) != base


def test_files_with_the_same_numbers_are_counted_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{letter}.jsonl", letter, 4) for letter in "ab"]
    stage = make(tiny_model_folder, num_samples=1)
    data = make_data(tiny_model_folder, "", train_files=None, eval_files=files, eval_batch_size=8)
    trainer(tmp_path).test(stage, datamodule=data, verbose=False)
    assert stage.evaluator.table[""]["problems"] == 8 and stage.evaluator.table[""]["k"] == 1
    assert {one.prompt for one in stage.evaluator.results} == {f"{letter}{n}?" for letter in "ab" for n in range(4)}
    rewards = [one.reward for one in stage.evaluator.results]
    assert stage.evaluator.table[""]["average"] == stage.evaluator.table[""]["pass"] == sum(rewards) / 8


def test_problems_of_one_id_in_a_loader_of_ones_own_are_counted_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, "", train_files=None, eval_files=write_rows(tmp_path / "a.jsonl", "a", 4))
    data.setup("test")
    prompts = [dataclasses.replace(p, problem=dataclasses.replace(p.problem, id="0")) for p in data.prompts["eval"]]
    stage = make(tiny_model_folder, num_samples=1)
    trainer(tmp_path).test(stage, PromptLoader(prompts, batch_size=4, shuffle=False), verbose=False)
    assert stage.evaluator.table[""]["problems"] == 4 and stage.evaluator.table[""]["k"] == 1


def test_repeats_are_answers_of_one_problem(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": f"{source} {n}?"}],
            "ability": "math",
            "reward_model": {"ground_truth": str(n), "style": "rule"},
            "extra_info": {"index": n, "split": "default"},
        }
        for source, number, repeats in (("math", 3, 1), ("aime", 2, 32), ("amc", 1, 32))
        for _ in range(repeats)
        for n in range(number)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "valid.all.parquet")

    def table(**answering: Any) -> dict[str, tuple[float, float]]:
        stage = make(tiny_model_folder, **{"num_samples": 1, "num_samples_by_source": None, **answering})
        data = make_data(tiny_model_folder, "", train_files=None, eval_files=str(tmp_path / "valid.all.parquet"))
        trainer(tmp_path).test(stage, datamodule=data, verbose=False)
        for source in ("math", "aime", "amc"):
            rewards = [one.reward for one in stage.evaluator.results if one.source == source]
            assert stage.evaluator.table[source]["average"] == pytest.approx(sum(rewards) / len(rewards))
        rows = stage.evaluator.table.items()
        return {source: (row["problems"], row["k"]) for source, row in rows if source != "mean"}

    assert table() == {"aime": (2, 32), "amc": (1, 32), "math": (3, 1)}
    assert table(num_samples=2)["aime"] == (2, 64)  # as two answers to each of 64 rows
    assert table(num_samples_by_source={"aime": 4}) == {"aime": (2, 4), "amc": (1, 32), "math": (3, 1)}


def test_completions_are_told_in_tensorboard(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="tb", version="")
    fitting = trainer(tmp_path, logger=logger, callbacks=[CompletionText(), ScoreTable()], max_steps=3,
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
    from lit_rft.callbacks.loggers import markdown_table

    table = markdown_table(["a"], [["x | y\n<script>alert(1)</script>`z`\x00" + "w" * 9999]])
    assert table.count("\n") == 2 and "<script" not in table and "`" not in table and len(table) < 6000


@pytest.mark.parametrize(
    "bad", [{"num_samples": 0}, {"max_concurrent": 0}, {"num_samples_by_source": {"amc": 0}}], ids=str
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"answering\.\S+ must be >= 1, got 0"):
        AnsweringSettings(**bad)
