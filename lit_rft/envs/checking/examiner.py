"""The worker's side of `check_env`: a wrapper that examines the results of the checked environment."""

from __future__ import annotations

import contextlib
import difflib
import functools
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import check_env as check_with_gymnasium

from lit_rft.envs.base import StepInfo
from lit_rft.envs.checking.report import Finding, writable
from lit_rft.envs.contract import ContractError, EpisodeContract
from lit_rft.envs.info_keys import RESET_ONLY, expected_type, is_finite, is_flag
from lit_rft.envs.raised import describe_error, type_and_message

WORDS = ("look", "help", "yes", "no", "0", "1", "go north", "take", "open door", "wait")
_LONG = 20_000  # characters of a long observation


class AnyText(gym.spaces.Text):
    """The space of all texts, for gymnasium's checker: `gymnasium.spaces.Text` limits the characters."""

    def __init__(self) -> None:
        super().__init__(max_length=_LONG, min_length=0)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return str(self.np_random.choice(WORDS))


class Examiner(gym.Env[str, str]):
    """Plays an environment and reports on its results.

    Its `info` has the ``findings``, the ``seconds``, the ``keys`` of the environment's info, and the ``info`` that
    experts and agents read: with the defaults of `StepInfo`, None where the contract is violated. It raises nothing
    itself: ``failed`` is true after an exception or an answer of the wrong form. The option ``part`` of `reset` selects
    the part of the check: ``play`` an episode (with the options ``options`` and ``step_limit``), run gymnasium's
    checker (``gymnasium``), or ``close`` the environment.

    If the environment cannot be made, ``made`` is false, and no part does anything but report why.

    Args:
        make_env: makes the environment.
    """

    def __init__(self, make_env: Callable[[], Any]) -> None:
        self._make_env = make_env
        self._unmade: Finding | None = None
        self._env: Any = self._make()
        self._contract = EpisodeContract(type(getattr(self._env, "unwrapped", self._env)).__name__)

    def _make(self) -> Any:
        try:
            env = self._make_env()
        except Exception as error:
            self._unmade = _raised("constructor", error, "constructor", self._make_env)
            return None
        if not isinstance(env, gym.Env):
            expected = f"expected a gymnasium.Env, got {type(env).__name__}: derive it from gymnasium.Env"
            self._unmade = Finding("error", "class", expected)
        return env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        options = options or {"part": "play"}
        if self._unmade is not None:
            return "", _report([self._unmade], failed=True, made=False)
        if options["part"] == "play":
            started = time.perf_counter()
            try:
                answer = self._env.reset(seed=seed, options=options.get("options") or None)
            except Exception as error:
                return "", _report([_raised("reset", error, "reset", self._env.unwrapped.reset)], failed=True)
            seconds = time.perf_counter() - started
            findings, observation, info = examine_reset(answer)
            complete = self._complete(lambda: self._contract.start(answer, options.get("step_limit", 0)))
            return observation, _report(findings, seconds, info, complete)
        if options["part"] == "gymnasium":
            return "", _report(self._run_gymnasium(options.get("options")))
        return "", _report(self._close())

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        started = time.perf_counter()
        try:
            answer = self._env.step(action)
        except Exception as error:
            finding = _raised(f"step({action[:40]!r})", error, "step", self._env.unwrapped.step)
            return "", 0.0, True, False, _report([finding], failed=True)
        seconds = time.perf_counter() - started
        findings, (observation, reward, terminated, truncated), info = examine_step(answer)
        complete = self._complete(lambda: self._contract.step(answer))
        # An answer of the wrong form has no end of its own.
        report = _report(findings, seconds, info, complete, failed=not _has_length(answer, 5))
        return observation, reward, terminated, truncated, report

    def close(self) -> None:
        if isinstance(self._env, gym.Env):
            self._env.close()

    def _complete(self, take: Callable[[], tuple[Any, ...]]) -> dict[str, Any] | None:
        """Return the info as `EpisodeEnv` would, without values that cannot be sent; None if it would raise."""
        try:
            info = take()[-1]
        except ContractError:
            return None
        return {name: value for name, value in info.items() if _pickle_error(value) is None}

    def _run_gymnasium(self, options: dict[str, Any] | None) -> list[Finding]:
        """Run gymnasium's checker, which knows no options of `reset`, on a second environment."""
        env = self._make()
        if self._unmade is not None:
            return [self._unmade._replace(where=f"a second {self._unmade.where}")]
        findings = []
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if not isinstance(space, gym.spaces.Text | None):
                findings.append(Finding("warning", name, f"expected texts (gymnasium.spaces.Text), got {space}"))
        bare: Any = env.unwrapped
        bare.observation_space, bare.action_space = AnyText(), AnyText()
        if options:
            bare.reset = _with_options(bare.reset, options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                check_with_gymnasium(bare, skip_render_check=True)
            except Exception as error:
                findings.append(Finding("warning", "gymnasium", type_and_message(error)))
        with contextlib.suppress(Exception):  # closing is a separate part
            env.close()
        texts = dict.fromkeys(_plain(str(warning.message)) for warning in caught if _is_gymnasium(warning))
        return findings + [Finding("note", "gymnasium", text) for text in texts]

    def _close(self) -> list[Finding]:
        findings = []
        for time_of in ("close()", "a second close()"):
            try:
                self._env.close()
            except Exception as error:
                findings.append(_raised(time_of, error, "close", self._env.unwrapped.close))
        return findings


def _with_options(reset: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Return a `reset` of the same signature that has options unless others are given."""

    @functools.wraps(reset)
    def with_options(**arguments: Any) -> Any:
        return reset(**{**arguments, "options": arguments.get("options") or options})

    return with_options


def _is_gymnasium(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, UserWarning) and "gymnasium" in warning.filename


def _plain(text: str) -> str:
    """Return a warning of gymnasium without its colours and prefix."""
    return text.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ").strip()


def _raised(where: str, error: Exception, method: str, called: Any) -> Finding:
    return Finding("error", where, f"raised {describe_error(error, method, called)}")


def _report(
    findings: list[Finding],
    seconds: float = 0.0,
    info: Mapping[str, Any] | None = None,
    complete: dict[str, Any] | None = None,
    *,
    failed: bool = False,
    made: bool = True,
) -> dict[str, Any]:
    report = {"findings": findings, "seconds": seconds, "info": complete, "failed": failed, "made": made}
    return {**report, "keys": sorted(map(str, info or {}))}


def examine_reset(answer: Any) -> tuple[list[Finding], str, dict[str, Any]]:
    """Examine the result of `reset`.

    Returns:
        Findings, and observation and info, empty ones in place of invalid ones.
    """
    if not _has_length(answer, 2):
        return [Finding("error", "reset", f"expected (observation, info), got {_shape(answer)}")], "", {}
    observation, info = answer
    findings = [*_wrong_observation("reset", observation), *_wrong_info("reset", info)]
    if observation == "" and not (isinstance(info, dict) and info.get("task_description")):
        findings.append(
            Finding("warning", "reset", "neither observation nor task_description: the policy reads nothing")
        )
    return findings, _returnable(observation), info if isinstance(info, dict) else {}


def examine_step(answer: Any) -> tuple[list[Finding], tuple[str, float, bool, bool], dict[str, Any]]:
    """Examine the result of `step`.

    Returns:
        Findings; observation, reward, terminated and truncated; info; neutral values in place of invalid ones.
    """
    if not _has_length(answer, 5):
        expected = "(observation, reward, terminated, truncated, info)"
        return [Finding("error", "step", f"expected {expected}, got {_shape(answer)}")], ("", 0.0, True, False), {}
    observation, reward, terminated, truncated, info = answer
    findings = [*_wrong_observation("step", observation), *_wrong_info("step", info)]
    if not is_finite(reward):
        findings.append(Finding("error", "reward", f"expected a finite number, got {reward!r}"))
        reward = 0.0
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not is_flag(flag):
            findings.append(Finding("warning", name, f"expected True or False, got {flag!r}"))
    ends = (bool(terminated), bool(truncated))
    return findings, (_returnable(observation), float(reward), *ends), info if isinstance(info, dict) else {}


def _has_length(answer: Any, length: int) -> bool:
    return isinstance(answer, tuple) and len(answer) == length


def _returnable(observation: Any) -> str:
    """Return an observation that this wrapper may return itself: the error in another one is a finding."""
    return writable(observation) if isinstance(observation, str) else ""


def _shape(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__


def _wrong_observation(where: str, observation: Any) -> Iterator[Finding]:
    if not isinstance(observation, str):
        yield Finding("error", where, f"expected text (str) as observation, got {type(observation).__name__}")
        return
    try:
        observation.encode()
    except UnicodeEncodeError as error:
        yield Finding("error", where, f"the observation cannot be written as UTF-8: {error.reason}")
    if len(observation) > _LONG:
        yield Finding("warning", where, f"an observation of {len(observation)} characters will hardly fit a context")


def _wrong_info(where: str, info: Any) -> Iterator[Finding]:
    if not isinstance(info, dict):
        yield Finding("error", where, f"expected a dictionary as info, got {type(info).__name__}")
        return
    for name, value in info.items():
        if wrong := _wrong_value(name, value):
            yield Finding("error", f"info[{name!r}]", wrong)
        elif where == "step" and name in RESET_ONLY:
            yield Finding("note", f"info[{name!r}]", "is read from reset only")
        if problem := _pickle_error(value):
            yield Finding("error", f"info[{name!r}]", f"cannot be sent from a worker process: {problem}")
        near = difflib.get_close_matches(str(name), StepInfo.__annotations__, n=1, cutoff=0.75)
        if near and name not in StepInfo.__annotations__:
            yield Finding("warning", f"info[{name!r}]", f"is not read; did you mean {near[0]!r}?")


def _wrong_value(name: Any, value: Any) -> str | None:
    """Describe the error in the value of a key of `StepInfo`; None if there is none."""
    expected, text = expected_type(name, value), repr(value)
    return expected and f"expected {expected}, got {text if len(text) < 80 else text[:77] + '...'}"


def _pickle_error(value: Any) -> str | None:
    try:
        pickle.dumps(value)
    except Exception as error:
        return type_and_message(error)
    return None
