"""Processes that grade: nothing that a model writes does harm, and no right answer is lost on a busy machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_rft.rewards import MathReward, Verdict, VerifierPool
from lit_rft.rewards.template import TemplateError, Worker


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(num_workers=1, time_limit=0.3)
    yield pool
    pool.close()


HARMFUL = {
    "tower of powers": r"\boxed{9^{9^{9^{9^9}}}}",
    "tower in python": r"\boxed{9**9**9**9}",
    "factorial": r"\boxed{(((99999!)!)!)!}",
    "a megabyte": "x" * 1_000_000,
    "a megabyte of digits": r"\boxed{" + "9" * 1_000_000 + "}",
    "deep nesting": r"\boxed{" + "{" * 5000 + "1" + "}" * 5000 + "}",
    "deep parentheses": r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{1+" * 300 + "1" + "}" * 300 + "}",
    "a bomb of braces": r"\boxed{" * 2000 + "1" + "}" * 2000,
    "null bytes": "\x00" * 1000 + r"\boxed{4\x002}",
    "surrogates": "\ud800\udfff \\boxed{42\ud800}",
    "control characters": "".join(map(chr, range(32))) * 50,
    "code": "The answer is __import__('os').system('touch /tmp/owned')",
    "latex code": r"\boxed{\input{/etc/passwd}}",
    "a huge sum": r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n}}",
    "a huge integral": r"\boxed{\int_0^1 x^{x^{x^{x}}} dx}",
    "many answers": r"\boxed{1} " * 20_000,
    "many anchors": "the answer is " * 2_000,
    "many open tags": "<answer>" * 3_000,
    "many dollars": "$" * 20_000,
    "a large exponent": r"\boxed{1e999999999}",
    "a large power": r"\boxed{9999999999^{999}}",
    "many spaces": "Answer" + " " * 20_000 + "42x",
    "many asterisks": "Final answer" + "*" * 20_000,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_that_a_model_writes_hangs_or_crashes(pool: VerifierPool, name: str) -> None:
    harmful, after = pool.verify(["42", "7"], [HARMFUL[name], r"\boxed{7}"])
    assert after is Verdict.RIGHT  # the next answer is graded as if nothing had been
    assert harmful is not Verdict.RIGHT
    assert not os.path.exists("/tmp/owned")


def test_many_answers_among_them_hangs_keep_their_order_and_are_counted() -> None:
    pool = VerifierPool(num_workers=2, time_limit=0.3)
    try:
        answers = [HARMFUL["factorial"] if i % 7 == 3 else rf"\boxed{{{i}}}" for i in range(21)]
        verdicts = pool.verify([str(i) for i in range(21)], answers)
        expected = [Verdict.KILLED if i % 7 == 3 else Verdict.RIGHT for i in range(21)]
        assert verdicts == expected
        assert pool.killed == pool.retried == 3
    finally:
        pool.close()


BUSY = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


def test_no_right_answer_is_lost_on_a_busy_machine() -> None:
    """The limit is CPU time: under ten busy processes it takes many times as long by the clock."""
    reward = MathReward(num_workers=6, time_limit=0.4)
    golds = [rf"\frac{{x^{{{i}}}+1}}{{{i}}}" for i in range(2, 50)]
    answers = [rf"so \boxed{{\frac{{x^{{{i}}}}}{{{i}}}+\frac{{1}}{{{i}}}}}" for i in range(2, 50)]
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(10)]
    try:
        rewards = reward(answers, [{"ground_truth": gold} for gold in golds])
        assert rewards == [1.0] * len(golds)
        assert reward.counts == {"right": len(golds), "wrong": 0, "unreadable": 0, "killed": 0}
    finally:
        for process in busy:
            process.kill()
            process.wait()
        reward.close()


def test_a_process_that_neither_computes_nor_answers_is_replaced_and_its_pair_tried_again() -> None:
    pool = VerifierPool(num_workers=1, wall_limit=1.5)
    try:
        pool.verify(["1"], [r"\boxed{1}"])
        os.kill(pool.process_ids[1], signal.SIGSTOP)
        assert pool.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"]) == [Verdict.RIGHT, Verdict.RIGHT]
        os.kill(pool.process_ids[1], signal.SIGKILL)  # while idle
        assert pool.verify(["3"], [r"\boxed{3}"]) == [Verdict.RIGHT]
        assert (pool.killed, pool.retried) == (0, 2)
    finally:
        pool.close()


@pytest.mark.parametrize(("kills", "expected"), [(30, Verdict.RIGHT), (31, Verdict.KILLED)])
def test_a_pair_whose_process_is_killed_from_outside_is_graded_again(kills: int, expected: Verdict) -> None:
    """As by the system when it is out of memory; a pair that ends its process itself has one more attempt."""
    left = [kills]

    class HarmedPool(VerifierPool):
        def _fork(self) -> Worker:
            worker = super()._fork()
            if left[0]:
                left[0] -= 1
                os.kill(worker.pid, signal.SIGKILL)
            return worker

    pool = HarmedPool(num_workers=1)
    try:
        assert pool.verify(["1"], [r"\boxed{1}"]) == [expected]
        assert (pool.killed, pool.retried, left) == (expected is Verdict.KILLED, 1, [0])
        assert pool.verify(["1"], [r"\boxed{1}"]) == [Verdict.RIGHT]
    finally:
        pool.close()


def test_closing_ends_all_processes_and_a_template_that_died_is_replaced() -> None:
    pool = VerifierPool(num_workers=2)
    assert pool.process_ids == []
    pool.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"])
    pids = pool.process_ids
    assert len(pids) == 3 and all(os.path.exists(f"/proc/{pid}") for pid in pids)
    pool.close()
    assert pool.process_ids == [] and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert pool.verify(["1"], [r"\boxed{1}"]) == [Verdict.RIGHT]  # the next use starts new ones
    for pid in pool.process_ids:
        os.kill(pid, signal.SIGKILL)
    assert pool.verify(["1"], [r"\boxed{1}"]) == [Verdict.RIGHT]
    pool.close()


class Stop(BaseException):
    """As of Ctrl-C."""


@pytest.mark.parametrize("place", ["pool.wait", "template.Worker.receive", "template.Worker"])
def test_a_call_that_was_interrupted_leaves_no_response_for_the_next(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **keywords: object) -> None:
        raise Stop

    pool = VerifierPool(num_workers=2)
    try:
        pool.verify(["1"], [r"\boxed{1}"])
        old = pool.process_ids
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(f"lit_rft.rewards.{place}", stop)
            pool.verify(["2"] * 4, [r"\boxed{1}"] * 4)
        assert pool.verify(["1"], [r"\boxed{1}"]) == [Verdict.RIGHT]
        assert pool.verify(["3"] * 4, [r"\boxed{3}"] * 4) == [Verdict.RIGHT] * 4
        assert not any(os.path.exists(f"/proc/{pid}") for pid in old)
    finally:
        pool.close()


SCRIPT = """
import os
print("imported", __name__, flush=True)
from lit_rft.rewards import MathReward
reward = MathReward(num_workers=2)
print(reward([r"\\boxed{1}", r"\\boxed{3}"], [{"ground_truth": "1"}, {"ground_truth": "2"}]), flush=True)
"""


WAITING = """
import time
from lit_rft.rewards import VerifierPool
pool = VerifierPool(num_workers=1)
pool.verify(["1"], ["1"])
print(pool.process_ids[0], flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_scripts_without_a_main_guard_are_not_imported_again(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)] if how == "file" else [sys.executable]
    source = None if how == "file" else SCRIPT
    # no close() in the script either: its end must end the processes
    result = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["imported __main__", "[1.0, 0.0]"]


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WAITING)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlives its parent")


def test_why_processes_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_rft.rewards.template.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs math-verify: pip install 'lit-rft\[math\]'"):
        VerifierPool().verify(["1"], [r"\boxed{1}"])
    monkeypatch.undo()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TemplateError, match="did not start: exit code 1"):
        VerifierPool().verify(["1"], [r"\boxed{1}"])


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="time_limit must be > 0"):
        VerifierPool(time_limit=0)
    with pytest.raises(ValueError, match="expected one ground truth per answer"):
        VerifierPool().verify(["1"], [])
    with pytest.raises(TypeError, match="cannot be pickled"):
        VerifierPool().__getstate__()
