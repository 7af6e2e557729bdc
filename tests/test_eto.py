"""ETO by one command: iterations from policy to policy, resumed after a stop, flat and hierarchical."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command import main

import lit_rft.configs
from lit_rft import cli
from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.error_messages import UsageError
from lit_rft.eto import digest_of, iterate, run_eto, run_process
from lit_rft.testing.fork import best_episodes, fork_episode

COUNTS = {"pairs": 3, "too_long": 0, "won": 0, "tied": 1, "lost": 3, "unmatched": 0, "surplus": 0}


class FakeRun:
    """Keeps the commands and writes what they would; raises at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.commands: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, arguments: list[str]) -> None:
        self.commands.append(arguments)
        folder = Path(arguments[arguments.index("--trainer.default_root_dir") + 1])
        if arguments[0] == "fit":
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
        if len(self.commands) - 1 == self.fails_at:
            raise KeyboardInterrupt
        if arguments[0] == "fit":
            (folder / "pairs.json").write_text(json.dumps(COUNTS))


def start_of(arguments: list[str]) -> str | None:
    key = "--model.init_args.policy.start_from"
    return arguments[arguments.index(key) + 1] if key in arguments else None


def test_each_iteration_starts_from_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun()
    reports = iterate(tmp_path, ["--x", "a"], iterations=3, explore=["--x", "e"], later=["--x", "l"], run=run)
    assert [command[0] for command in run.commands] == ["predict", "fit"] * 3
    first, second = (str(tmp_path / f"iteration_{n}" / "checkpoints" / "last.ckpt") for n in (1, 2))
    assert [start_of(command) for command in run.commands] == [None, None, first, first, second, second]
    assert [("e" in command, "l" in command) for command in run.commands] == [
        (True, False), (False, False), (True, False), (False, True), (True, False), (False, True)
    ]  # fmt: skip
    for number in (1, 2, 3):
        explored = json.dumps([str(tmp_path / f"iteration_{number}" / "explore" / "episodes")])
        assert explored in run.commands[2 * number - 1]
    assert reports == [COUNTS] * 3
    assert "iteration 3: 3 pairs, 0 too_long, 0 won, 1 tied, 3 lost" in capsys.readouterr().out


@pytest.mark.parametrize("fails_at", range(4))
def test_a_stopped_run_goes_on_where_it_was(fails_at: int, tmp_path: Path) -> None:
    """A finished command is not repeated; an interrupted one is: `fit` from its checkpoint."""
    stopped, resumed = FakeRun(fails_at), FakeRun()
    with pytest.raises(KeyboardInterrupt):
        iterate(tmp_path, ["--x", "a"], iterations=2, run=stopped)
    reports = iterate(tmp_path, ["--x", "a"], iterations=2, run=resumed)
    assert reports == [COUNTS] * 2
    whole = ["predict", "fit"] * 2
    assert [command[0] for command in resumed.commands] == whole[fails_at:]
    continues = "--ckpt_path" in resumed.commands[0]
    assert continues is (whole[fails_at] == "fit")
    assert not any("--ckpt_path" in command for command in resumed.commands[1:])
    again = FakeRun()
    assert iterate(tmp_path, ["--x", "a"], iterations=2, run=again) == reports and not again.commands


def test_a_folder_of_other_arguments_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("x: 1")
    iterate(tmp_path / "run", ["-c", str(config)], iterations=1, run=FakeRun())
    with pytest.raises(UsageError, match="holds a run of ETO with other arguments"):
        iterate(tmp_path / "run", ["-c", str(config), "--x", "2"], iterations=1, run=FakeRun())
    config.write_text("x: 2")
    with pytest.raises(UsageError, match="other arguments"):
        iterate(tmp_path / "run", ["-c", str(config)], iterations=1, run=FakeRun())
    assert digest_of(["a"], ["b"]) != digest_of(["a", "b"], [])


