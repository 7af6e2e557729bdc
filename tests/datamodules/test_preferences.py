"""Plain preference pairs from files, and pairs of episodes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_rft.agents import FlatAgent
from lit_rft.datamodules import EpisodePairDataModule, PreferenceDataModule
from lit_rft.datamodules.pairs import PairLoader, PreferencePair
from lit_rft.datamodules.preferences import parse_pair
from lit_rft.episodes import write_episodes
from lit_rft.problems import ProblemError
from lit_rft.testing import make_episode
from lit_rft.transcripts import completion_transcript

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in
                   (("user", "1+1?"), ("assistant", "2"), ("assistant", "3")))  # fmt: skip
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "2", "rejected": [BAD]},
        {"prompt": "1+1?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 1},
        {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": "3"},  # of CSV files
        {"chosen": json.dumps([USER, GOOD]), "rejected": str([USER, BAD])},
    ],
)
def test_the_usual_columns_give_prompt_and_answers(row: dict[str, Any]) -> None:
    assert parse_pair(row, COLUMNS) == ([USER], "2", "3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "expected an object, got str"),
        ({"prompt": "x", "chosen": "2"}, "rejected: missing; the row has prompt, chosen"),
        ({"chosen": "2", "rejected": "3"}, "chosen: expected messages, as there is no prompt column, got a text"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "chosen: expected a conversation, as there is no prompt column"),
        ({"prompt": "x", "chosen": [USER, GOOD], "rejected": "3"}, "chosen: expected the answer, .*another prompt"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "2+2?"}, BAD]}, "rejected: expected two answers to"),
        ({"prompt": "x", "chosen": "2", "rejected": "2"}, "rejected: expected another answer than the chosen one"),
        ({"prompt": "x", "chosen": "2", "rejected": [7]}, r"rejected\[0\]: expected a message"),
        ({"prompt": '[{"role": "user", "con', "chosen": "2", "rejected": "3"}, "prompt: .*cannot be parsed"),
    ],
)
def test_bad_rows_are_refused_with_the_field(row: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        parse_pair(row, COLUMNS)


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_of_a_file_become_tokens(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "yes": f"answer {n}", "no": "wrong " * (1 + 40 * (n == 2))} for n in range(4)]
    data = PreferenceDataModule(
        write_rows(tmp_path / "pairs.jsonl", rows),
        model=str(tiny_model_folder),
        columns={"prompt": "question", "chosen": "yes", "rejected": "no"},
        max_length=120,
        batch_size=2,
    )
    data.setup("fit")
    assert [pair.id[-2:] for pair in data.pairs["train"]] == [":1", ":2", ":4"]  # the third is too long
    pair = data.pairs["train"][0]
    (chosen,), (rejected,) = pair.chosen, pair.rejected
    start = chosen.utterance_starts[0]
    assert chosen.input_ids[:start] == rejected.input_ids[:start]
    decode = data.tokenizer.decode
    assert "0+1?" in decode(chosen.input_ids[:start])
    assert decode(chosen.utterance_ids(0)).startswith("answer 0")
    assert decode(rejected.utterance_ids(0)).startswith("wrong")
    batches = list(data.train_dataloader())
    assert [len(batch.pairs) for batch in batches] == [2, 1] and batches[0].num_pairs == 2
    assert data.val_dataloader() == []


def test_a_bad_row_is_named_with_its_file_and_line(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b"}, {"prompt": "x"}])
    data = PreferenceDataModule(path, model=str(tiny_model_folder))
    with pytest.raises(ProblemError, match=r"pairs.jsonl:2: chosen: missing"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"max_length": 0}, "max_length must be >= 1, got 0"),
        ({"columns": {"prompt": "q", "good": "a"}}, "columns has good, expected prompt, chosen, rejected"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceDataModule("x.jsonl", **setting)


def test_training_and_evaluation_without_pairs_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name train_files"):
        PreferenceDataModule(model=str(tiny_model_folder)).setup("fit")
    for stage in ("validate", "test"):
        with pytest.raises(ValueError, match="name eval_files"):
            PreferenceDataModule("x.jsonl", model=str(tiny_model_folder)).setup(stage)
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "long " * 50, "chosen": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match="all 1 pairs of train_files are longer than max_length=9"):
        PreferenceDataModule(path, model=str(tiny_model_folder), max_length=9).setup("fit")


def make_pairs(number: int) -> list[PreferencePair]:
    def side(token: int) -> Any:
        return [completion_transcript("x", [5, 6], [token, 2], 2)]

    return [PreferencePair(str(n), side(10 + n), side(90 + n)) for n in range(number)]


def test_processes_share_a_batch_and_count_all_of_it() -> None:
    loaders = [PairLoader(make_pairs(5), batch_size=3, seed=1, rank=rank, world_size=2) for rank in range(2)]
    whole = list(PairLoader(make_pairs(5), batch_size=3, seed=1))
    for step, (first, second) in enumerate(zip(*loaders, strict=True)):
        assert first.num_pairs == second.num_pairs == whole[step].num_pairs
        ids = {pair.id for pair in whole[step].pairs}
        assert {pair.id for pair in [*first.pairs, *second.pairs]} == ids
    fixed = PairLoader(make_pairs(5), batch_size=3, shuffle=False)
    assert [[pair.id for pair in batch.pairs] for batch in fixed] == [["0", "1", "2"], ["3", "4"]]
    assert [len(batch.pairs) for batch in fixed] == [3, 2]  # each pass from the beginning


def test_swapped_sides_are_other_data() -> None:
    pairs = make_pairs(2)
    swapped = [PreferencePair(pair.id, pair.rejected, pair.chosen) for pair in pairs]
    digests = [PairLoader(given, batch_size=1).shape()["digest"] for given in (pairs, swapped, make_pairs(2))]
    assert digests[0] == digests[2] != digests[1]


def episode_files(tmp_path: Path, scores: list[float]) -> tuple[list[str], list[str]]:
    def attempt(n: int, score: float, kind: str) -> Any:
        episode = make_episode(n)
        episode.steps[-1] = replace(episode.steps[-1], score=score)
        outcome = replace(episode.outcome, score=score)
        return replace(episode, id=f"{kind}{n}", meta={"variation": n}, outcome=outcome)

    experts = [attempt(n, 1.0, "expert") for n in range(len(scores))]
    explored = [attempt(n, score, "explored") for n, score in enumerate(scores)]
    write_episodes(tmp_path / "expert.jsonl", experts)
    write_episodes(tmp_path / "explored.jsonl", explored)
    return [str(tmp_path / "expert.jsonl")], [str(tmp_path / "explored.jsonl")]


@pytest.mark.parametrize(("agent", "levels"), [(None, ["high", "low"]), (FlatAgent(), ["flat"])])
def test_explored_episodes_are_paired_with_experts(
    agent: Any, levels: list[str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    experts, explored = episode_files(tmp_path, [0.5, 1.0, 2.0])
    data = EpisodePairDataModule(explored, model=str(tiny_model_folder), agent=agent, train_files=experts, batch_size=2)
    data.setup("fit")
    assert (data.report.won, data.report.tied, data.report.lost) == (1, 1, 1)
    assert [pair.id for pair in data.pairs] == ["expert0>explored0", "explored2>expert2"]
    for pair in data.pairs:
        assert [t.level for t in pair.chosen] == [t.level for t in pair.rejected] == levels
        assert all(t.num_decisions for t in [*pair.chosen, *pair.rejected])


class NamesFolder:
    """The part of a trainer that the report needs."""

    def __init__(self, folder: Path) -> None:
        self.default_root_dir, self.logger, self.is_global_zero = str(folder), object(), True
        self.lightning_module, self.limit_val_batches, self.fast_dev_run = None, 0, 0


class Forgetful(FlatAgent):
    """Renders no decision of one episode, as if none fitted into the context."""

    def transcripts(self, episode: Any, chat: Any) -> Any:
        return [] if episode.id == "explored0" else super().transcripts(episode, chat)


def test_pairs_without_a_decision_in_the_context_are_counted_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    experts, explored = episode_files(tmp_path, [0.5, 0.5, 1.0])
    data = EpisodePairDataModule(explored, model=str(tiny_model_folder), agent=Forgetful(), train_files=experts)
    data.trainer = NamesFolder(tmp_path)  # type: ignore[assignment]
    data.setup("fit")
    assert [pair.id for pair in data.pairs] == ["expert1>explored1"]
    counts = json.loads((tmp_path / "pairs.json").read_text())
    assert counts == {"pairs": 1, "too_long": 1, "won": 0, "tied": 1, "lost": 2, "unmatched": 0, "surplus": 0}
    (tmp_path / "pairs.json").unlink()
    data.trainer.fast_dev_run = 1  # type: ignore[misc]
    data.setup("fit")
    assert not (tmp_path / "pairs.json").exists()  # after a dry run


def test_no_pair_at_all_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    experts, explored = episode_files(tmp_path, [1.0, 1.0])
    data = EpisodePairDataModule(explored, model=str(tiny_model_folder), train_files=experts)
    with pytest.raises(ValueError, match=r"no pairs to train on: of 2 .* 2 are tied with theirs, and 0 pairs have"):
        data.setup("fit")
    with pytest.raises(ValueError, match="margin must be >= 0"):
        EpisodePairDataModule(explored, margin=-1.0)
