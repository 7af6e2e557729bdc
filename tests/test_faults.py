"""The campaign of faults in its short form, and that it would notice a loss."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

from faults import answers, records, runs  # noqa: E402
from faults.__main__ import KINDS, read_results  # noqa: E402
from faults.trial import LostError, Tally, Trial, execute, expect  # noqa: E402
from forked import Child  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_the_short_campaign_loses_nothing(tmp_path: Path) -> None:
    """Killed runs, graders and simulators, a full disk, odd resumes, fuzzed records, hostile texts and answers."""
    command = [sys.executable, "-m", "faults", "--short", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2400, check=False)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    lost = [(row["kind"], row["trial"], row["note"]) for row in rows if row["survived"] < row["tried"]]
    assert not lost and result.returncode == 0, (lost, result.stderr[-2000:])
    kinds = set(KINDS) - {"stops", "pairs", "hosts"} - (set() if os.geteuid() == 0 else {"disk"})
    assert {row["kind"] for row in rows} >= kinds


def broken(folder: Path) -> Tally:
    print("before")
    expect(1 > 2, "three weights differ")
    return Tally()


def hung(folder: Path) -> Tally:
    signal.pause()
    return Tally()


def test_a_loss_a_hang_and_a_crash_are_lost_trials(tmp_path: Path) -> None:
    row = execute(Trial("kind", "a", broken), tmp_path / "a")
    assert (row["tried"], row["survived"]) == (1, 0) and "three weights differ" in row["note"]
    row = execute(Trial("kind", "b", hung, limit=0.3), tmp_path / "b")
    assert (row["tried"], row["survived"]) == (1, 0) and "hung" in row["note"]
    row = execute(Trial("kind", "c", lambda folder: os.kill(os.getpid(), signal.SIGKILL)), tmp_path / "c")  # type: ignore[arg-type,return-value]
    assert (row["tried"], row["survived"]) == (1, 0) and "exit code -9" in row["note"]
    row = execute(Trial("kind", "d", lambda folder: Tally(7, 6, "one")), tmp_path / "d")
    assert (row["tried"], row["survived"], row["note"]) == (7, 6, "one")


def test_an_incomplete_last_line_of_the_results_is_dropped(tmp_path: Path) -> None:
    """A campaign that was killed resumes after its last complete trial."""
    path = tmp_path / "results.jsonl"
    first, second = ({"kind": "kills", "trial": "a", "tried": 1, "survived": n} for n in (0, 1))
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + '\n{"kind": "ki')
    assert read_results(path) == {("kills", "a"): second}
    assert path.read_text().endswith("}\n") and read_results(tmp_path / "none.jsonl") == {}


def test_a_child_reports_exit_codes_and_signals(tmp_path: Path) -> None:
    assert Child(lambda: sys.exit(143), tmp_path / "a").wait(20) == 143
    child = Child(signal.pause, tmp_path / "b")
    assert child.wait(0.1) is None
    child.send(signal.SIGTERM)
    assert child.wait(20) == -signal.SIGTERM
    child = Child(broken_print, tmp_path / "c", {"WORD": "x"})
    assert child.wait(20) == 70 and "hello x" in child.printed and "ZeroDivisionError" in child.printed


def broken_print() -> None:
    print("hello", os.environ["WORD"])
    raise ZeroDivisionError


def test_plain_values_are_compared_to_the_bit() -> None:
    import torch

    state = {"a": [torch.zeros(2), 1.0], "b": float("nan")}
    assert runs.same(state, {"a": [torch.zeros(2), 1.0], "b": float("nan")})
    for other in (
        {"a": [torch.tensor([0.0, 1e-30]), 1.0]},
        {"a": [torch.zeros(2, dtype=torch.float64), 1.0]},
        {"a": [1]},
    ):
        assert not runs.same(state, {"b": float("nan"), **other})
    with pytest.raises(LostError, match="lost"):
        expect([], "lost")


def test_nonsense_is_told_from_values_of_the_same_meaning() -> None:
    target = records.TARGETS["episodes"]
    for path, old, new in ((("steps", 0, "reward"), 1.0, True), (("id",), "a", None), (("steps", 0, "valid"), True, 1),
                           (("task",), "a", "\ud800"), (("meta", "x"), 1, float("inf"))):  # fmt: skip
        assert records.is_nonsense(target, path, old, new)
    for path, old, new in ((("steps", 0, "reward"), 1.0, 2), (("id",), "a", "b"), (("meta", "x"), 1, None)):
        assert not records.is_nonsense(target, path, old, new)


def test_the_time_of_each_attempt_at_an_answer_is_measured() -> None:
    """A killed worker's account is read before it is gone, and the attempts of an answer are added up."""
    pool = answers.MeasuredPool(time_limit=0.4)
    pool.verify(["7"], [r"\boxed{7}"])
    pool.attempts.clear()
    pool.verify(["7"], [r"\boxed{" + "9^{" * 1000 + "1" + "}" * 1001])
    pool.verify(["7"], [r"\boxed{7}"])
    pool.close()
    first, again, easy = pool.attempts
    assert 0.3 < first < 0.5 and 0.3 < again < 0.5 and easy < 0.2
    note = answers.report([[0.01], [1.0, 0.9], [0.02]])
    assert "first attempt 1.00 s" in note and "1 graded again, most of a repeated attempt 0.90 s" in note
    assert "all its attempts, 1.90 s, 1 above 1.1 s" in note and "again" not in answers.report([[0.01]])
