"""Who grades answers: rewards, verifiers, and what they count."""

import json
from pathlib import Path
from typing import Any

import pytest
from answering import make, make_data, trainer, vowels

from lit_rft.rewards import MathReward, RewardError
from lit_rft.stages import MixedPolicyGRPO


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


class GenerousMath(MathReward):
    """Rewards wrong answers, too."""

    def __call__(self, completions: Any, rows: Any) -> list[float]:
        return [reward + 0.75 for reward in super().__call__(completions, rows)]


def test_who_verifies_when_nobody_is_named() -> None:
    strict = MathReward(after_thinking=True)
    assert MixedPolicyGRPO(reward=strict).verifier is strict  # its settings, and its processes
    generous = GenerousMath()
    assert type(MixedPolicyGRPO(reward=generous).verifier) is MathReward  # a subclass may add anything
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
