"""`lit-rft show` with 10,800 rollouts: size of the page, time to write it, and time of each view in headless Chromium.

    python benchmarks/viewer.py                     # some minutes; needs Chromium and playwright (lit-rft[browser])
    python benchmarks/viewer.py --steps 40 --rounds 2

The rollouts are made up: of 400 steps, each with 24 completions of 300 tokens with sampled, old and current
log-probabilities (those of traces have the current ones alone), and three short episodes. Times are medians over
loads of the page, each in a new profile: until the browser begins to draw the frame with the change.
Writes `benchmarks/results/viewer.json`.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT
from peers import machine, versions, write
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lit_rft.records import RolloutWriter

sys.path.append(str(ROOT / "tests"))
from chromium import chromium
from made_runs import episode_group, problem_group, write_curves

GROUPS, MEMBERS, TOKENS = 3, 8, 300  # of completions per step
NOTE_DRAWN = """new MutationObserver((_, observer) => {
  if (!document.querySelector('.chart path.line')) return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.drawn = performance.now(); }));
}).observe(document, {childList: true, subtree: true});"""
WAIT_FOR_CURVES = """() => new Promise((resolve) => {
  const look = () => { if (window.drawn) resolve(window.drawn); else setTimeout(look, 20); };
  look();
})"""
TIMED = """async ([act, done]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const run = new Function(act), isDone = new Function(`return ${done}`);
  await frame();
  const begun = performance.now();
  run();
  do {
    await frame();
    if (performance.now() - begun > 20000) throw new Error(`not done after 20 s: ${act}`);
  } while (!isDone());
  return performance.now() - begun;
}"""
SCROLL = """async (positions) => {
  const frame = () => new Promise(requestAnimationFrame);
  const body = document.querySelector('.body'), times = [];
  const bottom = body.scrollHeight - body.clientHeight;
  await frame();
  for (let k = 0; k < positions; k++) {
    const begun = performance.now(), top = Math.floor(((k * 37) % positions) / positions * bottom);
    body.scrollTop = top;
    await frame(); await frame();
    times.push(performance.now() - begun);
    const rows = [...document.querySelectorAll('.body .row')];
    const seen = rows.map((row) => Number(row.getAttribute('aria-rowindex')) - 2);
    if (!seen.includes(Math.floor(top / 30))) throw new Error(`row ${top / 30} is not drawn`);
  }
  return times;
}"""
ROWS = "Number(document.querySelector('.count').textContent.split(' ')[0])"
SEARCH = "document.querySelector('[aria-label=\"Search rollouts\"]')"
ACTIONS = {  # name -> what is done, and what shows that it is drawn
    "table": ("location.hash = 'rollouts'", "document.querySelector('.body .row')"),
    "sort by reward": (
        "document.querySelectorAll('[role=columnheader] button')[4].click()",
        "document.querySelectorAll('[role=columnheader]')[4].ariaSort === 'ascending'",
    ),
    "filter: text": (
        f"const e = {SEARCH}; e.value = 'sum-1'; e.dispatchEvent(new Event('input'))",
        f"{ROWS} < {{total}} && {ROWS} > 0",
    ),
    "filter: clear": ("[...document.querySelectorAll('.bar button')].at(-1).click()", f"{ROWS} === {{total}}"),
    "completion": (
        "location.hash = `rollouts/${Math.floor({total} / 2)}`",
        "document.querySelector('.detail .tokens span, .detail .step')",
    ),
}


def make_run(folder: Path, steps: int) -> int:
    """Write the files of a run, and return its number of rollouts."""
    rng, number = random.Random(0), 0
    write_curves(folder / "tensorboard", 0, steps)
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    writer = RolloutWriter(folder / "rollouts" / "train.jsonl", 1.0, 10**10)
    for step in track(range(steps), "making rollouts"):
        groups = [problem_group(rng, step, group, MEMBERS, TOKENS, steps) for group in range(GROUPS)]
        groups.append(episode_group(rng, step, GROUPS))
        number += sum(len(group.rollouts) for group in groups)
        writer.append(groups)
    writer.close()
    return number


def write_page(folder: Path, page: Path, rollouts: int) -> dict[str, float]:
    """Write the page by the command, and return its seconds, memory and size."""
    command = [sys.executable, "-m", "lit_rft.cli", "show", str(folder), "--out", str(page)]
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with Console().status("lit-rft show"):
        subprocess.run([*command, "--max_rollouts", str(rollouts)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "show_seconds": time.monotonic() - begun, "show_cpu_seconds": cpu, "show_peak_gb": after.ru_maxrss / 1e6,
        "page_mb": page.stat().st_size / 1e6,
    }  # fmt: skip


def look(browser: Any, page: Path, rollouts: int) -> dict[str, float]:
    """Open the page in a new profile, use its views, and return the milliseconds of each."""
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.add_init_script(NOTE_DRAWN)
    tab.goto(page.as_uri())
    times = {"curves": tab.evaluate(WAIT_FOR_CURVES)}
    for name, (act, done) in ACTIONS.items():
        action = [text.replace("{total}", str(rollouts)) for text in (act, done)]
        times[name] = tab.evaluate(TIMED, action)
    frames = tab.evaluate(SCROLL, 60)
    context.close()
    if complaints:
        raise RuntimeError(f"the page complains: {complaints}")
    return times | {"scroll": statistics.median(frames), "scroll, longest": max(frames)}


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Make a run and its page, and measure both."""
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "run.html"
        rollouts = make_run(run, steps)
        files = sum(path.stat().st_size for path in (run / "rollouts").iterdir()) / 1e6
        written = write_page(run, page, rollouts)
        with chromium() as browser:
            version = browser.version
            loads = [look(browser, page, rollouts) for _ in track(range(rounds), "opening the page")]
    milliseconds = {
        name: {"median": statistics.median(times), "least": min(times), "most": max(times)}
        for name in loads[0] for times in [[load[name] for load in loads]]
    }  # fmt: skip
    return {
        "rollouts": rollouts, "rollout_files_mb": files, **written, "rounds": rounds, "milliseconds": milliseconds,
        "machine": machine(), "versions": {**versions("playwright"), "chromium": version},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the run, 27 rollouts each")
    parser.add_argument("--rounds", type=int, default=10, help="loads of the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    result = measure(given.steps, given.rounds)
    write("viewer", result, given.results)
    sizes = "{rollouts} rollouts: {rollout_files_mb:.0f} MB, page {page_mb:.1f} MB, written in {show_seconds:.0f} s"
    table = Table(title=sizes.format(**result))
    for column in ("ms", "median", "least", "most"):
        table.add_column(column)
    for name, times in result["milliseconds"].items():
        table.add_row(name, *(f"{value:.0f}" for value in times.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
