"""Files of rollouts: what is written comes back, within the limit, whatever a killed writer left."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lit_rft.records import Conversation, GroupRecord, RolloutRecord, RolloutRecordError, RolloutWriter, Turn
from lit_rft.records.files import read_rollouts
from lit_rft.testing import make_episode


def make_group(batch: int, group: int = 0, split: str = "train", text: str = "an answer") -> GroupRecord:
    turns = [Turn("Question?", ["an", " answer", "\ud800", ""])]
    conversation = Conversation("completion", turns, [-1.0] * 4, advantages=[0.5, 0.25, 0, 0], clipped=[1])
    sampled = RolloutRecord("p1", text, False, True, 1.0, {"math": 1.0, "length": 0.5}, 0.5, [conversation], "4")
    expert = RolloutRecord("e1", "look", True, False, 0.0, episode=make_episode(0, 2))
    return GroupRecord(split, 3 * batch, batch, 0, group, "chain_sum", [sampled, expert])


def batches_of(path: Path) -> list[int]:
    return [group.batch for group in read_rollouts(path)]


def test_groups_come_back_as_they_were_written(tmp_path: Path) -> None:
    groups = [make_group(0), make_group(1, 5)]
    with_writer(tmp_path / "rollouts" / "train.jsonl", groups)
    assert read_rollouts(tmp_path) == groups
    assert read_rollouts(tmp_path / "rollouts") == read_rollouts(tmp_path / "rollouts" / "train.jsonl") == groups


def with_writer(path: Path, groups: list[GroupRecord], share: float = 1.0, max_bytes: int = 10**7) -> RolloutWriter:
    writer = RolloutWriter(path, share, max_bytes)
    for group in groups:
        writer.append([group])
    writer.close()
    return writer


@pytest.mark.parametrize("lost", [1, 40, 900])
def test_an_incomplete_last_line_is_not_read_and_is_removed_on_opening(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "train.jsonl"
    with_writer(path, [make_group(0), make_group(1)])
    path.write_bytes(path.read_bytes()[:-lost])  # killed while it wrote
    assert batches_of(path) == [0]
    with_writer(path, [make_group(1)])
    assert batches_of(path) == [0, 1]


def test_a_file_killed_in_its_first_line_begins_again(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"roll')
    with_writer(tmp_path / "train.jsonl", [make_group(4)])
    assert batches_of(tmp_path / "train.jsonl") == [4]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"rollouts": 1}, r"train.jsonl:1: share: expected the share of the groups in \(0, 1\], got None"),
        ({"rollouts": 1, "share": "all"}, r"train.jsonl:1: share: .* got 'all'"),
        ({"rollouts": 1, "share": 0}, r"train.jsonl:1: share: .* got 0"),
        ({"rollouts": 2, "share": 1.0}, r"train.jsonl:1: .*\"rollouts\": 1.* got {'rollouts': 2.*move it away"),
    ],
)
def test_a_head_without_share_or_of_another_version_is_an_error(tmp_path: Path, head: Any, message: str) -> None:
    path = tmp_path / "train.jsonl"
    content = json.dumps(head) + "\n" + json.dumps(make_group(0).to_dict()) + "\n"
    path.write_text(content)
    for use in (lambda: read_rollouts(path), lambda: RolloutWriter(path, 1.0, 10**6)):
        with pytest.raises(RolloutRecordError, match=message):
            use()
    assert path.read_text() == content


@pytest.mark.parametrize("blank", ["\n", "\n\n"])
def test_blank_lines_before_the_head_are_skipped(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(blank)
    with_writer(path, [make_group(3)], share=0.999)
    path.write_text(blank + path.read_text())
    assert batches_of(path) == [3] and with_writer(path, []).share == 0.999


def test_at_the_limit_the_share_is_halved_over_the_whole_run(tmp_path: Path) -> None:
    path, groups = tmp_path / "train.jsonl", [make_group(batch) for batch in range(300)]
    size = len(json.dumps(groups[0].to_dict()))
    writer = with_writer(path, groups, max_bytes=40 * size)
    assert path.stat().st_size <= 40 * size and writer.share in (1 / 8, 1 / 16, 1 / 32)
    kept = batches_of(path)
    assert 5 < len(kept) <= 45 and kept == sorted(kept)
    other = RolloutWriter(tmp_path / "other.jsonl", writer.share, 10**9)
    assert kept == [batch for batch in range(300) if other.wants(batch, 0, 0)]  # a share of all, not of the latest
    other.close()
    assert with_writer(path, []).share == writer.share  # a resumed run goes on with the file's share


def test_a_group_larger_than_a_quarter_of_the_limit_does_not_displace_the_others(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    writer = with_writer(path, [make_group(0), make_group(1, text="x" * 20_000), make_group(2)], max_bytes=60_000)
    assert batches_of(path) == [0, 2] and writer.share == 1


def test_a_share_of_the_groups_is_kept(tmp_path: Path) -> None:
    with_writer(tmp_path / "train.jsonl", [make_group(0, group) for group in range(200)], share=0.25)
    assert 30 < len(batches_of(tmp_path / "train.jsonl")) < 70


def test_groups_are_dropped_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    writer = RolloutWriter(path, 1.0, 10**6)
    writer.append(make_group(batch) for batch in range(4))
    writer.drop(lambda line: line["batch"] >= 2)
    writer.append([make_group(2)])
    writer.close()
    assert batches_of(path) == [0, 1, 2]


@contextmanager
def read_at_every_line(path: Path, seen: list[bytes]) -> Iterator[None]:
    """Read a file before each line of Python that runs in the block: what a reader finds then, or a kill leaves."""

    def trace(frame: Any, event: str, argument: Any) -> Any:
        content = path.read_bytes() if path.exists() else b""
        if not seen or seen[-1] != content:
            seen.append(content)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def read_states(path: Path, seen: list[bytes]) -> list[tuple[float, list[int]]]:
    """Return share and batches of each content that was seen; a torn one fails."""
    states = []
    for content in seen:
        assert content.endswith(b"\n"), content[-60:]
        path.write_bytes(content)
        states.append((json.loads(content.splitlines()[0])["share"], batches_of(path)))
    return states


def test_groups_are_dropped_atomically(tmp_path: Path) -> None:
    """At any moment the file has all its earlier groups or all that remain."""
    seen: list[bytes] = []
    writer = RolloutWriter(tmp_path / "train.jsonl", 1.0, 10**6)
    writer.append(make_group(batch) for batch in range(6))
    with read_at_every_line(writer.path, seen):
        writer.drop(lambda line: line["batch"] % 2 == 1)
    writer.close()
    assert read_states(tmp_path / "seen.jsonl", seen) == [(1.0, [0, 1, 2, 3, 4, 5]), (1.0, [0, 2, 4])]


def test_the_share_is_halved_atomically(tmp_path: Path) -> None:
    """At any moment the file has all of the share that its first line names."""
    seen: list[bytes] = []
    groups = [make_group(batch) for batch in range(30)]
    writer = RolloutWriter(tmp_path / "train.jsonl", 1.0, 20 * len(json.dumps(groups[0].to_dict())))
    writer.append(groups[:15])
    with read_at_every_line(writer.path, seen):
        writer.append(groups[15:])  # beyond the limit
    writer.close()
    states = read_states(tmp_path / "seen.jsonl", seen)
    assert [share for share, _ in states] == [1.0, 0.5, 0.5] and 0 < len(states[1][1]) < 15
    for (share, batches), present in zip(states, (15, 15, 30), strict=True):
        writer.share = share
        assert batches == [batch for batch in range(present) if writer.wants(batch, 0, 0)]


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path / "train.jsonl", 1.0, 10**6)
    writer.drop(lambda line: False)
    with pytest.raises(BlockingIOError, match="is being written by another process"):
        RolloutWriter(tmp_path / "train.jsonl", 1.0, 10**6)
    writer.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, r"train.jsonl:2: step: expected an integer, got '3'"),
        ({"steps": 3}, r"train.jsonl:2: steps: unknown field"),
        ({"rollouts": [{"id": "a"}]}, r"rollouts\[0\].text: missing"),
        ({"rollouts": [{"id": "a", "text": "", "trace": 1}]}, r"rollouts\[0\].finished: missing"),
        ({"rollouts": ["a"]}, r"rollouts\[0\]: expected an object, got 'a'"),
        ({"step": -1}, r"train.jsonl:2: step: expected 0 or more, got -1"),
        ({"split": "dev"}, r"train.jsonl:2: split: expected one of train, validation, test, got 'dev'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"rollouts": 1, "share": 1}\n' + json.dumps({**make_group(0).to_dict(), **change}) + "\n")
    with pytest.raises(RolloutRecordError, match=message):
        read_rollouts(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sampled_log_probs", [-1.0] * 3, r"\[0\].sampled_log_probs: expected a value for each of 4 tokens, got 3"),
        ("clipped", [4], r"\[0\].clipped: expected indices of 4 tokens, got \[4\]"),
        ("entropy", [1.0, 1.0, float("inf"), 1.0], r"entropy\[2\]: expected a finite number, got inf"),
        ("entropy", [1.0, 1.0, 10**400, 1.0], r"entropy\[2\]: expected a finite number, got 1000"),
    ],
)
def test_token_wise_values_that_fit_no_token_are_refused(name: str, value: list[float], message: str) -> None:
    record = make_group(0).to_dict()
    record["rollouts"][0]["conversations"][0][name] = value
    with pytest.raises(RolloutRecordError, match=message):
        GroupRecord.from_dict(record)


@pytest.mark.parametrize("place", ["reward", "advantage", "episode"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, place: str) -> None:
    record = make_group(0).to_dict()
    if place == "episode":
        record["rollouts"][1]["episode"]["meta"] = {"speed": float("nan")}  # free JSON, but JSON
    else:
        record["rollouts"][0][place] = float("nan")
    path = tmp_path / "train.jsonl"
    path.write_text('{"rollouts": 1, "share": 1}\n' + json.dumps(record) + "\n")
    with pytest.raises(RolloutRecordError, match=r"train.jsonl:2: not a line of JSON: NaN is not a JSON number"):
        read_rollouts(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"id": "an episode"}\n')
    with pytest.raises(RolloutRecordError, match="expected a file of rollouts"):
        read_rollouts(tmp_path / "train.jsonl")
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        read_rollouts(tmp_path)
