"""Does offline RL improve on SFT with a pretrained model? On four short tasks of ScienceWorld.

    python benchmarks/offline_scienceworld.py                 # seeds 4, 5 and 6 on `test`; resumes an interrupted run
    python benchmarks/offline_scienceworld.py --validation    # seed 0 on `dev`
    python benchmarks/offline_scienceworld.py --report        # the tables of the runs so far

For each seed: flat SFT on 128 expert episodes of one half of the training variations, in three epochs
(after one its policy solved 31% of 80 episodes of `dev` greedily, after three 64%). That policy plays 300 episodes of
the other half; the best are the quarter of each task with the highest scores, the shorter ones first. What is trained
from it, and how it is compared, is in `offline_pretrained.py`.

Runs and logs are in `--runs`, results in `benchmarks/results/offline_scienceworld.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import Step
from glider_games_data import best_episodes
from offline_pretrained import (
    MODEL,
    WITH_EXPERT,
    Place,
    Subject,
    main,
    make_parser,
    returns,
)

from lit_rft.episodes import Episode

TRIALS = {
    "sharper": returns("offline RL, temperature 0.1", temperature=0.1),
    "slow": returns("offline RL, learning rate 2e-4", rate=2e-4),
    "one_step": returns("offline RL, one step", td_lambda=0.0),
    "returns_expert": WITH_EXPERT,
}
EPOCHS = 3  # of SFT


def _configs(stage: str) -> list[str]:
    return [f"glider/scienceworld/{name}.yaml" for name in (stage, f"flat_{stage}")]


def _expert(place: Place) -> dict[str, Any]:
    return {"train_half": "first", "data_dir": place.home / "expert"}


def _start(place: Place) -> tuple[Step, Path]:
    training = place.training("sft", "sft", place.expert() | {"trainer.max_epochs": EPOCHS})
    return training, place.home / "sft" / "checkpoints" / "last.ckpt"


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
    trials=TRIALS,
    best=best_quarter,
)


def run(arguments: Sequence[str] | None = None) -> None:
    main(SUBJECT, make_parser(SUBJECT.name, __doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    run()