@pytest.mark.parametrize("form", [["-c", "NAME"], ["--config", "NAME"], ["-c=NAME"], ["--config=NAME"]], ids="".join)
@pytest.mark.parametrize("changed", ["recipe.yaml", "family.yaml", "base.yaml", "later.yaml"])
def test_a_folder_of_changed_shipped_configs_is_refused(
    changed: str, form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe given by its name, what it builds on, what all commands read, and an overlay of later iterations."""
    shipped = tmp_path / "configs"
    (shipped / "eto").mkdir(parents=True)
    contents = {"eto/recipe.yaml": "base: eto/family.yaml", "eto/family.yaml": "x: 1", "base.yaml": "y: 1",
                "later.yaml": "z: 1", "unused.yaml": "a: 1"}  # fmt: skip
    for name, content in contents.items():
        (shipped / name).write_text(content)
    monkeypatch.setattr(lit_rft.configs, "__path__", [str(shipped)])
    recipe = [part.replace("NAME", "eto/recipe.yaml") for part in form]
    later = [part.replace("NAME", "later.yaml") for part in form]
    iterate(tmp_path / "run", recipe, later=later, iterations=1, run=FakeRun())
    (shipped / "unused.yaml").write_text("a: 2")
    iterate(tmp_path / "run", recipe, later=later, iterations=1, run=FakeRun())
    file = next(shipped.rglob(changed))
    file.write_text(file.read_text() + "\nmore: 2")
    with pytest.raises(UsageError, match="other arguments, or configs that have changed"):
        iterate(tmp_path / "run", recipe, later=later, iterations=1, run=FakeRun())


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--iterations must be >= 1, got 0"):
        run_eto(["--iterations", "0", "-c", "x"])
    with pytest.raises(SystemExit):
        iterate(tmp_path, ["-c", "missing.yaml"], iterations=1, run=FakeRun())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"lit-rft: error: lit-rft eto: argument --iterations: invalid int"):
        main(["eto", "--iterations", "many"])
    with pytest.raises(UsageError, match=r"pairs.json: expected EpisodePairDataModule"):
        iterate(tmp_path, [], iterations=1, run=lambda arguments: None)


def test_a_recipe_without_pairs_is_refused_before_it_explores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected EpisodePairDataModule, .*, got MathPromptDataModule: see"):
        main(["eto", "-c", "luffy/arithmetic.yaml", "--folder", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_a_failed_command_ends_with_its_exit_code() -> None:
    """It has printed its own error: no traceback follows."""
    with pytest.raises(SystemExit) as stopped:
        run_process(["train"])
    assert stopped.value.code == 2


def test_a_stopped_command_saves_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is passed on, once, and the command is waited for."""
    saves = (
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n    time.sleep(0.5); open('saved', 'a').write('x'); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\npathlib.Path('ready').touch()\ntime.sleep(60)"
    )
    monkeypatch.chdir(tmp_path)
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", saves], **options))

    def interrupt() -> None:
        while not Path("ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in commands that a shell runs with &
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        run_process([])
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130 and Path("saved").read_text() == "x"


def test_ignored_signals_do_not_reach_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup, whose runs go on when the terminal closes."""
    asks = "import signal, sys; sys.exit(3 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 4)"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", asks], **options))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            run_process([])
        assert stopped.value.code == 3 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_another_thread() -> None:
    codes = []

    def run() -> None:
        with pytest.raises(SystemExit) as stopped:
            run_process(["train"])
        codes.append(stopped.value.code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [2]


def settings(model: Path, folder: Path, hierarchical: bool) -> list[str]:
    """The fork's suite, a tiny model, and experts of its training episodes."""
    experts = best_episodes(6)
    if hierarchical:
        experts = [with_subgoals(episode) for episode in experts]
    write_episodes(folder / "experts.jsonl", experts)
    agent: Any = {"class_path": "lit_rft.agents.FlatAgent", "init_args": {
        "max_length": 600, "admissible": {"show": False, "choose": True}}}  # fmt: skip
    if hierarchical:
        agent = {"class_path": "lit_rft.agents.HierarchicalAgent", "init_args": {"max_length": 900}}
    config = {
        "model": {
            "class_path": "lit_rft.stages.TrajectoryDPO",
            "init_args": {
                "policy": {"model": str(model), "lora": {"rank": 4, "dropout": 0.0, "target_modules": "all-linear"}},
                "optimizer": {"learning_rate": 5e-3, "warmup_steps": 0},
                "acting": {  # one at a time: rows of a batch differ in the last bit by which others are in it
                    "sampling": {"max_new_tokens": 12, "temperature": 1.0}, "parallel_episodes": 1,
                    "pool": {"threads": True},
                },
                "agent": agent,
            },
        },
        "data": {
            "class_path": "lit_rft.datamodules.EpisodePairDataModule",
            "init_args": {
                "train_files": [str(folder / "experts.jsonl")], "data_dir": str(folder), "explored_files": [],
                "suite": {"class_path": "lit_rft.envs.GymSuite", "init_args": {
                    "env": "lit_rft.testing.fork.ForkEnv", "step_limit": 2, "seeds": {"train": 6, "dev": 6}}},
                "batch_size": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu", "precision": "32-true", "max_epochs": 4, "limit_val_batches": 0,
            "callbacks+": [{"class_path": "lit_rft.callbacks.EpisodeFiles"}],
            "logger": "lightning.pytorch.loggers.CSVLogger",
        },
    }  # fmt: skip
    (folder / "eto.yaml").write_text(json.dumps(config))
    return ["-c", str(folder / "eto.yaml")]


def with_subgoals(episode: Any) -> Any:
    from lit_rft.episodes import Subgoal

    episode.subgoals = [Subgoal(0, 1, "go right", True, "user"), Subgoal(1, 2, "take a door", True, "user")]
    episode.extra = {}
    return episode


@pytest.mark.slow
@pytest.mark.parametrize("hierarchical", [False, True])
def test_two_iterations_by_the_real_commands(hierarchical: bool, tiny_model_folder: Path, tmp_path: Path) -> None:
    """A run that is killed in the second iteration's training ends with the weights of one that is not."""
    arguments = settings(tiny_model_folder, tmp_path, hierarchical)
    reports = iterate(tmp_path / "whole", arguments, iterations=2, run=cli.main)
    for number, report in enumerate(reports, start=1):
        explored = list(read_episodes(tmp_path / "whole" / f"iteration_{number}" / "explore" / "episodes"))
        assert len(explored) == 6 == report["won"] + report["tied"] + report["lost"]
        assert report["unmatched"] == 0 and report["pairs"] == report["lost"] > 0
    assert hierarchical or reports[1]["lost"] <= reports[0]["lost"]
    stopped = tmp_path / "stopped"
    calls: list[str] = []

    def stops(command: list[str]) -> None:
        calls.append(command[0])
        if len(calls) < 4:
            return cli.main(command)
        cli.main([*command, "--trainer.max_steps", "1"])  # some steps of the last training, then the end
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        iterate(stopped, arguments, iterations=2, run=stops)
    assert iterate(stopped, arguments, iterations=2, run=cli.main) == reports
    weights = [
        torch.load(folder / "iteration_2" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "whole", stopped)
    ]
    assert any("lora_B" in name and weight.any() for name, weight in weights[0].items())
    assert [name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])] == []


def test_the_fork_knows_its_episodes() -> None:
    assert fork_episode(0, ["r", "u"]).outcome.score == 1.0 and fork_episode(0, ["l"]).outcome.score == 0.4
