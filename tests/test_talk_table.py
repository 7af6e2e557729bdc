"""The comparison of all methods: its commands, in this process; its figures; resumption."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import load
from rich.console import Console

from lit_rft import cli
from lit_rft.cli import resolve_configs
from lit_rft.command_line import build

MODELS = {"tiny": "model", "small": "135m-instruct", "paper": "8B-Instruct"}


@pytest.fixture(scope="module")
def talk() -> Any:
    return load("talk_table")


class InProcess:
    """Runs the commands of steps in this process; can be interrupted after some of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.names: list[str] = []
        self.stop_after = stop_after

    def __call__(self, step: Any, runs: Path, console: Any) -> None:
        if step.result.exists():
            return
        if self.stop_after is not None and len(self.names) == self.stop_after:
            raise KeyboardInterrupt
        self.names.append(step.name)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main(step.command[3:])
        if step.result.suffix == ".done":
            step.result.touch()
        log = runs / "logs" / step.name.replace(": ", "-")
        log.parent.mkdir(exist_ok=True)
        log.with_suffix(".log").touch()
        log.with_suffix(".json").write_text(json.dumps({"step": step.name, "seconds": 60.0, "started": None}))


@pytest.mark.slow  # half a minute
def test_a_comparison_resumes_and_ends_with_a_table(
    talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", "tiny", "--environments", "alfworld", "--rows", "untrained", "sft", "awac"]
    arguments += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    first = InProcess(stop_after=4)
    monkeypatch.setattr(talk, "run", first)
    with pytest.raises(KeyboardInterrupt):
        talk.main(arguments)
    second = InProcess()
    monkeypatch.setattr(talk, "run", second)
    talk.main(arguments)
    assert not set(first.names) & set(second.names)  # nothing is done twice
    names = [name.split(": ", 1)[1] for name in first.names + second.names]
    assert names == [
        *("untrained: seen", "untrained: unseen", "sft: fit", "sft: seen", "sft: unseen"),
        *("sft: explore", "awac: fit", "awac: seen", "awac: unseen"),
    ]
    results = json.loads((tmp_path / "talk_tiny.json").read_text())
    check_costs({row: seeds["0"] for row, seeds in results["costs"]["alfworld"].items()})
    played = results["episodes"]["alfworld"]
    assert set(played) == {"untrained", "sft", "awac"}
    for row in played.values():
        seen, unseen = ({episode["id"] for episode in row["0"][kind]} for kind in ("seen", "unseen"))
        assert len(seen) == len(unseen) == 2 and not seen & unseen
    assert "AWAC" in capsys.readouterr().out


def check_costs(costs: dict[str, Any]) -> None:
    """A row's costs are those of all that it needs, what it shares with others included."""
    seconds = {row: (parts["training"]["seconds"], parts["play"]["seconds"]) for row, parts in costs.items()}
    assert seconds == {"untrained": (0, 120), "sft": (60, 120), "awac": (180, 120)}
    assert not any(costs["untrained"]["training"].values())
    sft, awac = costs["sft"]["training"], costs["awac"]["training"]
    assert sft["tokens_trained"] > 0 == sft["env_steps"] == sft["tokens_read"]
    assert awac["tokens_trained"] > sft["tokens_trained"]
    assert awac["env_steps"] > 0  # of exploration
    for part in (awac, *(parts["play"] for parts in costs.values())):
        assert part["tokens_read"] > part["tokens_sampled"] >= part["env_steps"] > 0
    assert not any(parts["play"]["tokens_trained"] for parts in costs.values())


def test_first_last_and_best_trials_are_reported_apart(
    talk: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_rft.episodes.io import EpisodeWriter
    from lit_rft.testing import make_episode

    place = talk.Place(talk.GAMES["alfworld"], "tiny", 0, tmp_path, tmp_path / "general.jsonl")
    file = place.played("reflexion", "seen") / "episodes" / "predicted.jsonl"
    file.parent.mkdir(parents=True)
    writer = EpisodeWriter(file)
    played = (("a/trial10", 0.25, 3), ("a/trial9", 0.5, 5), ("a/trial8", 0.0, 1), ("b/trial1", 1.0, 2))
    for name, score, steps in played:
        episode = make_episode(num_steps=steps, subgoals=False)
        episode.id, episode.outcome.score, episode.outcome.success = name, score, score == 1.0
        episode.steps[-1].score = score
        writer.append(episode)
    writer.close()
    assert talk.outcomes(place, "reflexion") == {}  # the command has not ended
    file.with_suffix(".done").touch()
    found = talk.outcomes(place, "reflexion")
    scores = {problem["id"]: [trial["score"] for trial in problem["trials"]] for problem in found["seen"]}
    assert scores == {"a": [0.0, 0.5, 0.25], "b": [1.0]} and list(found) == ["seen"]
    results = {"episodes": {"alfworld": {"reflexion": {"0": found}}}}
    talk.report(results, Console(width=220))
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "Reflexion" in line]
    means = {line[1].strip(): line[2].split()[0] for line in lines}
    assert means == {"Reflexion, first trial": "50", "Reflexion, last trial": "62", "Reflexion, best trial": "75"}
    (step,) = [step for step in talk.steps(place, "reflexion") if step.name.endswith(" seen")]
    seconds = {step.name: 7.0}
    play = talk.costs("reflexion", [step], seconds)["play"]
    assert (play["env_steps"], play["seconds"]) == (11, 7.0)  # of all trials
    assert not any(talk.costs("react", [step], seconds)["play"].values())  # another row's


def test_rows_are_compared_in_the_same_games_of_each_seed(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def played(solved: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
        """Ten games of a short and of a longer task, of which the first are solved."""
        tasks = {"look_at_obj_in_light": "seen", "pick_two_obj_and_place": "unseen"}
        return {
            kind: [
                {"id": f"s/{task}/{i}/0", "trials": [{"score": 0.0, "success": i < solved[kind]}]} for i in range(10)
            ]
            for task, kind in tasks.items()
        }

    rows = {
        "sft": {"0": played({"seen": 5, "unseen": 2}), "1": played({"seen": 5, "unseen": 2}), "2": {"seen": []}},
        "glider_sft": {"0": played({"seen": 4, "unseen": 8}), "1": played({"seen": 6, "unseen": 6})},
    }
    talk.report({"episodes": {"alfworld": rows}}, Console(width=220))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["GLIDER, SFT only", "12 of 20, 12 of 20"] in lines
    cells = {line[0]: line[1:] for line in lines if line}  # of the last table that has a row of this name
    assert cells["GLIDER, SFT only"] == ["50", "70", "40"]  # 10 of 20, 14 of 20; games
    assert cells["SFT (behaviour cloning)"] == ["50", "20", "40"]
    seeds, *differences = cells["GLIDER, SFT only - SFT (behaviour cloning)"]
    assert seeds == "2"
    # by seed 25 and 25 points; 60 and 40; -10 and 10; half a Student's interval of two seeds is 12.7 standard errors
    assert [cell.split(" (")[0] for cell in differences] == ["25.0 ± 0.0", "50.0 ± 127.1", "0.0 ± 127.1"]
    low, high = (float(end) for end in differences[1].split(" (")[1].rstrip(")").split(" to "))
    assert 10 < low < 50 < high < 80  # over the 20 games


def test_costs_are_those_of_one_seed(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The table compares rows that have been run with more seeds and with fewer."""
    report = importlib.import_module("talk_report")
    game = [{"id": "s/look/0/0", "trials": [{"score": 1.0, "success": True}]}]
    seeds = {"0": (100, 60.0), "1": (300, 180.0)}
    parts = {
        seed: {part: dict.fromkeys(report.COSTS, steps) | {"seconds": time} for part in ("training", "play")}
        for seed, (steps, time) in seeds.items()
    }
    results = {
        "episodes": {"alfworld": {"sft": {seed: {"seen": game} for seed in seeds}}},
        "costs": {"alfworld": {"sft": parts}},
    }
    talk.report(results, Console(width=220))
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if "SFT (behaviour cloning)" in line and "+" in line
    ]
    assert [cell.strip() for cell in line.split("|")[7:-1]] == ["200 + 200"] * 4 + ["2 + 2"]


def test_an_interval_holds_the_mean_and_shrinks_with_episodes(talk: Any) -> None:
    interval = importlib.import_module("experiment").bootstrap
    few, many = interval([0.0, 100.0] * 5), interval([0.0, 100.0] * 50)
    assert few[0] == many[0] == 50.0
    assert few[1] < many[1] < 50.0 < many[2] < few[2]
    assert many[1] == pytest.approx(50 - 1.96 * 5, abs=1.5) and many[2] == pytest.approx(50 + 1.96 * 5, abs=1.5)
    assert interval([100.0] * 4) == (100.0, 100.0, 100.0)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (2.46, "2.5"), (12_345, "12.3k"), (999_960, "1000.0k"), (4.56e6, "4.6M")],
)
def test_numbers_of_costs_are_short(number: float, text: str, talk: Any) -> None:
    assert importlib.import_module("talk_report")._short(number) == text


def test_games_of_the_comparison_are_never_trained_on_or_explored(talk: Any) -> None:
    """By the suites' own choices; ScienceWorld's are of another split."""
    from lit_rft.envs.alfworld import small_households

    suite, game = small_households(), talk.GAMES["alfworld"]

    def ids(keys: dict[str, Any], split: str, half: str | None, number: int) -> set[str]:
        specs = suite.episodes(split, limit=number, half=half, seed=keys.get("seed", 0))
        return {spec.id for spec in specs}

    trained = ids({}, "train", game.train["train_half"], 200)
    explored = ids(game.explore, game.explore["predict_split"], game.explore["predict_half"], 200)
    explored |= ids({}, "train", game.online["collect_half"], 2000)  # whatever on-policy stages may play
    assert game.examples[0] == "--half"
    explored |= ids({}, "train", game.examples[1], 3)
    played = ids({}, game.seen["predict_split"], game.seen["predict_half"], 200)
    played |= ids({}, game.unseen["predict_split"], None, 50)
    assert played and not played & (trained | explored)
    science = talk.GAMES["scienceworld"]
    assert science.seen["predict_split"] == science.unseen["predict_split"] == "dev"


@pytest.mark.parametrize(  # every recipe of both environments, and every overlay of a scale
    ("scale", "environment"),
    [
        ("tiny", "alfworld"),
        *(
            pytest.param(scale, game, marks=pytest.mark.slow)  # 10 s each
            for scale, game in (("small", "scienceworld"), ("paper", "scienceworld"), ("paper", "alfworld"))
        ),
    ],
)
def test_every_command_of_every_row_is_valid(
    talk: Any, scale: str, environment: str, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.main(["--scale", scale, "--environments", environment, "--dry-run"])
    commands = [shlex.split(command)[3:] for command in capsys.readouterr().out.splitlines()]
    assert len(commands) == len({tuple(command) for command in commands}) > 2 * len(talk.ROWS)
    context_lengths = set()
    for verb, *arguments in {recipe(command): command for command in commands if "-c" in command}.values():
        for option in ("--ckpt_path", "--folder", "--later"):
            if option in arguments:
                del arguments[arguments.index(option) : arguments.index(option) + 2]
        cli = build(resolve_configs([*arguments, "--trainer.devices", "1"]), run=False)
        assert cli.model.policy_settings.model.endswith(MODELS[scale]), verb
        if not any(name in arguments[1] for name in ("react", "reflexion", "swift_sage")):  # with examples
            context_lengths.add(cli.model.agent.max_length)
        if scale == "paper":
            check_papers_settings(cli.model, tiny_model_folder)
    assert len(context_lengths) == 1  # of all rows that train


def check_papers_settings(stage: Any, model: Path) -> None:
    """A node of 8 GPUs would run it: here with a small model."""
    assert stage.agent.max_length == 8192 and stage.optimizer_settings.weight_decay == 0.01
    assert stage.policy_settings.gradient_checkpointing
    prompted = type(stage.agent).__name__ in ("ReActAgent", "ReflexionAgent", "SwiftSageAgent")  # they write more
    assert stage.acting.sampling.max_new_tokens == (256 if prompted else 64)
    stage.policy_settings = dataclasses.replace(stage.policy_settings, model=str(model), start_from=None)
    stage.configure_model()
    adapters = [name for name, weight in stage.named_parameters() if "lora_" in name and weight.requires_grad]
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapters}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj"}


def recipe(command: list[str]) -> tuple[str, ...]:
    """The configs of a command: what is built depends on little else."""
    return tuple(value for key, value in itertools.pairwise(command) if key == "-c")
