"""Rollouts of training on disk: their values are those of the batch, and a fault costs no more than its batch."""

import errno
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts
from grpo_stage import make_grpo, make_prompts
from online_run import make_data, make_online

from lit_rft._files import AppendedFile
from lit_rft.callbacks import RolloutFiles
from lit_rft.datamodules import EpisodeGroupDataModule, PromptLoader
from lit_rft.envs import PoolSettings
from lit_rft.generation import SamplingSettings
from lit_rft.records import RolloutWriter, read_rollouts
from lit_rft.rewards import RewardSum
from lit_rft.rollouts.recording import TokenTexts
from lit_rft.stages import PPO, ActingSettings, MixedPolicyEpisodes, MixedPolicyGRPO, OptimizerSettings, PolicySettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, fit, trained


class Samples(L.Callback):
    """Keeps the samples of all batches, and their tokens' values under the sampling policy."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.batches.append(pl_module.samples)


def run(model: Path, folder: Path, steps: int = 3, **options: Any) -> tuple[MixedPolicyGRPO, Samples]:
    stage, samples = make_grpo(model, **options), Samples()
    loader = PromptLoader(make_prompts(model), batch_size=2)
    fit(stage, loader, steps, callbacks=[RolloutFiles(share=1.0), samples], default_root_dir=folder)
    return stage, samples


def test_records_hold_the_rollouts_of_each_batch(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, samples = run(tiny_model_folder, tmp_path, 3)
    assert stage.chat is not None
    groups = read_rollouts(tmp_path)
    assert [(g.batch, g.step, g.group) for g in groups] == [(b, b, g) for b in range(3) for g in range(2)]
    for batch, rollouts in enumerate(samples.batches):
        records = [record for group in groups if group.batch == batch for record in group.rollouts]
        assert [r.text for r in records] == [r.text for r in rollouts]
        assert [r.trace for r in records] == [r.off_policy for r in rollouts]
        assert [r.reward for r in records] == [r.reward for r in rollouts]
        assert [r.advantage for r in records] == pytest.approx([r.advantage for r in rollouts], abs=1e-4)
        for record, rollout in zip(records, rollouts, strict=True):
            (conversation,), transcript = record.conversations, rollout.transcripts[0]
            turn, decode = conversation.turns[0], stage.chat.tokenizer.decode
            assert turn.prompt == decode(transcript.input_ids[: transcript.head_length])
            assert turn.text == decode(transcript.utterance_ids(0))
            if not rollout.off_policy:
                assert conversation.sampled_log_probs == pytest.approx(rollout.sampled_log_probs[0], abs=1e-4)
            if rollout.advantage and not rollout.off_policy:  # one update: the policy that sampled
                assert conversation.log_probs == pytest.approx(rollout.sampled_log_probs[0], abs=1e-2)
    assert {r.ground_truth for g in groups for r in g.rollouts} == {"1"}


def test_imitated_traces_are_recorded_with_their_groups(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Those of the first steps, which have no group, and those outside a group."""
    run(tiny_model_folder, tmp_path, 3, objective={"traces_per_group": 0, "sft_coef": 0.5, "sft_steps": 1})
    first, *later = [group for group in read_rollouts(tmp_path) if group.group == 0]
    assert [(r.trace, r.imitated) for r in first.rollouts] == [(True, True)] * 2  # all traces of the prompt
    assert [group.batch for group in later] == [1, 2]
    for group in later:
        *sampled, trace = group.rollouts
        assert not any(r.trace or r.imitated for r in sampled) and trace.trace and trace.imitated
        assert trace.text.startswith("answer") and trace.advantage == 0 and len(sampled) > 1
        (conversation,) = trace.conversations
        assert len(conversation.log_probs) == conversation.num_tokens > 0


