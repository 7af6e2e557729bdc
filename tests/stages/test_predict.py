"""The completions file of `predict`: resumed after a kill, never mixed, no problem left out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from answering import make, make_data, trainer, vowels, write_rows

from lit_rft.callbacks import CompletionFiles
from lit_rft.callbacks.answers import _answers_of_others
from lit_rft.rewards import MathReward, RewardSum


def test_a_dry_run_leaves_the_completions(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    (tmp_path / "completions.jsonl").write_text("of a run")
    trainer(tmp_path, callbacks=[CompletionFiles()], fast_dev_run=True).predict(
        make(tiny_model_folder), datamodule=make_data(tiny_model_folder, files), return_predictions=False
    )
    assert (tmp_path / "completions.jsonl").read_text() == "of a run"


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
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]))
    other = path.rename(path.with_stem("completions-rank1"))  # of a run with several processes
    resumed = predict(tmp_path / "parts")
    resumed += map(json.loads, other.read_text().splitlines()[1:])
    assert len(other.read_text().splitlines()) > 1 and sorted(map(str, resumed)) == sorted(map(str, whole))
    other.unlink()
    with pytest.raises(ValueError, match="another policy, reward or sampling"):
        predict(tmp_path / "parts", seed=9)
    path.write_text("{torn\n" + path.read_text())
    with pytest.raises(ValueError, match=r"completions\.jsonl is corrupt before its last line"):
        predict(tmp_path / "parts")
    path.write_text('{"id": "someone\'s"}\n')
    with pytest.raises(ValueError, match=r"completions\.jsonl is not a completions file"):
        predict(tmp_path / "parts")


def test_two_calls_do_not_write_one_file(tiny_model_folder: Path, tmp_path: Path, files: str) -> None:
    """Each would answer all problems."""
    refused = []

    class Second(CompletionFiles):
        def write_on_batch_end(self, *args: Any) -> None:
            with pytest.raises(BlockingIOError, match=r"completions\.jsonl is being written by another process"):
                CompletionFiles().on_predict_start(*args[:2])
            refused.append(args[-2])
            super().write_on_batch_end(*args)

    trainer(tmp_path, callbacks=[Second()]).predict(
        make(tiny_model_folder), datamodule=make_data(tiny_model_folder, files), return_predictions=False
    )
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert refused and len(lines) == 1 + 2 * 2 + 4 * 4


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


def test_a_file_of_another_process_is_refused_by_all_of_them(tmp_path: Path) -> None:
    """The first process, which completes the files, gets to the same barrier as those that wait for it."""
    (tmp_path / "completions-rank1.jsonl").write_text('{"source": {"policy": "an older one"}, "data": []}\n')
    for first in (True, False):
        barriers: list[str] = []
        trainer: Any = SimpleNamespace(is_global_zero=first, strategy=SimpleNamespace(barrier=barriers.append))
        with pytest.raises(ValueError, match="answers of another policy"):
            _answers_of_others(trainer, tmp_path / "completions-rank0.jsonl", {"source": {"policy": "one"}, "data": []})
        assert barriers == ["each process has opened its file", "all files are complete"]
