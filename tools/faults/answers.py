"""Hostile answers: none is right, none takes more than 1.1 seconds of CPU time, and the next one is graded."""

from __future__ import annotations

import functools
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

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


def grade(seed: str, size: int, folder: Path) -> Tally:
    """Grade hostile answers, each followed by an ordinary one."""
    rng, pool = random.Random(seed), VerifierPool(num_workers=1)
    pool.verify([GOLD], [rf"\boxed{{{GOLD}}}"])
    template = pool.process_ids[0]
    survived, walls, cpu, worst, killed = 0, [], [], "", 0
    for _ in range(size):
        answer = hostile(rng)
        while re.search(r"\b1729\b", answer):
            answer = hostile(rng)
        retried, before, begun = pool.retried, _spent(pool, template), time.monotonic()
        (verdict,) = pool.verify([GOLD], [answer])
        walls.append(time.monotonic() - begun)
        # the limit of CPU time ends an attempt: a killed worker's own account is gone
        cpu.append(pool.time_limit if pool.retried > retried else _spent(pool, template) - before)
        killed += verdict is Verdict.KILLED
        (after,) = pool.verify(["7"], [r"\boxed{7}"])
        good = verdict is not Verdict.RIGHT and after is Verdict.RIGHT and cpu[-1] <= 1.1
        survived += good
        if not good:
            worst = f"; {verdict.value} {cpu[-1]:.2f} s {answer[:80]!r}"
    expect(template == pool.process_ids[0], "the template was replaced")
    pool.close()
    note = (f"CPU time per attempt: median {statistics.median(cpu) * 1000:.0f} ms, most {max(cpu):.2f} s; "
            f"wall-clock: most {max(walls):.1f} s; {killed} reached the limit twice{worst}")  # fmt: skip
    return Tally(size, survived, note)


def _spent(pool: VerifierPool, template: int) -> float:
    return sum(cpu_seconds(pid) for pid in pool.process_ids if pid != template)
