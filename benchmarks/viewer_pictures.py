"""Pictures of `lit-rft show` for docs/viewing.md, of real runs, in headless Chromium: docs/images/show_*.png.

    python benchmarks/viewer_pictures.py                       # about 12 minutes with the runs, which are kept
    python benchmarks/viewer_pictures.py --runs runs/pictures  # in another folder

The runs are GLIDER's three stages on errands, the third one with two learning rates, and three steps of LUFFY on
arithmetic with groups of four. Needs Chromium and lit-rft[browser,math].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiment import IMAGES, ROOT, Step, lit_rft, run
from rich.console import Console

from lit_rft import read_rollouts

sys.path.append(str(ROOT / "tests"))
from chromium import chromium

ONLINE = "glider/games/online.yaml"
FAST = {"model.init_args.optimizer.learning_rate": 3e-3}


def steps(runs: Path) -> list[Step]:
    """Return the commands, with paths below a folder in the place of those in the configs."""
    episodes, model = runs / "errands.jsonl", runs / "errands_model"
    base = {"data.init_args.train_files": f"[{episodes}]"}
    command = [sys.executable, "-m", "lit_rft.cli"]
    collect = [*command, "collect", "lit_rft.envs.games.Errands", "--expert", "lit_rft.envs.games.errands.expert"]
    collect += ["--random", "0.3", "--episodes", "480", "--step_limit", "40", "--out", str(episodes)]

    def fit(name: str, config: str, keys: dict[str, Any]) -> Step:
        keys = {"trainer.default_root_dir": runs / name, **keys}
        return Step(name, lit_rft("fit", [config], keys), runs / name / "checkpoints" / "last.ckpt")

    trained = {"model.init_args.policy.model": runs / "sft" / "adapter", **base}
    online = trained | {"model.init_args.policy.start_from": runs / "offline_rl" / "checkpoints" / "last.ckpt"}
    luffy = {"trainer.max_steps": 3, "model.init_args.objective.group_size": 4, "trainer.limit_val_batches": 0}
    return [
        Step("collect", collect, episodes),
        Step("model", [*command, "make-model", str(episodes), "--out", str(model)], model / "config.json"),
        fit("sft", "glider/games/sft.yaml", {"model.init_args.policy.model": model, **base}),
        fit("offline_rl", "glider/games/offline_rl.yaml", trained),
        fit("online", ONLINE, online),
        fit("online_fast", ONLINE, online | FAST),
        fit("luffy", "luffy/arithmetic.yaml", luffy),
    ]  # fmt: skip


def open_page(browser: Any, file: Path, view: str, width: int, height: int) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{file.resolve().as_uri()}#{view}")
    return page


def best_episode(folder: Path) -> str:
    """Return the id of a solved episode of the last evaluation: the one with the most subgoals."""
    rollouts = [rollout for group in read_rollouts(folder) if group.split == "validation" for rollout in group.rollouts]
    solved = [rollout for rollout in rollouts if rollout.episode and rollout.episode.outcome.success]
    return max(solved, key=lambda rollout: (len(rollout.episode.subgoals), rollout.id)).id


def most_varied_group(folder: Path) -> str:
    """Return the id of the problem whose samples differ most in length and reward."""
    groups = [group for group in read_rollouts(folder) if all(rollout.finished for rollout in group.rollouts)]
    varied = max(groups, key=lambda group: len({(rollout.reward, rollout.text) for rollout in group.rollouts}))
    return varied.rollouts[0].id


def choose(page: Any, text: str) -> None:
    """Search for a rollout, and open the first one in the table."""
    page.wait_for_selector(".body .row")
    page.get_by_label("Search rollouts").fill(text)
    page.click(".body .row >> nth=0")
    page.wait_for_selector(".detail h2")


def take_games(browser: Any, runs: Path) -> None:
    """Take the pictures of curves, settings and an episode."""
    both = runs / "online.html"
    page = open_page(browser, both, "curves", 1300, 760)
    page.wait_for_selector(".chart path.line")
    page.screenshot(path=IMAGES / "show_curves.png")
    page.close()

    page = open_page(browser, both, "run", 1100, 800)
    page.wait_for_selector(".about table")
    page.screenshot(path=IMAGES / "show_run.png")
    page.close()

    page = open_page(browser, both, "rollouts", 1400, 900)
    choose(page, best_episode(runs / "online"))
    page.wait_for_selector(".subgoal")
    page.screenshot(path=IMAGES / "show_episode.png")
    page.close()


def take_completions(browser: Any, runs: Path) -> None:
    """Take the pictures of a completion and its group."""
    luffy, problem = runs / "luffy.html", most_varied_group(runs / "luffy")
    page = open_page(browser, luffy, "rollouts", 1400, 700)
    choose(page, problem)
    page.wait_for_selector(".tokens span")
    page.screenshot(path=IMAGES / "show_completion.png")
    page.close()

    page = open_page(browser, luffy, "rollouts", 2200, 900)  # as wide as four columns need beside the table
    choose(page, problem)
    page.click("text=Group of 4")
    page.wait_for_selector(".compare section >> nth=3")
    page.locator(".detail").screenshot(path=IMAGES / "show_group.png")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/viewer_pictures"), help="folder of the runs")
    runs, console = parser.parse_args().runs, Console()
    runs.mkdir(parents=True, exist_ok=True)
    todo = steps(runs)
    for number, step in enumerate(todo, 1):
        console.print(f"{number} of {len(todo)}: {step.name}")
        run(step, runs, console)
    show = [sys.executable, "-m", "lit_rft.cli", "show"]
    for name, folders in {"online": ["online", "online_fast"], "luffy": ["luffy"]}.items():
        page = runs / f"{name}.html"
        page.unlink(missing_ok=True)
        run(Step(f"show {name}", [*show, *(str(runs / f) for f in folders), "--out", str(page)], page), runs, console)
    with console.status("taking pictures"), chromium() as browser:
        take_games(browser, runs)
        take_completions(browser, runs)
    console.print(f"pictures: {IMAGES}/show_*.png")


if __name__ == "__main__":
    main()
