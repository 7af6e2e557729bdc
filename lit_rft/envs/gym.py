"""Tasks of any gymnasium environment with text observations and text actions."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from lit_rft._records import show_value
from lit_rft._seeds import derive_seed
from lit_rft.envs.base import (
    CHOOSES_EPISODES,
    EpisodeSpec,
    Expert,
    Half,
    PolicyExpert,
    ScriptedExpert,
    check_split,
    choose,
    choose_tasks,
)
from lit_rft.rows import find_files, read_rows

_SEEDS_PER_SPLIT = 1_000_000
_IMPORT_PATH = re.compile(r"[\w-]+(\.[\w-]+)+")  # files may have names with hyphens


@dataclass(frozen=True)
class GymSuite:
    """Tasks of a `gymnasium.Env`; a `TaskSuite`. An episode is a seed, or a row of a file.

    Attributes:
        env: import path (``my_envs.Guess``) of the environment's class, or of a function that makes it; or either
            object, if importable by its name.
        env_args: keyword arguments for it.
        name: for reports and files; empty for the name of `env`.
        step_limit: actions per episode, after which it is truncated; 0 for the environment's own limit.
        seeds: split -> number of its episodes, each of them a seed. The seeds of different splits differ.
        rows: split -> file, in place of seeds; empty for the seeds of that split. If any split has rows, others without
            an entry here are refused: they would have other tasks. Files are JSON lines, JSON, CSV or Parquet, a
            folder, a pattern, or a data set of the Hugging Face hub (``hf:NAME:SPLIT``). Each row is an object, which
            becomes ``reset(options=...)``. Its key ``task``, if there is one, names the task; its key ``seed`` the
            seed, which otherwise follows from the row's content.
        script: gives the actions that solve an episode, for expert episodes; null if there are none.
        expert_policy: in place of it: chooses each action of an expert episode from the observation and the info.

    Raises:
        ValueError: `env` cannot be imported, or a number is out of range.
    """

    env: str | Callable[..., Any]
    env_args: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    step_limit: int = 50
    seeds: Mapping[str, int] = field(
        default_factory=lambda: {"train": 1000, "dev": 50, "test": 50}, metadata=CHOOSES_EPISODES
    )
    rows: Mapping[str, str] = field(default_factory=dict, metadata=CHOOSES_EPISODES)
    script: Callable[[EpisodeSpec], list[str]] | None = None
    expert_policy: Callable[[str, Mapping[str, Any]], str | None] | None = None

    def __post_init__(self) -> None:
        make = import_env(self.env)  # check it before any worker process starts
        if not self.name:
            object.__setattr__(self, "name", getattr(make, "__name__", type(make).__name__))
        if self.step_limit < 0:
            raise ValueError(f"step_limit must be >= 0, got {self.step_limit}")
        if self.script is not None and self.expert_policy is not None:
            raise ValueError("expected script or expert_policy, got both: leave one out")
        for split, number in self.seeds.items():
            if not 0 < number <= _SEEDS_PER_SPLIT:
                raise ValueError(f"seeds.{split} must be in 1..{_SEEDS_PER_SPLIT}, got {number}")
        by_number: dict[int, str] = {}
        for split in self.seeds:
            if (other := by_number.setdefault(_split_number(split), split)) != split:
                raise ValueError(f"the splits {other!r} and {split!r} would have the same seeds: rename one of them")

    @property
    def expert(self) -> Expert | None:
        """The expert that follows the `expert_policy` or plays the `script`, if there is one."""
        if self.expert_policy is not None:
            return PolicyExpert(self.expert_policy)
        return None if self.script is None else ScriptedExpert(self.script)

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment.

        Raises:
            TypeError: its class takes other arguments than `env_args`.
        """
        make = import_env(self.env)
        _check_arguments(make, self.env_args)
        env: gym.Env[str, str] = make(**self.env_args)
        return env

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the episodes of a split, task by task; see `TaskSuite.episodes`.

        Raises:
            ValueError: unknown split or task, a limit below 1, or a row that is no object of JSON values.
            OSError: the split's file cannot be read.
        """
        by_task: dict[str, list[EpisodeSpec]] = {}
        for spec in self._all(split):
            by_task.setdefault(spec.task, []).append(spec)
        owner = f"the split {split!r} of {self.name!r}"
        chosen = choose_tasks(by_task, tasks, owner)
        return [spec for task in chosen for spec in choose(by_task[task], limit, half, f"{seed}/{task}/{split}")]

    def _all(self, split: str) -> list[EpisodeSpec]:
        if self.rows.get(split):
            rows = enumerate(_read_rows(self.rows[split]))
            return [self._of_row(row, split, number, place) for number, (place, row) in rows]
        if self.rows and split not in self.rows:
            raise ValueError(
                f"{self.name!r} has rows for {', '.join(self.rows)}, and none for {split!r}: set rows.{split} to a "
                "file ('' for seeds), or choose another split (data.init_args.eval_split, predict_split), or none "
                "(trainer.limit_val_batches: 0)"
            )
        check_split(split, self.seeds, repr(self.name))
        first = _split_number(split) * _SEEDS_PER_SPLIT
        return [self._of_seed(seed, split) for seed in range(first, first + self.seeds[split])]

    def _of_seed(self, seed: int, split: str) -> EpisodeSpec:
        return EpisodeSpec(
            f"{self.name}/{split}/{seed}", self.name, split, seed, step_limit=self.step_limit, meta={"seed": seed}
        )

    def _of_row(self, row: dict[str, Any], split: str, number: int, place: str) -> EpisodeSpec:
        task = str(row.get("task") or self.name)
        name = f"{self.name}/{split}/{task}/{number}"
        seed = _row_seed(row, place)
        options = {**row, "seed": seed} if "seed" in row else row  # servers merge them with the seed
        return EpisodeSpec(name, task, split, seed, options, self.step_limit, {"options": row})


def _split_number(split: str) -> int:
    """Return a number for a split that depends on its name alone: other splits may come and go."""
    usual = ("train", "dev", "test")
    return usual.index(split) if split in usual else 3 + zlib.crc32(split.encode()) % 1000


def import_env(env: str | Callable[..., Any], key: str = "env") -> Callable[..., Any]:
    """Import the class or function of an import path; return anything but text unchanged.

    Args:
        env: the path, or the object.
        key: name of the setting, for the error.

    Raises:
        ValueError: the text is no import path, there is no such module or attribute, or it is not callable.
    """
    if isinstance(env, str):
        module, _, name = env.rpartition(".")
        if not _IMPORT_PATH.fullmatch(env) or name == "py":
            raise ValueError(f"{key} must be an import path such as my_envs.Guess, got {env!r}")
        try:
            env = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise ValueError(
                f"{key} {module}.{name}: {error}; add its folder to PYTHONPATH, or put it beside the configuration file"
            ) from error
        except AttributeError as error:
            raise ValueError(f"{key} {module}.{name}: {error}") from error
    if not callable(env):
        raise ValueError(f"{key} must be a class or a function, got {show_value(env)}")
    return env


def _check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check arguments before the call, whose own error would have no line of the environment's code.

    Raises:
        TypeError: they are not those that it takes.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        name = getattr(make, "__name__", type(make).__name__)
        raise TypeError(f"{name}{signature} does not take env_args {dict(arguments)}: {error}") from None


def _read_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that can be options of `reset`, each with its place."""
    empty = True
    for file in find_files(source):
        for number, row in read_rows(file):
            empty, place = False, f"{file}:{number}"
            if not isinstance(row, dict):
                raise ValueError(f"{place}: expected an object, got {type(row).__name__}")
            try:
                json.dumps(row, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{place}: expected values that JSON can hold, which episode records keep: {error}"
                ) from error
            yield place, row
    if empty:
        raise ValueError(f"{source}: expected rows, one object per episode, got none")


def _row_seed(row: Mapping[str, Any], place: str) -> int:
    """Return the row's seed, or else one derived from its content: the same row is the same problem again."""
    seed = row.get("seed")
    if seed is None or (isinstance(seed, str) and not seed.strip()):
        content = {name: value for name, value in row.items() if name != "seed"}
        return derive_seed(0, json.dumps(content, sort_keys=True)) % 2**31
    if isinstance(seed, str) and seed.strip().isdecimal():  # cells of CSV are texts
        return int(seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"{place}: seed must be a whole number >= 0, got {show_value(seed)}")
    return seed
