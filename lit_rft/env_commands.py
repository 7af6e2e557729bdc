"""Commands for environments, without training: `lit-rft check-env` and `lit-rft collect`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lit_rft.config_files import add_import_folders
from lit_rft.envs import GymSuite, PolicyExpert, TaskSuite, check_env
from lit_rft.envs.base import HasExpert
from lit_rft.envs.checking.check import find_suite
from lit_rft.envs.checking.report import print_report
from lit_rft.envs.collect import collect_expert_episodes, collect_perturbed_episodes
from lit_rft.envs.gym import import_env
from lit_rft.envs.perturbation import Perturbation
from lit_rft.episodes import Episode, read_demonstrations, write_episodes
from lit_rft.error_messages import OneLineParser, UsageError

_SEEDS = {"train": 1000, "dev": 50, "test": 50}  # minimum number of seeds of each split, to choose episodes from
_STEP_LIMIT = 50  # of the episodes of an environment
_OF_EPISODES = ("env", "expert", "args", "split", "half", "episodes", "step_limit", "random", "seed", "workers")


def run_check_env(arguments: Sequence[str]) -> None:
    """Check an environment and print the report; exit code 1 if it has errors.

    Raises:
        UsageError: wrong arguments, or an environment that cannot be imported.
    """
    given = vars(_check_parser().parse_args(arguments))
    add_import_folders(iter(()))  # the working directory
    try:
        expert = None if given["expert"] is None else import_env(given.pop("expert"), "--expert")
        report = check_env(given.pop("env"), given.pop("args"), **{**given, "expert": expert})
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_report(report, Console())
    if report.errors:
        sys.exit(1)


def run_collect(arguments: Sequence[str]) -> None:
    """Write episodes to learn from: an expert's, with random actions among them if asked for, or pairs of a file.

    Raises:
        UsageError: wrong arguments, or an environment or expert that cannot be imported.
    """
    given = _collect_parser().parse_args(arguments)
    add_import_folders(iter(()))  # the working directory
    if given.pairs is not None:
        _refuse(given, _OF_EPISODES, "are for episodes that are played, not for --pairs")
        episodes = read_demonstrations(given.pairs, given.name or "demonstrations")
        write_episodes(given.out, episodes)
    else:
        if given.env is None:
            raise UsageError("lit-rft collect: expected an environment or --pairs FILE; see lit-rft collect --help")
        episodes = _collect(given)
    score = sum(episode.outcome.score for episode in episodes) / len(episodes)
    print(f"{given.out}: {len(episodes)} episodes, mean score {score:.3f}")


def _refuse(given: argparse.Namespace, options: Sequence[str], reason: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: one of them is given.
    """
    parser = _collect_parser()
    wrong = [
        "an environment" if option == "env" else f"--{option}"
        for option in options
        if getattr(given, option) != parser.get_default(option)
    ]
    if wrong:
        raise UsageError(f"lit-rft collect: {', '.join(wrong)} {reason}")


def _collect(given: argparse.Namespace) -> list[Episode]:
    try:
        suite = _suite(given)
        specs = suite.episodes(given.split, limit=given.episodes, half=given.half, seed=given.seed)
        expert = _expert(given, suite)
        perturbation = Perturbation(given.random, seed=given.seed) if given.random else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if perturbation is None:
        return collect_expert_episodes(suite, specs, given.out, expert=expert, num_workers=given.workers)
    return collect_perturbed_episodes(suite, specs, given.out, perturbation, expert=expert, num_workers=given.workers)


def _suite(given: argparse.Namespace) -> TaskSuite:
    """Return the suite that is given, or one of the environment that is given."""
    suite = find_suite(given.env, given.args)
    if suite is not None:
        _refuse(
            given, ("name", "step_limit"), f"would not change {given.env}, a suite: set what it takes by --args, "
            "such as --args '{\"step_limit\": 20}'"
        )  # fmt: skip
        return suite
    seeds = {split: max(given.episodes, number) for split, number in _SEEDS.items()}
    step_limit = _STEP_LIMIT if given.step_limit is None else given.step_limit
    return GymSuite(given.env, given.args, given.name or "", step_limit, seeds)


def _expert(given: argparse.Namespace, suite: TaskSuite) -> PolicyExpert | None:
    """Return the expert that is given, with the subgoals of the suite's own expert; None for that one.

    Raises:
        UsageError: there is neither.
    """
    replaced = suite.expert if isinstance(suite, HasExpert) else None
    if given.expert is None:
        if replaced is None:
            raise UsageError(
                f"lit-rft collect: {suite.name!r} has no expert: give a function of observation and info that returns "
                "the next action, such as --expert my_envs.solve"
            )
        return None
    policy = import_env(given.expert, "--expert")
    if replaced is None:
        return PolicyExpert(policy)
    return PolicyExpert(policy, irreversible=replaced.irreversible, annotator=replaced.annotate)


def _collect_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lit-rft collect", description="Write episodes to learn from, by an expert or from pairs.")
    parser.add_argument("env", nargs="?", help="import path of an environment or of a suite with an expert")
    parser.add_argument("--out", required=True, help="file to write: .jsonl or .parquet")
    parser.add_argument("--expert", help="function of observation and info that chooses the actions (a suite's expert)")
    parser.add_argument("--pairs", metavar="FILE", help="JSON lines with observation and action, instead of an expert")
    parser.add_argument("--args", type=_json_object, default={}, metavar="JSON", help="arguments of the environment")
    parser.add_argument("--name", help="of an environment's tasks, or of those of --pairs (the name of its class)")
    parser.add_argument("--split", default="train", help="which episodes (train)")
    parser.add_argument("--half", choices=("first", "second"), help="one half of each task's episodes only (both)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each task (100)")
    parser.add_argument("--step_limit", type=int, help=f"steps per episode of an environment ({_STEP_LIMIT})")
    parser.add_argument("--random", type=_probability, default=0.0, help="probability of random admissible actions (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of episodes and of the random actions (0)")
    parser.add_argument("--workers", type=int, default=2, help="environments at once (2)")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lit-rft check-env", description="Play episodes of an environment and report on it.")
    parser.add_argument("env", help="import path of an environment or a suite: my_envs.Guess")
    parser.add_argument("--args", type=_json_object, default={}, metavar="JSON", help="its keyword arguments")
    parser.add_argument("--options", type=_json_object, default={}, metavar="JSON", help="options of reset")
    parser.add_argument("--episodes", type=int, default=5, help="episodes to play (5)")
    parser.add_argument("--step_limit", type=int, default=50, help="steps of episodes without a limit (50)")
    parser.add_argument("--split", default="train", help="of a suite's episodes (train)")
    parser.add_argument("--expert", help="function of observation and info that chooses the actions; else random ones")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode and of the random actions (0)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one answer (30)")
    return parser


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
