"""Does offline RL improve on SFT with a pretrained model? On synthetic households, from where `make demo` ends.

    python benchmarks/offline_households.py                 # seeds 4, 5 and 6 on `test`; resumes an interrupted run
    python benchmarks/offline_households.py --validation    # seed 0 on `dev`, and trials of other settings
    python benchmarks/offline_households.py --report        # the tables of the runs so far

For each seed: flat SFT on expert episodes (`demo_runs.py`, in the folder `--demo`; trained here if it is missing). Its
policy plays 300 games on training floor plans, most of them other ones than the expert's. What is trained from it, and
how it is compared, is in `offline_pretrained.py`.

Runs and logs are in `--runs`, results in `benchmarks/results/offline_households.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import demo_runs
from experiment import ROOT, Step
from offline_pretrained import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_STEPS,
    WITH_EXPERT,
    Method,
    Place,
    Subject,
    main,
    make_parser,
    returns,
)

NAME = "offline_households"

TRIALS = {
    "returns_expert": WITH_EXPERT,
    "unclipped": returns("lambda-returns, gradients are not clipped", more={MAX_GRAD_NORM: 0}),
    "unclipped_sharper": returns(
        "lambda-returns, temperature 0.1, gradients are not clipped", temperature=0.1, more={MAX_GRAD_NORM: 0}
    ),
    "longer": returns("lambda-returns, temperature 0.1, twice the steps", temperature=0.1, more={MAX_STEPS: 200}),
    "sharper": returns("lambda-returns, temperature 0.1", temperature=0.1),
    "steadier": returns("lambda-returns, temperature 0.1, critic 1e-3", temperature=0.1, critic_rate=1e-3),
    "faster": returns("lambda-returns, temperature 0.1, learning rate 1e-3", temperature=0.1, rate=1e-3),
    "solved_faster": Method("the solved games, learning rate 1e-3", "sft", "solved", keys={LEARNING_RATE: 1e-3}),
    "bootstrapped": returns("lambda-returns, cut games are bootstrapped", "episodes/predicted"),
}


def _configs(stage: str) -> list[str]:
    return [f"glider/alfworld/{name}.yaml" for name in (stage, f"flat_{stage}", "demo")]


def make_subject(demo: Path) -> Subject:
    """Return the households, with the SFT policies of the demo's runs in a folder."""

    def start(place: Place) -> tuple[Step, Path]:
        checkpoint = demo / f"seed-{place.seed}" / "checkpoints" / "last.ckpt"
        return demo_runs.step(place.seed, demo, ()), checkpoint

    return Subject(NAME, _configs, start, lambda _: {"train_half": "null"}, per_task=22, trials=TRIALS)


def run(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(NAME, __doc__ or "")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo_runs", help="folder of the SFT runs")
    options = parser.parse_args(arguments)
    main(make_subject(options.demo), options)


if __name__ == "__main__":
    run()