def test_several_updates_move_the_log_probabilities_and_clip_tokens(tiny_model_folder: Path, tmp_path: Path) -> None:
    objective = {"epochs": 4, "traces_per_group": 0}
    run(tiny_model_folder, tmp_path, 4, objective=objective)
    conversations = [c for g in read_rollouts(tmp_path) for r in g.rollouts if r.advantage for c in r.conversations]
    assert conversations
    clipped = 0
    for conversation in conversations:
        pairs = list(zip(conversation.log_probs, conversation.old_log_probs, strict=True))
        assert len(pairs) == conversation.num_tokens and any(abs(a - b) > 1e-3 for a, b in pairs)
        clipped += len(conversation.clipped)
        for index in conversation.clipped:  # the ratio has left the interval of the clip
            assert abs(pairs[index][0] - pairs[index][1]) > 0.15
    assert 0 < clipped < sum(conversation.num_tokens for conversation in conversations)


def test_records_change_no_weight(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, _ = run(tiny_model_folder, tmp_path, 2)
    plain = make_grpo(tiny_model_folder)
    fit(plain, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 2)
    for (name, weight), other in zip(trained(stage).items(), trained(plain).values(), strict=True):
        assert weight.equal(other), name


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def lengths(completions: Any, rows: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_parts_of_rewards_are_recorded(tiny_model_folder: Path, tmp_path: Path) -> None:
    run(tiny_model_folder, tmp_path, 1, reward=RewardSum([vowels, lengths], [1.0, 0.1]))
    for record in (r for g in read_rollouts(tmp_path) for r in g.rollouts):
        assert record.reward_parts == {"vowels": vowels([record.text], [])[0], "lengths": float(len(record.text))}
        assert record.reward == pytest.approx(record.reward_parts["vowels"] + 0.1 * record.reward_parts["lengths"])


def test_a_run_that_starts_again_begins_a_new_file(tiny_model_folder: Path, tmp_path: Path) -> None:
    run(tiny_model_folder, tmp_path, 3)
    run(tiny_model_folder, tmp_path, 1)
    assert [group.batch for group in read_rollouts(tmp_path)] == [0, 0]


def test_answers_of_evaluations_have_the_same_format(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_grpo(tiny_model_folder)
    loader, problems = (PromptLoader(make_prompts(tiny_model_folder), batch_size=2) for _ in range(2))
    trainer = L.Trainer(
        max_steps=2, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[RolloutFiles(share=1.0)],
        val_check_interval=1, check_val_every_n_epoch=None, enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(stage, loader, problems)
    groups = [group for group in read_rollouts(tmp_path) if group.split == "validation"]
    assert [group.step for group in groups] == [1] * 4 + [2] * 4
    answers = [answer.completion for answer in stage.evaluator.results]
    assert answers and [r.text for g in groups[4:] for r in g.rollouts] == answers
    trainer.validate(stage, problems, verbose=False)  # in place of the same step's
    assert len([group for group in read_rollouts(tmp_path) if group.split == "validation"]) == 8


def test_a_write_that_fails_costs_the_rollouts_of_its_batch_and_not_the_run(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk: the weights are those of a run without the fault, and later batches are kept again."""
    append, calls = AppendedFile.append, []

    def full_at_first(file: AppendedFile, data: bytes) -> None:
        calls.append(data)
        if 2 <= len(calls) <= 3:  # after the file's head
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, data)

    undisturbed, _ = run(tiny_model_folder, tmp_path / "undisturbed", 4)
    monkeypatch.setattr(AppendedFile, "append", full_at_first)
    stage, _ = run(tiny_model_folder, tmp_path / "full", 4)
    assert all(torch.equal(weight, trained(stage)[name]) for name, weight in trained(undisturbed).items())
    assert [group.batch for group in read_rollouts(tmp_path / "full")] == [2, 2, 3, 3]
    messages = [record.getMessage() for record in caplog.records if "not kept" in record.getMessage()]
    assert len(messages) == 1 and "rollouts/train.jsonl" in messages[0] and "No space left" in messages[0]


def test_two_runs_in_one_folder_stay_an_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path / "rollouts" / "other.jsonl", 1.0, 10**6)
    writer.close()
    held = RolloutWriter(tmp_path / "rollouts" / "train.jsonl", 1.0, 10**6)
    with pytest.raises(BlockingIOError, match="is being written by another process"):
        run(tiny_model_folder, tmp_path, 1)
    held.close()


def test_a_dry_run_writes_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_grpo(tiny_model_folder)
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1, callbacks=[RolloutFiles(share=1.0)],
        default_root_dir=tmp_path, fast_dev_run=1)  # fmt: skip
    assert list(tmp_path.rglob("*.jsonl")) == []


class Bytes:
    """A tokenizer of bytes: characters outside ASCII are of several tokens."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")


def test_characters_of_several_tokens_are_the_text_of_the_last_one() -> None:
    texts = TokenTexts(Bytes())
    assert texts(list("aé€".encode())) == ["a", "", "é", "", "", "€"]
    assert texts([97, 0xE2, 0x82]) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"max_megabytes": 0.0}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="share must be in"):
        RolloutFiles(**options)


def make_episodes(model: Path, folder: Path) -> tuple[MixedPolicyEpisodes, EpisodeGroupDataModule]:
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(model), lora=ADAPTERS), OptimizerSettings(learning_rate=5e-3), agent=PLAYER,
        exploration=SamplingSettings(6, 1.0),
        acting=ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True)),
        **grpo_parts(group_size=3),
    )  # fmt: skip
    options: dict[str, Any] = {"train_episodes_per_task": 2, "batch_size": 2, "suite": CorridorSuite()}
    return stage, EpisodeGroupDataModule(model=str(model), data_dir=str(folder), **options)


