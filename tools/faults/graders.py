"""Killed processes that grade answers: every verdict is that of an undisturbed pool."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from faults.trial import Tally, Trial, expect
from lit_rft.rewards import Verdict, VerifierPool


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield a pool whose workers are killed, and one whose template is."""
    kills = 5 if short else 100
    yield Trial("graders", f"{kills} workers killed", functools.partial(kill_workers, kills, seed), 900)
    if not short:
        yield Trial("graders", "10 templates killed", functools.partial(kill_templates, seed), 900)


def pairs(number: int) -> tuple[list[str], list[str], list[Verdict]]:
    """Return ground truths, answers and their verdicts; some need symbolic algebra."""
    golds, answers, verdicts = [], [], []
    for i in range(number):
        right = i % 3 != 0
        golds.append(rf"\frac{{x^{{{i}}}+1}}{{2}}" if i % 2 else str(i))
        value = rf"\frac{{x^{{{i}}}}}{{2}}+\frac{{{1 if right else 3}}}{{2}}" if i % 2 else str(i if right else i + 1)
        answers.append(rf"so \boxed{{{value}}}")
        verdicts.append(Verdict.RIGHT if right else Verdict.WRONG)
    return golds, answers, verdicts


def kill_workers(kills: int, seed: int, folder: Path) -> Tally:
    """Kill workers at random moments while they grade."""
    rng, pool = random.Random(seed), VerifierPool(num_workers=3)
    sent = 0

    def harm() -> None:
        nonlocal sent
        while sent < kills:
            time.sleep(rng.uniform(0, 0.15))
            workers = pool.process_ids[1:]
            if workers:
                try:
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    sent += 1
                except ProcessLookupError:  # killed before
                    continue

    golds, answers, expected = pairs(150)
    pool.verify(golds[:1], answers[:1])
    thread = threading.Thread(target=harm, daemon=True)
    thread.start()
    rounds, wrong, twice = 0, 0, 0
    while thread.is_alive():
        verdicts = pool.verify(golds, answers)
        rounds += 1
        twice += verdicts.count(Verdict.KILLED)
        wrong += sum(a is not b for a, b in zip(verdicts, expected, strict=True) if a is not Verdict.KILLED)
    last = pool.verify(golds, answers)
    pool.close()
    expect(not wrong, f"{wrong} verdicts differ")
    expect(last == expected, "the pool does not grade as before")
    note = f"{rounds * len(golds)} answers graded, {pool.retried} graded again, {twice} hit twice (reported as killed)"
    return Tally(sent, sent - twice, note)


def kill_templates(seed: int, folder: Path) -> Tally:
    """Kill the process that forks the workers, between and within calls."""
    golds, answers, expected = pairs(12)
    pool, rng, kills = VerifierPool(num_workers=2), random.Random(seed), 10
    for _ in range(kills):
        pool.verify(golds[:2], answers[:2])
        template = pool.process_ids[0]
        timer = threading.Timer(rng.uniform(0, 0.05), os.kill, (template, signal.SIGKILL))
        timer.start()
        expect(pool.verify(golds, answers) == expected, "verdicts differ")
        timer.join()
    pool.close()
    return Tally(kills, kills, "")
