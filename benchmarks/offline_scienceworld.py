"""Does offline RL improve on SFT with a pretrained model? On four short tasks of ScienceWorld.

    python benchmarks/offline_scienceworld.py                 # seeds 4, 5 and 6 on `test`; resumes an interrupted run
    python benchmarks/offline_scienceworld.py --validation    # seed 0 on `dev`
    python benchmarks/offline_scienceworld.py --report        # the tables of the runs so far

For each seed: flat SFT on 128 expert episodes of one half of the training variations. Its policy plays the other half,
300 episodes. What is trained from it, and how it is compared, is in `offline_pretrained.py`; the settings are those
that `offline_households.py` has chosen.

Runs and logs are in `--runs`, results in `benchmarks/results/offline_scienceworld.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import Step
from offline_pretrained import DATA, MODEL, WITH_EXPERT, Place, Subject, main, make_parser


def _configs(stage: str) -> list[str]:
    return [f"glider/scienceworld/{name}.yaml" for name in (stage, f"flat_{stage}")]


def _expert(place: Place) -> dict[str, Any]:
    return {"train_half": "first", "data_dir": place.home / "expert"}


def _start(place: Place) -> tuple[Step, Path]:
    keys = {DATA + key: value for key, value in _expert(place).items()}
    return place.training("sft", "sft", keys), place.home / "sft" / "checkpoints" / "last.ckpt"


SUBJECT = Subject(
    "offline_scienceworld",
    _configs,
    _start,
    _expert,
    per_task=20,
    medium={"predict_half": "second"},
    keys={"trainer.limit_val_batches": 0, MODEL + "acting.parallel_episodes": 16},
    measure="score",
    trials=WITH_EXPERT,
)


def run(arguments: Sequence[str] | None = None) -> None:
    main(SUBJECT, make_parser(SUBJECT.name, __doc__ or "").parse_args(arguments))


if __name__ == "__main__":
    run()