def make_ppo(model: Path) -> PPO:
    L.seed_everything(0, verbose=False)
    policy, sampling = PolicySettings(model=str(model), lora=ADAPTERS), SamplingSettings(8, 1.0)
    return PPO(policy, OptimizerSettings(learning_rate=1e-3), sampling=sampling, reward=vowels, group_size=2)


def ppo_loader(model: Path) -> PromptLoader:
    return PromptLoader(make_prompts(model, traces=0), batch_size=2)


def test_episodes_keep_their_conversations_and_steps(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make_episodes(tiny_model_folder, tmp_path / "data")
    samples = Samples()
    fit(stage, data, 1, callbacks=[RolloutFiles(share=1.0), samples], default_root_dir=tmp_path)
    groups = read_rollouts(tmp_path)
    records = [record for group in groups for record in group.rollouts]
    assert [group.task for group in groups] == ["walk", "run"]
    assert [record.trace for record in records] == [False, False, True] * 2
    for record, rollout in zip(records, samples.batches[0], strict=True):
        assert record.episode == rollout.episode and record.reward == rollout.reward
        assert [c.level for c in record.conversations] == [t.level for t in rollout.transcripts]
        for conversation, transcript in zip(record.conversations, rollout.transcripts, strict=True):
            turns = [len(turn.tokens) for turn in conversation.turns if turn.tokens]
            assert turns == [end + 1 - start for start, end in zip(
                transcript.utterance_starts, transcript.utterance_ends, strict=True)]  # fmt: skip
            assert len(conversation.sampled_log_probs) == (0 if record.trace else conversation.num_tokens)


def test_ppo_records_an_advantage_per_token(tiny_model_folder: Path, tmp_path: Path) -> None:
    fit(make_ppo(tiny_model_folder), ppo_loader(tiny_model_folder), 2,
        callbacks=[RolloutFiles(share=1.0)], default_root_dir=tmp_path)  # fmt: skip
    conversations = [c for g in read_rollouts(tmp_path) for r in g.rollouts for c in r.conversations]
    assert conversations
    for conversation in conversations:
        assert len(conversation.log_probs) == len(conversation.old_log_probs) == conversation.num_tokens
        assert len(conversation.advantages) == conversation.num_tokens
        assert conversation.old_log_probs == pytest.approx(conversation.sampled_log_probs, abs=1e-2)


def test_online_episodes_are_groups_of_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    fit(make_online(tiny_model_folder), make_data(tiny_model_folder, tmp_path / "data"), -1, max_epochs=1,
        callbacks=[RolloutFiles(share=1.0)], default_root_dir=tmp_path)  # fmt: skip
    groups = read_rollouts(tmp_path)
    assert [(group.batch, group.group, len(group.rollouts)) for group in groups] == [
        (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)
    ]  # fmt: skip
    assert all(rollout.episode is not None for group in groups for rollout in group.rollouts)
