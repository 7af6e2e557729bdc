"""Episodes on disk: whole or not at all, and torn files are noticed."""

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lit_rft.episodes import Episode, EpisodeError, Outcome, Step, Subgoal
from lit_rft.episodes.io import EpisodeWriter, read_episodes, write_episodes


def episode(name: str, text: str = 'You see:\u2028a dóor\n\t"quoted" \\ and \x00') -> Episode:
    return Episode(
        id=name,
        env="scienceworld",
        env_version="1.2.3",
        task="find-animal",
        split="train",
        source={"kind": "perturbed", "probability": 0.1, "nested": {"of": ["any", 1, None]}},
        task_description="find it",
        initial_observation=text,
        steps=[Step("wait", text, 0.25, 0.25, True), Step("look", "", -0.25, 0.0, False)],
        subgoals=[Subgoal(0, 2, "find it", False, "events")],
        outcome=Outcome(0.0, False, False, True, "step_limit"),
        step_limit=2,
        meta={"variation": 7, "rooms": ["küche"]},
        extra={"note": "ü"},
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"episodes{suffix}"
    bare = episode("bare")
    bare.steps, bare.subgoals, bare.outcome = [], [], Outcome(0.0, False, False, True, "env_error")
    write_episodes(path, [episode("a"), bare])
    assert read_episodes(path) == [episode("a"), bare]
    write_episodes(path, [])
    assert read_episodes(path) == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    write_episodes(tmp_path / "b.jsonl", [episode("b")])
    write_episodes(tmp_path / "a.parquet", [episode("a")])
    (tmp_path / "notes.txt").write_text("not mine")
    (tmp_path / ".hidden.jsonl").write_text("{")
    assert [e.id for e in read_episodes(tmp_path)] == ["a", "b"]


def test_paths_that_hold_no_episodes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no episodes in .* end in \.jsonl or \.parquet"):
        read_episodes(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_episodes(tmp_path / "missing.jsonl")
    (tmp_path / "episodes.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a file that ends in"):
        read_episodes(tmp_path / "episodes.pkl")
    with pytest.raises(ValueError, match="expected a file that ends in"):
        write_episodes(tmp_path / "episodes.json", [])


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="duplicate id 'a'"):
        write_episodes(tmp_path / "a.jsonl", [episode("a"), episode("a")])
    assert list(tmp_path.iterdir()) == []
    write_episodes(tmp_path / "a.jsonl", [episode("a")])
    write_episodes(tmp_path / "b.jsonl", [episode("b"), episode("a")])
    with pytest.raises(EpisodeError, match=r"b\.jsonl:2: id: duplicate id 'a', already in .*a\.jsonl:1"):
        read_episodes(tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "x"', "not a line of JSON"),
        (b"\x00\x00\x00", "not a line of JSON"),
        (b'{"id": "\xff"}', "not a line of JSON"),
        (b'{"id": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"[]", "expected an object"),
        (b"{}", "id: missing"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a")])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(EpisodeError, match=problem) as caught:
        read_episodes(path)
    assert (caught.value.path, caught.value.line) == (str(path), 2)


def test_a_wrong_field_names_file_line_and_field(tmp_path: Path) -> None:
    wrong = episode("b").to_dict()
    wrong["steps"][1]["score"] = "3"
    path = tmp_path / "episodes.jsonl"
    path.write_text(json.dumps(episode("a").to_dict()) + "\n\n" + json.dumps(wrong) + "\n")
    with pytest.raises(EpisodeError, match=rf"^{path}:3: steps\[1\]\.score: expected a number, got .3"):
        read_episodes(path)


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a"), episode("b")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_episodes(path) == [episode("a"), episode("b")]
    with EpisodeWriter(path) as writer:
        writer.append(episode("c"))
    assert [e.id for e in read_episodes(path)] == ["a", "b", "c"]


def test_reading_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a"), episode("b")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first + 1, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(EpisodeError, match=r"episodes\.jsonl:2: .*ends in the middle of a line"):
            read_episodes(path)
    path.write_bytes(whole[:-1])  # only the line end is missing: nothing is lost
    assert len(read_episodes(path)) == 2


def test_a_truncated_or_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.parquet"
    write_episodes(path, [episode(str(i), text="o" * i) for i in range(50)])
    whole = path.read_bytes()
    for content in (b"", whole[:3], whole[: len(whole) // 2], whole[:-1], whole[100:]):
        path.write_bytes(content)
        with pytest.raises(EpisodeError, match="not a whole Parquet file") as caught:
            read_episodes(path)
        assert caught.value.path == str(path)


def test_a_parquet_file_of_other_columns_names_row_and_field(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"], "task": ["boil"]}), path)
    with pytest.raises(EpisodeError, match=rf"^{path}:1: env: missing"):
        read_episodes(path)
    rows = [episode("a").to_dict() | {"source": "{", "extra": "{}"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(EpisodeError, match=rf"^{path}:1: source: not JSON"):
        read_episodes(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a")])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_episodes(path, [episode("b")])
    monkeypatch.undo()
    assert [e.id for e in read_episodes(tmp_path)] == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_writer_appends_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "episodes.jsonl"
    with EpisodeWriter(path) as writer:
        writer.append(episode("a"))
        assert [e.id for e in read_episodes(path)] == ["a"]  # on disk at once
    with EpisodeWriter(path) as writer:
        assert (writer.ids, writer.dropped) == ({"a"}, 0)
        assert writer.episodes == [episode("a")]
        writer.append(episode("b"))
        with pytest.raises(EpisodeError, match="duplicate id 'b', already in"):
            writer.append(episode("b"))
        wrong = episode("c")
        wrong.outcome.score = 0.5
        with pytest.raises(EpisodeError, match=r"outcome\.score"):
            writer.append(wrong)
    assert read_episodes(path) == [episode("a"), episode("b")]


def test_the_writer_drops_a_torn_line_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a"), episode("b")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in (1, first // 2, first + 1, len(whole) - 2):
        path.write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING), EpisodeWriter(path) as writer:
            assert writer.dropped == 1
            assert "dropped an incomplete last line" in caplog.text
            writer.append(episode("c"))
        assert [e.id for e in read_episodes(path)] == (["a", "c"] if size > first else ["c"])


def test_the_writer_keeps_a_line_that_lacks_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a")])
    path.write_bytes(path.read_bytes()[:-1])
    with EpisodeWriter(path) as writer:
        assert writer.dropped == 0
        writer.append(episode("b"))
    assert [e.id for e in read_episodes(path)] == ["a", "b"]


def test_the_writer_refuses_damage_before_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, [episode("a"), episode("b")])
    path.write_bytes(b"{" + path.read_bytes())
    with pytest.raises(EpisodeError, match=":1: not a line of JSON"):
        EpisodeWriter(path)


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path), pytest.raises(BlockingIOError, match="is being written by another process"):
        EpisodeWriter(path)
    EpisodeWriter(path).close()


def test_a_failed_append_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episodes.jsonl"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with EpisodeWriter(path) as writer:
        writer.append(episode("a"))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(episode("b"))
        monkeypatch.undo()
        writer.append(episode("c"))
    assert [e.id for e in read_episodes(path)] == ["a", "c"]


def _append_for_ever(path: Path) -> None:
    with EpisodeWriter(path) as writer:
        for i in range(len(writer.ids), 1_000_000):
            writer.append(episode(str(i), text="o" * 100_000))


def test_a_killed_writer_loses_nothing_that_it_had_appended(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=_append_for_ever, args=(path,))
        process.start()
        size = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 20
        while (path.stat().st_size if path.exists() else 0) < size + 500_000:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        finished = path.read_bytes().count(b"\n")
        with EpisodeWriter(path) as writer:
            assert writer.ids == {str(i) for i in range(len(writer.ids))}
            assert finished <= len(writer.ids) <= finished + 1
    read_episodes(path)
