"""Does offline RL improve on SFT with a pretrained model? On four short tasks of ScienceWorld.

    python benchmarks/offline_scienceworld.py                 # seeds 4, 5 and 6 on `test`; resumes an interrupted run
    python benchmarks/offline_scienceworld.py --validation    # seed 0 on `dev`
    python benchmarks/offline_scienceworld.py --report        # the tables of the runs so far

For each seed: flat SFT on 128 expert episodes of one half of the training variations. Its policy plays the other half,
300 episodes, of which few succeed: the best are the quarter of each task with the highest scores. What is trained from
it, and how it is compared, is in `offline_pretrained.py`. The advantage temperature is chosen on the games of seed 0 to
learn from, by the share of the weight on wasted actions and on those that raise the score (`offline_weights.py`).

Runs and logs are in `--runs`, results in `benchmarks/results/offline_scienceworld.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import Step
from glider_games_data import best_episodes
from offline_pretrained import (
    MAX_GRAD_NORM,
    METHODS,
    MODEL,
    Place,
    Subject,
    main,
    make_parser,
    returns,
    with_expert,
)

from lit_rft.episodes import Episode

UNCLIPPED = {MAX_GRAD_NORM: 0}  # clipping would bound the steps with the largest weights most
RETURNS = returns("+ offline RL, lambda-returns", temperature=0.1, more=UNCLIPPED)
TRIALS = {
    "slow": returns("offline RL, learning rate 1e-4", temperature=0.1, rate=1e-4, more=UNCLIPPED),
    "softer": returns("offline RL, temperature 0.3", more=UNCLIPPED),
    "one_step": returns("offline RL, one step, temperature 0.06", td_lambda=0.0, temperature=0.06, more=UNCLIPPED),
}


def _configs(stage: str) -> list[str]:
    return [f"glider/scienceworld/{name}.yaml" for name in (stage, f"flat_{stage}")]


def _expert(place: Place) -> dict[str, Any]:
    return {"train_half": "first", "data_dir": place.home / "expert"}


def _start(place: Place) -> tuple[Step, Path]:
    return place.training("sft", "sft", place.expert()), place.home / "sft" / "checkpoints" / "last.ckpt"


def best_quarter(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the quarter of each task with the highest scores, the shorter ones first where scores are equal."""
    return best_episodes(sorted(episodes, key=lambda episode: (len(episode.steps), episode.id)), 0.25)


SUBJECT = Subject(
    "offline_scienceworld",
    _configs,
    _start,
    _expert,
    per_task=20,
    medium={"predict_half": "second"},
    keys={"trainer.limit_val_batches": 0, MODEL + "acting.parallel_episodes": 16},
    measure="score",
    methods=METHODS | {"returns": RETURNS},
    trials=TRIALS | with_expert(RETURNS),
    best=best_quarter,
)


def run(arguments: Sequence[str] | None = None) -> None:
    main(SUBJECT, make_parser(SUBJECT.name, __doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    run()
