"""Problems answered in validation, test and predict, and what is left of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks import AnswerTable, CompletionFiles, CompletionText
from lit_rft.datamodules import MathPromptDataModule, PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.rewards import MathReward, RewardError, RewardSum
from lit_rft.stages import AnsweringSettings, MixedPolicyGRPO, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS


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
    settings = {"sampling": SamplingSettings(8, 1.0), "num_samples": 2, "num_samples_by_source": {"amc": 4}}
    return MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=ADAPTERS),
        OptimizerSettings(learning_rate=1e-3),
        ObjectiveSettings(group_size=4),
        SamplingSettings(8, 1.0),
        reward=reward or vowels,
        verifier=reward or vowels,
        answering=AnsweringSettings(**{**settings, **answering}),
    )


def make_data(model: Path, files: str, **options: Any) -> MathPromptDataModule:
    settings = {"train_files": [files], "eval_files": [files], "batch_size": 2, "eval_batch_size": 2,
                "max_trace_length": 64}  # fmt: skip
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
    assert len(stage.evaluator.results) == 2 * 2 + 4 * 4
    shares = {}
    for source in ("amc", "math"):
        rewards = [one.reward for one in stage.evaluator.results if one.source == source]
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
        return [one.completion for one in stage.evaluator.results]

    base = texts()
    assert texts() == base == texts(max_concurrent=3)
    numbers: list[dict[str, Any]] = [{"num_samples": 3}, {"num_samples_by_source": None}]
    for knob in ({"seed": 1}, *numbers, {"sampling": SamplingSettings(8, 0.3)}):
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
    for number in (1, 2, 8, len(whole) - 1):  # killed between two answers, perhaps to the same problem
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:number]))
        assert sorted(map(str, predict(tmp_path / "parts"))) == sorted(map(str, whole))
    with pytest.raises(ValueError, match="another policy, reward or sampling"):
        predict(tmp_path / "parts", seed=9)
    path.write_text("{torn\n" + path.read_text())
    with pytest.raises(ValueError, match=r"completions\.jsonl is corrupt before its last line"):
        predict(tmp_path / "parts")
    path.write_text('{"id": "someone\'s"}\n')
    with pytest.raises(ValueError, match=r"completions\.jsonl is not a completions file"):
        predict(tmp_path / "parts")


def test_completions_of_other_weights_or_rewards_are_not_mixed(
    tiny_model_folder: Path, tmp_path: Path, files: str
) -> None:
    def predict(reward: Any, shift: float = 0.0) -> None:
        stage = make(tiny_model_folder, reward)
        stage.configure_model()
        with torch.no_grad():
            for name, weight in stage.named_parameters():
                if "lora_B" in name:
                    weight += shift
        trainer(tmp_path, callbacks=[CompletionFiles()], limit_predict_batches=1).predict(
            stage, datamodule=make_data(tiny_model_folder, files), return_predictions=False
        )

    strict, lenient = MathReward(num_workers=1), MathReward(num_workers=1, lenient=True)
    predict(RewardSum([vowels, strict]))
    before = (tmp_path / "completions.jsonl").read_text()
    predict(RewardSum([vowels, MathReward(num_workers=2)]))  # nothing that decides about an answer
    others: list[tuple[Any, float]] = [(RewardSum([vowels, lenient]), 0.0), (RewardSum([vowels, strict], [1, 2]), 0.0),
                                       (vowels, 0.0), (RewardSum([vowels, strict]), 0.01)]  # fmt: skip
    for reward, shift in others:
        with pytest.raises(ValueError, match=r"answers of another policy, reward or sampling"):
            predict(reward, shift)
    assert (tmp_path / "completions.jsonl").read_text() == before


def write_rows(path: Path, letter: str, number: int, **more: Any) -> str:
    """Problems whose numbers are those of every other file."""
    rows = [{"id": n, "prompt": f"{letter}{n}?", "ground_truth": str(n), **more} for n in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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
    prompts = [dataclasses.replace(p, problem=dataclasses.replace(p.problem, id="0")) for p in data._prompts["eval"]]
    stage = make(tiny_model_folder, num_samples=1)
    trainer(tmp_path).test(stage, PromptLoader(prompts, batch_size=4, shuffle=False), verbose=False)
    assert stage.evaluator.table[""]["problems"] == 4 and stage.evaluator.table[""]["k"] == 1


def test_predict_leaves_no_problem_out_of_two_files(tiny_model_folder: Path, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{letter}.jsonl", letter, 4) for letter in "ab"]
    path = tmp_path / "run" / "completions.jsonl"

    def predict(chosen: Any, batches: int | None = None, num_samples: int = 1) -> list[str]:
        data = make_data(tiny_model_folder, "", train_files=None, eval_files=chosen, eval_batch_size=3)
        options = {"limit_predict_batches": batches} if batches else {}
        trainer(tmp_path / "run", callbacks=[CompletionFiles()], **options).predict(
            make(tiny_model_folder, num_samples=num_samples), datamodule=data, return_predictions=False
        )
        return [json.loads(line)["prompt"] for line in path.read_text().splitlines()[1:]]

    assert len(predict(files, batches=2)) == 6
    restarted = predict(files)
    assert sorted(restarted) == [f"{letter}{n}?" for letter in "ab" for n in range(4)]
    before = path.read_text()
    for others in (files[0], files[1], [*files, write_rows(tmp_path / "c.jsonl", "c", 1)]):
        with pytest.raises(ValueError, match=r"jsonl holds answers to other problems .*: name another file"):
            predict(others)
    with pytest.raises(ValueError, match=r"answers of another policy, reward or sampling .*: name another file"):
        predict(files, num_samples=2)
    assert path.read_text() == before
    assert sorted(predict(files[::-1])) == sorted(restarted)  # the same problems in another order


def test_predict_answers_problems_of_a_loader_without_a_fingerprint(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Batches(list):  # type: ignore[type-arg]
        """Batches of prompts: a data loader as simple as can be."""

    for letter in "ab":
        data = make_data(tiny_model_folder, "", train_files=None,
                         eval_files=write_rows(tmp_path / f"{letter}.jsonl", letter, 4))  # fmt: skip
        data.setup("predict")
        loader = Batches(data.predict_dataloader())
        predicting = trainer(tmp_path, callbacks=[CompletionFiles()])
        predicting.predict(make(tiny_model_folder), loader, return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()[1:]]
    assert {line["prompt"] for line in lines} == {f"{letter}{n}?" for letter in "ab" for n in range(4)}


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


@pytest.mark.parametrize(
    "bad", [{"num_samples": 0}, {"max_concurrent": 0}, {"num_samples_by_source": {"amc": 0}}], ids=str
)
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
    answers = stage.evaluator.results
    assert answers and all(answer.reward == float(len(answer.completion) % 2) for answer in answers)
    with pytest.raises(RewardError, match="cannot be called"):
        make(tiny_model_folder, reward=lambda texts, problems: [0.0])


def nothing(completions: Any, rows: Any) -> list[float]:
    return [0.0 for _ in completions]


def test_accuracy_is_the_verifiers_whatever_the_training_reward(
    tiny_model_folder: Path, tmp_path: Path, files: str
) -> None:
    tables = []
    for reward in (vowels, nothing):
        stage = make(tiny_model_folder, reward)
        stage.evaluator.verifier = vowels
        trainer(tmp_path).test(stage, datamodule=make_data(tiny_model_folder, files), verbose=False)
        assert stage.evaluation_source()["verifier"]["name"] == "vowels"
        tables.append(stage.evaluator.table)
    assert tables[0] == tables[1] and 0 < tables[0]["mean"]["average"] < 1


def test_who_verifies_when_nobody_is_named() -> None:
    strict = MathReward(after_thinking=True)
    assert MixedPolicyGRPO(reward=strict).verifier is strict  # its settings, and its processes
    default, own = MixedPolicyGRPO(), MixedPolicyGRPO(reward=vowels)
    assert default.verifier is default.reward
    assert isinstance(own.verifier, MathReward) and own.reward is vowels
    assert MixedPolicyGRPO(reward=strict, verifier=vowels).verifier is vowels
    with pytest.raises(RewardError, match="cannot be called"):
        MixedPolicyGRPO(verifier=lambda texts, problems: [0.0])


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
