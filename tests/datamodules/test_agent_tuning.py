"""AgentTuning's mixture: the share of agents, conversations token by token, the loss, exact resume."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from recorder import Recorder

from lit_rft.datamodules import AgentTuningDataModule
from lit_rft.datamodules.instructions import conversation_transcript, instruction_transcripts
from lit_rft.episodes import write_episodes
from lit_rft.problems import ProblemError
from lit_rft.stages import HierarchicalSFT
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.testing.tiny_stage import FLAT, differs, fit, make_stage, trained
from lit_rft.transcripts import ChatFormat


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def messages(*texts: str, **changes: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text, **changes} for n, text in enumerate(texts)]


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


# --- conversations ---------------------------------------------------------------------------------------------------


def test_a_conversation_is_trained_on_the_assistants_messages(chat: ChatFormat) -> None:
    given = [{"role": "system", "content": "Be brief."}, *messages("One?", "1", "Two?", "2")]
    transcript = conversation_transcript(given, [True] * 5, chat, "c")
    assert transcript.level == "general" and transcript.num_decisions == 2
    assert [chat.text(transcript.utterance_ids(k)) for k in range(2)] == ["1", "2"]
    assert transcript.input_ids == [
        *chat.head("Be brief.", "One?"), *chat.utterance("1"), *chat.turn("Two?"), *chat.utterance("2")
    ]  # fmt: skip


def test_messages_without_loss_are_read_only(chat: ChatFormat) -> None:
    whole = conversation_transcript(messages("a", "b", "c", "d"), [True] * 4, chat, "c")
    transcript = conversation_transcript(messages("a", "b", "c", "d"), [True, False, True, True], chat, "c")
    assert transcript.input_ids == whole.input_ids
    assert [chat.text(transcript.utterance_ids(k)) for k in range(transcript.num_decisions)] == ["d"]


def test_rows_of_common_chat_data_sets(chat: ChatFormat, tmp_path: Path) -> None:
    share_gpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes", "loss": True}]
    agent_instruct = [*share_gpt[:1], {"from": "gpt", "value": "OK", "loss": False}, *share_gpt]
    rows = [
        {"messages": messages("Hi", "Yes")},
        {"conversations": share_gpt},
        {"conversations": agent_instruct},
        {"conversations": [{"from": "system", "value": ""}, *share_gpt]},
    ]
    read = instruction_transcripts([write_rows(tmp_path / "a.jsonl", rows)], chat, max_length=500)
    assert read[0].input_ids == read[1].input_ids == read[3].input_ids
    assert [t.num_decisions for t in read] == [1, 1, 1, 1] and len(read[2]) > len(read[1])
    other = write_rows(tmp_path / "b.jsonl", [{"talk": messages("Hi", "Yes")}])
    assert instruction_transcripts([other], chat, max_length=500, column="talk")[0].input_ids == read[0].input_ids


def test_what_is_longer_than_the_context_loses_its_last_turns(chat: ChatFormat, tmp_path: Path) -> None:
    rows = [{"messages": messages("a", "b", "c" * 40, "d")}, {"messages": messages("e" * 90, "f")}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    assert [t.num_decisions for t in instruction_transcripts([file], chat, max_length=500)] == [2, 1]
    (cut,) = instruction_transcripts([file], chat, max_length=60)
    whole = conversation_transcript(messages("a", "b"), [True] * 2, chat, cut.episode_id)
    assert cut.input_ids == whole.input_ids and cut.num_decisions == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "expected a column messages"), ({"messages": []}, "got "), ([1], "expected an object"),
        ({"messages": messages("a")}, "in turn"), ({"messages": messages("a", "b")[1:]}, "in turn"),
        ({"messages": [*messages("a", "b"), *messages("c", "d")[1:]]}, "in turn"), ({"messages": "hello"}, "a list"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: Any, message: str, chat: ChatFormat, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "bad.jsonl", [{"messages": messages("a", "b")}, row])
    with pytest.raises(ProblemError, match=rf"(?s)bad.jsonl.*2.*{message}"):
        instruction_transcripts([file], chat, max_length=500)


# --- the mixture -----------------------------------------------------------------------------------------------------


def make_data(model: Path, folder: Path, conversations: int = 5, **options: Any) -> AgentTuningDataModule:
    write_episodes(folder / "science.jsonl", [make_episode(seed, 2) for seed in range(3)])
    other = [make_episode(seed, 2, task="other") for seed in range(3)]
    for episode in other:
        episode.env = "alfworld"
    write_episodes(folder / "alfworld.jsonl", other)
    rows = [{"messages": messages(f"Question {n}?", f"Answer {n}")} for n in range(conversations)]
    general = write_rows(folder / "general.jsonl", rows)
    files = [str(folder / name) for name in ("science.jsonl", "alfworld.jsonl")]
    settings = {"batch_size": 6, "train_files": files, "data_dir": str(folder), "agent": FLAT, "seed": 0, **options}
    return AgentTuningDataModule([general], model=str(model), **settings)


@pytest.mark.parametrize(("share", "conversations"), [(0.2, 24), (0.5, 6), (0.75, 2), (1.0, 0)])
def test_the_mixture_has_the_given_share_of_agents(
    share: float, conversations: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = make_data(tiny_model_folder, tmp_path, agent_share=share)
    data.setup("fit")
    loader, seen = data.train_dataloader(), []
    for _ in range(2):
        levels = [transcript.level for batch in loader for transcript in batch.transcripts]
        assert levels.count("flat") == 6 and levels.count("general") == conversations
    data.setup("fit")
    for batch in data.train_dataloader():
        seen += [transcript.episode_id for transcript in batch.transcripts if transcript.level == "flat"]
    assert len(set(seen)) == 6  # every trajectory once in an epoch, of both environments


def test_all_conversations_come_in_turn(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, tmp_path, conversations=8, agent_share=0.6)  # 4 in each epoch
    data.setup("fit")
    loader = data.train_dataloader()
    ids = [t.episode_id for _ in range(2) for batch in loader for t in batch.transcripts if t.level == "general"]
    assert len(ids) == len(set(ids)) == 8


def make_flat(model: Path, **options: Any) -> HierarchicalSFT:
    return make_stage(model, agent=FLAT, pooled=True, **options)


def test_pooled_utterances_weigh_alike_and_both_losses_are_logged(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Six episodes of two actions and six conversations of one answer: the loss is the mean over 18 utterances."""
    recorders = []
    for pooled in (True, False):
        data = make_data(tiny_model_folder, tmp_path, agent_share=0.5, batch_size=12)
        recorders.append(Recorder())
        fit(make_stage(tiny_model_folder, agent=FLAT, pooled=pooled), data, 1, callbacks=[recorders[-1]])
    for recorder, shares in zip(recorders, ((12 / 18, 6 / 18), (1.0, 1.0)), strict=True):
        logged = recorder.logged[0]
        expected = shares[0] * logged["train/flat/loss"] + shares[1] * logged["train/general/loss"]
        assert logged["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert recorders[0].logged[0]["train/flat/loss"] == recorders[1].logged[0]["train/flat/loss"]


def test_the_share_changes_the_result(tiny_model_folder: Path, tmp_path: Path) -> None:
    results = []
    for share in (0.5, 1.0):
        stage = make_flat(tiny_model_folder)
        fit(stage, make_data(tiny_model_folder, tmp_path, agent_share=share), 2)
        results.append(trained(stage))
    assert differs(*results, rtol=1e-5, atol=1e-7)


def test_resume_equals_uninterrupted(tiny_model_folder: Path, tmp_path: Path) -> None:
    """In the middle of the second epoch, where conversations go on in turn."""
    settings: dict[str, Any] = {"agent_share": 0.5, "conversations": 9}
    whole = make_flat(tiny_model_folder)
    fit(whole, make_data(tiny_model_folder, tmp_path, **settings), 5)
    trainer = fit(make_flat(tiny_model_folder), make_data(tiny_model_folder, tmp_path, **settings), 3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_flat(tiny_model_folder)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=5, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **options)
    data = make_data(tiny_model_folder, tmp_path, **settings)
    trainer.fit(resumed, datamodule=data, ckpt_path=str(tmp_path / "half.ckpt"))
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(resumed)[name]), name


def test_two_processes_share_each_batch(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, tmp_path, agent_share=0.5)
    data.setup("fit")
    whole = list(data.train_dataloader())
    parts = []
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.world_size = rank, 2
        parts.append(list(loader))
    for batch, *halves in zip(whole, *parts, strict=True):
        ids = sorted(t.episode_id for half in halves for t in half.transcripts)
        assert ids == sorted(t.episode_id for t in batch.transcripts)
        assert all(half.num_utterances == batch.num_utterances for half in halves)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"agent_share must be in \(0, 1\]"):
        AgentTuningDataModule([], agent_share=share)


def test_without_conversations_the_share_has_to_be_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, tmp_path, conversations=0)
    data.general_files = []
    with pytest.raises(ValueError, match="set agent_share to 1"):
        data.setup("fit")
