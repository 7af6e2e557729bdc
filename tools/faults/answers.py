"""Hostile answers: none is right, no attempt takes more than 1.1 seconds of CPU time, and the next one is graded.

An answer that exceeds the limit is graded a second time, so that it may take twice as long: both are measured.
"""

from __future__ import annotations

import functools
import os
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.trial import Tally, Trial, expect
from lit_rft.rewards import Verdict, VerifierPool

GOLD = "1729"
_PIECES = (
    r"\boxed{", "}", "{", "$", r"\frac{", r"\sqrt{", "^{", "_{", "(", ")", "[", "]", "9", "1e999", "!", "**", "^", ",",
    r"\left(", r"\right)", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", r"\sum_{n=1}^{10^9}", r"\int_0^x", "\x00",
    r"\text{", "%", "\\", "\ud800", "\u202e", "\U0001f600", "x", "y", "=", "<", "and", "or", r"\cup", r"\infty",
    "Answer:", "the answer is", "<answer>", "</answer>", "</think>", "####", "\n", "\t", " ", "0.", "1/", "-", "~",
    r"\pm", "%s", "{0}",
)  # fmt: skip
_DEEP = (
    r"\frac{1}{1+",
    r"\sqrt{1+",
    "9^{",
    "(",
    r"\left(",
    "{",
    r"\boxed{",
    r"\text{",
    "[",
    r"\binom{9}{",
    "-(",
    "2**(",
)
_LARGE = (
    r"\boxed{9^{9^{9^{9}}}}", r"\boxed{((99999!)!)!}", r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n}}",
    r"\boxed{10^{10^{10}}}",
    r"\boxed{\binom{10^{9}}{10^{8}}}", r"\boxed{\int_0^1 x^{x^{x}} dx}", r"\boxed{2^{2^{2^{2^{2^{2}}}}}}",
    r"\boxed{\prod_{k=1}^{10^{9}} k}", r"\boxed{\sqrt[10^{9}]{2}}", r"\boxed{x^{10^{9}}-1}", r"\boxed{(x+y+z)^{1000}}",
    r"\boxed{\sin(10^{10^{9}})}", r"\boxed{0.\overline{" + "7" * 5000 + "}}",
)  # fmt: skip


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield answers in portions."""
    portions, size = (1, 15) if short else (10, 100)
    for portion in range(portions):
        run = functools.partial(grade, f"{seed}/{portion}", size)
        yield Trial("answers", f"{size} answers, portion {portion}", run, 900)


def hostile(rng: random.Random) -> str:
    """Make an answer: pieces of syntax in disorder, deep nesting, huge numbers, or any characters."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choices(_PIECES, k=rng.choice([3, 30, 300, 3000])))
    if kind == 1:
        opening, depth = rng.choice(_DEEP), rng.choice([10, 100, 1000, 5000])
        return r"\boxed{" + opening * depth + "1" + "}" * rng.choice([0, depth, depth + 1])
    if kind == 2:
        large = rng.choice(_LARGE)
        return large.replace("9", str(rng.randint(2, 99))) if rng.random() < 0.5 else large
    if kind == 3:
        digits = "".join(rng.choices("0123456789", k=rng.choice([50, 5000, 1_000_000])))
        return rf"\boxed{{{digits}{rng.choice(['', '!', '^{2}', '/7', '.5', '%'])}}}"
    codes = (
        rng.choice([rng.randrange(32), rng.randrange(0x110000), rng.randrange(0xD800, 0xE000)]) for _ in range(200)
    )
    return rf"\boxed{{{''.join(map(chr, codes))}}}"


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class MeasuredPool(VerifierPool):
    """A pool with one worker that measures the CPU time of each attempt at an answer.

    Args:
        time_limit: maximum seconds of CPU time per attempt.

    Attributes:
        attempts: seconds, in order.
    """

    def __init__(self, time_limit: float = 1.0) -> None:
        super().__init__(num_workers=1, time_limit=time_limit)
        self.attempts: list[float] = []
        self._ended = 0.0  # of workers that ended in this attempt

    def _work(self, requests: Any, indices: Any, results: list[Any], num_workers: int) -> None:
        self._ended, before = 0.0, self._running()
        super()._work(requests, indices, results, num_workers)
        self.attempts.append(self._running() + self._ended - before)

    def _end(self, worker: Any) -> int:
        self._ended += cpu_seconds(worker.pid)  # a dead one has its account until the template removes it
        return super()._end(worker)

    def _running(self) -> float:
        return sum(cpu_seconds(worker.pid) for worker in self._workers)


def grade(seed: str, size: int, folder: Path) -> Tally:
    """Grade hostile answers, each followed by an ordinary one."""
    rng, pool = random.Random(seed), MeasuredPool()
    pool.verify([GOLD], [rf"\boxed{{{GOLD}}}"])
    template = pool.process_ids[0]
    survived, walls, attempts, worst, killed = 0, [], [], "", 0
    for _ in range(size):
        answer = hostile(rng)
        while re.search(r"\b1729\b", answer):
            answer = hostile(rng)
        pool.attempts, begun = [], time.monotonic()
        (verdict,) = pool.verify([GOLD], [answer])
        walls.append(time.monotonic() - begun)
        attempts.append(list(pool.attempts))
        killed += verdict is Verdict.KILLED
        (after,) = pool.verify(["7"], [r"\boxed{7}"])
        good = verdict is not Verdict.RIGHT and after is Verdict.RIGHT and max(attempts[-1]) <= 1.1
        survived += good
        if not good:
            worst = f"; {verdict.value} {attempts[-1]} s {answer[:80]!r}"
    expect(template == pool.process_ids[0], "the template was replaced")
    pool.close()
    return Tally(size, survived, f"{report(attempts)}; wall-clock: most {max(walls):.1f} s; {killed} killed{worst}")


def report(attempts: Sequence[Sequence[float]]) -> str:
    """Describe the CPU time of answers, given that of each of their attempts."""
    first, again = [times[0] for times in attempts], [seconds for times in attempts for seconds in times[1:]]
    totals = [sum(times) for times in attempts]
    note = f"CPU time: median {statistics.median(first) * 1000:.0f} ms, most of a first attempt {max(first):.2f} s"
    if again:
        retried = sum(len(times) > 1 for times in attempts)
        note += f"; {retried} graded again, most of a repeated attempt {max(again):.2f} s"
    above = sum(total > 1.1 for total in totals)
    return f"{note}; most of an answer, all its attempts, {max(totals):.2f} s, {above} above 1.1 s"
