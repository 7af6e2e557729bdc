"""`check_env`: plays episodes of an environment in a worker process and reports on it."""

from __future__ import annotations

import functools
import random
import typing
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec, ExpertPolicy, TaskSuite, choose
from lit_rft.envs.checking.examiner import Examiner
from lit_rft.envs.checking.report import EnvReport
from lit_rft.envs.checking.run import CheckRun, FailedError
from lit_rft.envs.gym import import_env
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings


def check_env(
    env: str | Callable[..., Any] | TaskSuite,
    env_args: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    episodes: int = 5,
    step_limit: int = 50,
    split: str = "train",
    expert: ExpertPolicy | None = None,
    seed: int = 0,
    timeout: float = 30.0,
) -> EnvReport:
    """Play episodes in a worker process, repeat the first, try unusual actions, run gymnasium's checker, and close.

    Args:
        env: an environment's class, or a function that makes one; a suite, its class or a function that makes it; or
            the import path of any of these.
        env_args: keyword arguments for it.
        options: of `reset`, in addition to those of the suite's episodes.
        episodes: number of episodes, > 0.
        step_limit: for episodes without one, > 0.
        split: of a suite's episodes.
        expert: chooses each action from the observation and the info, None to stop; without an expert, actions are
            chosen at random among the admissible ones, or else among a few words.
        seed: of the first episode (the others follow) and of the random actions.
        timeout: maximum seconds per call of the environment, and for making it.

    Returns:
        The report. Failures of the environment are findings, not exceptions.

    Raises:
        ValueError: `env` cannot be imported or sent to another process, a number is out of range, or the split is
            unknown.
    """
    if episodes < 1 or step_limit < 1:
        raise ValueError(f"episodes and step_limit must be at least 1, got {episodes} and {step_limit}")
    suite, has_limit = find_suite(env, dict(env_args or {})), False
    if suite is None:
        make_env: Callable[..., Any] = import_env(env)  # type: ignore[arg-type]
        numbers = range(seed, seed + episodes)
        specs = [EpisodeSpec(str(n), seed=n, options=dict(options or {}), step_limit=step_limit) for n in numbers]
        report = EnvReport(getattr(make_env, "__name__", type(make_env).__name__))
        make_env = functools.partial(make_env, **(env_args or {})) if env_args else make_env
    else:
        make_env, report = suite.make_env, EnvReport(suite.name)
        chosen = _episodes(suite, split, episodes, seed, report)
        has_limit = all(spec.step_limit for spec in chosen)
        specs = [_complete(spec, step_limit, options or {}) for spec in chosen]
    examiner = functools.partial(Examiner, make_env)
    limits = PoolSettings(call_timeout=timeout, reset_timeout=timeout, max_attempts=1)
    with EnvPool(examiner, 1, limits) as pool:
        try:
            CheckRun(pool, report, expert, random.Random(seed), has_limit).run(specs)
        except FailedError as error:
            report.add("error", error.where, str(error))
    return report


def find_suite(env: Any, args: dict[str, Any]) -> TaskSuite | None:
    """Return the suite that an object or its import path stands for; None for an environment.

    Args:
        env: a suite, its class or a function that makes one; or an environment's class or function. A function without
            an annotated result is called, to see what it makes.
        args: keyword arguments of a suite's class or function.

    Raises:
        ValueError: it cannot be imported.
    """
    value = import_env(env) if isinstance(env, str) else env
    kind = _kind_of(value)
    if kind is None:
        return _made_suite(value, args)
    if not _is_suite(kind):
        return None
    suite: TaskSuite = value(**args) if callable(value) else value
    return suite


def _kind_of(value: Any) -> Any:
    """Return a suite or class, or what a function is annotated to return; None for a function without annotation."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type) or _is_suite(value) or not callable(value):
        return value
    try:
        result = typing.get_type_hints(value).get("return")
    except (NameError, TypeError):  # a name imported for type checkers only; a callable object
        return None
    return None if result is Any else result


def _made_suite(make: Callable[..., Any], args: dict[str, Any]) -> TaskSuite | None:
    """Call a function of an unknown result; return its suite, None for anything else."""
    try:
        made = make(**args)
    except Exception:  # of an environment: the check calls it again, in a worker, and reports it
        return None
    if _is_suite(made):
        suite: TaskSuite = made
        return suite
    if isinstance(made, gym.Env):
        made.close()
    return None


def _is_suite(value: Any) -> bool:
    """Return whether this is a suite, or the class of one."""
    if isinstance(value, type) and issubclass(value, gym.Env):
        return False
    return hasattr(value, "episodes") and hasattr(value, "make_env")


def _episodes(suite: TaskSuite, split: str, number: int, seed: int, report: EnvReport) -> list[EpisodeSpec]:
    """Choose some of a suite's episodes, evenly spread over its tasks."""
    available = suite.episodes(split, seed=seed)
    ids = [spec.id for spec in available]
    if not ids:
        raise ValueError(f"the split {split!r} of {suite.name!r} has no episodes")
    if len(set(ids)) < len(ids):
        report.add("error", "episodes", f"expected unique ids, got {len(ids) - len(set(ids))} duplicates")
    return choose(available, number, None, str(seed))


def _complete(spec: EpisodeSpec, step_limit: int, options: Mapping[str, Any]) -> EpisodeSpec:
    limit = spec.step_limit or step_limit
    return EpisodeSpec(spec.id, spec.task, spec.split, spec.seed, {**spec.options, **options}, limit, spec.meta)
