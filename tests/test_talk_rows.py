"""The comparison's rows: what each starts from, learns from and plays with."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import load

from lit_rft.cli import resolve_configs
from lit_rft.command_line import build

EXPLORED = "{}/explored/episodes/predicted.jsonl"
WEIGHTS = "{}/checkpoints/last.ckpt"
# what is trained, in order: (run, weights that it starts from, explored episodes that it learns from)
CLONED = ("sft", None, None)
HIERARCHY = ("glider_sft", None, None)
CLONED_ONCE, HIERARCHY_ONCE = ("sft_once", None, None), ("glider_sft_once", None, None)
TRAINED: dict[str, list[tuple[str, str | None, str | None]]] = {
    "untrained": [],
    "react": [],
    "reflexion": [],
    "swift_sage": [("swift_sage", None, None)],
    "sft": [CLONED],
    "sft_once": [CLONED_ONCE],
    "agent_tuning": [("agent_tuning", None, None)],
    "nat": [CLONED, ("nat", None, "sft")],
    "nat_meaningless": [CLONED, ("nat_meaningless", None, "sft")],
    "eto": [CLONED, ("eto", "sft", None)],
    "ppo": [CLONED, ("ppo", "sft", None)],
    "ilql": [CLONED, ("ilql", "sft", "sft")],
    "awac": [CLONED, ("awac", "sft", "sft")],
    "awac_once": [CLONED_ONCE, ("awac_once", "sft_once", "sft_once")],
    "glider_sft": [HIERARCHY],
    "glider_sft_once": [HIERARCHY_ONCE],
    "glider_without_sft": [HIERARCHY, ("glider_without_sft", None, "glider_sft")],
    "glider": [HIERARCHY, ("glider", "glider_sft", "glider_sft")],
    "glider_once": [HIERARCHY_ONCE, ("glider_once", "glider_sft_once", "glider_sft_once")],
    "glider_online": [
        HIERARCHY,
        ("glider", "glider_sft", "glider_sft"),
        ("glider_online", "glider", "glider_sft"),
    ],
}


@pytest.fixture(scope="module")
def talk() -> Any:
    return load("talk_table")


@pytest.fixture(params=["scienceworld", "alfworld"])
def place(talk: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    return talk.Place(talk.GAMES[request.param], "small", 3, tmp_path, tmp_path / "general.jsonl")


def options(step: Any) -> dict[str, str]:
    """The last value of each option of a step's command, without the parts that all stages and data share."""
    flags = {key: value for key, value in itertools.pairwise(step.command) if key.startswith("--")}
    return {key.removeprefix("--").replace("init_args.", ""): value for key, value in flags.items()}


def steps_of(talk: Any, place: Any, row: str, *kinds: str) -> list[Any]:
    return [step for step in talk.steps(place, row) if step.name.rsplit(": ", 1)[1] in kinds]


def test_every_row_is_listed(talk: Any) -> None:
    assert list(TRAINED) == list(talk.ROWS)


@pytest.mark.parametrize("row", TRAINED)
def test_what_a_row_starts_and_learns_from(talk: Any, place: Any, row: str) -> None:
    found = []
    for step in steps_of(talk, place, row, "fit"):
        keys = options(step)
        name = Path(keys.get("trainer.default_root_dir") or keys["folder"]).name
        start, medium = keys["model.policy.start_from"], keys.get("data.medium_files") or keys.get("data.train_files")
        assert keys["seed_everything"] == "3"
        found.append((name, start, medium))
    expected = [
        (
            run,
            str(place.home / WEIGHTS.format(start)) if start else "null",
            f"[{place.home / EXPLORED.format(medium)}]" if medium else None,
        )
        for run, start, medium in TRAINED[row]
    ]
    assert found == expected


@pytest.mark.parametrize(("scale", "more"), [("small", 2), ("paper", 5)])
def test_one_epoch_is_less_than_sft_has_at_each_scale(talk: Any, tmp_path: Path, scale: str, more: int) -> None:
    for game in talk.GAMES.values():
        place = talk.Place(game, scale, 0, tmp_path, tmp_path / "general.jsonl")
        epochs = {}
        for row in ("sft", "sft_once", "glider_sft", "glider_sft_once"):
            (fit,) = steps_of(talk, place, row, "fit")
            arguments = [*fit.command[4:-2], "--trainer.devices", "1"]  # without the verb and the checkpoint
            epochs[row] = build(resolve_configs(arguments), run=False).trainer.max_epochs
        assert epochs == {"sft": more, "sft_once": 1, "glider_sft": more, "glider_sft_once": 1}


@pytest.mark.parametrize("row", TRAINED)
def test_a_row_plays_its_last_run_and_explores_at_a_temperature(talk: Any, place: Any, row: str) -> None:
    trained = TRAINED[row]
    last = "eto/iteration_3" if row == "eto" else trained[-1][0] if trained else None
    seen, unseen = map(options, steps_of(talk, place, row, "seen", "unseen")[-2:])
    for keys in (seen, unseen):
        assert keys.get("ckpt_path") == (str(place.home / WEIGHTS.format(last)) if last else None)
        assert "model.acting.sampling.temperature" not in keys  # the recipe's: greedy
    assert (seen["data.predict_split"], unseen["data.predict_split"]) == (
        place.game.seen["predict_split"],
        place.game.unseen["predict_split"],
    )
    for step in steps_of(talk, place, row, "explore"):
        keys = options(step)
        explorer = next(medium for _, _, medium in trained if medium)
        assert keys["model.acting.sampling.temperature"] == "0.7"
        assert keys["ckpt_path"] == str(place.home / WEIGHTS.format(explorer))
        assert keys["data.predict_half"] == place.game.explore["predict_half"]
        assert "small-explore.yaml" in " ".join(step.command)  # more games than the comparison plays
