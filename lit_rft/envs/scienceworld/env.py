"""ScienceWorld (Wang et al., EMNLP 2022, arXiv 2203.07540) as a gymnasium environment."""

from __future__ import annotations

import difflib
import json
import operator
import string
from importlib.metadata import version
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.spaces import Text

from lit_rft.envs.scienceworld.java import JavaProcess, SimulatorError, scienceworld_jar
from lit_rft.envs.scienceworld.progress import AchievedTracker

Split = Literal["train", "dev", "test"]

_INVALID = ("No known action matches that input.", "Unknown action.", "ERROR: ")
_ELECTRICAL_TASKS = ("power-component", "conductivity")


class ScienceWorldEnv(gym.Env[str, str]):
    """One simulator in one Java process, stepped with as few calls as possible.

    Plain `scienceworld.ScienceWorldEnv.step` also fetches all valid actions, with one call for each of several hundred.
    Here they are available on request (`valid_actions`). Steps are counted here too: the simulator's own count is its
    clock.

    Scores are in [0, 1], in hundredths as rounded by the simulator's authors, and rewards are their differences. An
    episode terminates with reason ``goal``, or with ``failed`` and score 0 (the wrong object was focused on), and is
    truncated with reason ``step_limit``.

    Episodes cannot be replayed from their actions alone: gold paths and some observations differ between loads.

    Args:
        step_limit: maximum actions per episode, at least 1; invalid ones count.
        simplification: ``""`` (none), ``"easy"``, or names of the simulator's simplifications, joined by commas.
        java_options: of the virtual machine. The default uses about 0.5 GB instead of 2.

    Attributes:
        process_id: of the Java process.
        version: of the simulator.

    Raises:
        ImportError: the extra ``lit-rft[scienceworld]`` is missing.
        ValueError: invalid `step_limit` or `simplification`.
        SimulatorError: Java did not start.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)

    def __init__(
        self, step_limit: int = 50, simplification: str = "", java_options: str = "-Xmx512m -XX:+UseSerialGC"
    ) -> None:
        if step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, got {step_limit}")
        self.step_limit = step_limit
        self.simplification = simplification
        self.action_space = Text(min_length=0, max_length=2**20, charset=string.printable)
        self.observation_space = Text(min_length=0, max_length=2**20, charset=string.printable)
        jar = scienceworld_jar()
        self.version = version("scienceworld")
        self._java = JavaProcess(jar, java_options)
        self.process_id = self._java.pid
        self._server = self._java.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._tasks = self._list(self._call("getTaskNames"))
        self._variations: dict[str, dict[str, list[int]]] = {}
        self._playing = False
        try:
            self._check_simplification()
        except ValueError:
            self.close()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: unused: the simulator's randomness depends on the variation.
            options: ``task`` (one of `tasks`), ``variation`` (0 to `max_variations` - 1), and optionally ``gold_path``
                (True: let the simulator solve the task too, which takes seconds) and ``admissible_at`` (a list of steps
                before which the info has ``admissible``, see `valid_actions`).

        Returns:
            The first observation, and info: ``env``, ``env_version``, ``task_description``, ``achieved`` (conditions
                met
            from the start), and ``gold_path`` (actions, also after the task's completion) if requested.

        Raises:
            ValueError: an option is missing, unknown or out of range.
            SimulatorError: the simulator has died or failed; make a new environment.
        """
        super().reset(seed=seed)
        task, variation, gold_path = self._check_options(options or {})
        self._admissible_at = frozenset((options or {}).get("admissible_at", ()))
        self._playing = False
        # The server's own reset() loads (and solves) the task again: a load is a reset.
        self._call("load", task, variation, self.simplification, gold_path)
        observation = self._call("step", "look around")  # also resets the score and completion of the last episode
        if observation.startswith("ERROR: "):
            raise SimulatorError(f"task {task}, variation {variation} did not load: {observation}")
        self._playing, self._steps, self._raw_score = True, 0, self._read_score(observation)
        self._tracker = AchievedTracker()
        info = {
            "env": "scienceworld",
            "env_version": self.version,
            "task_description": self._call("getTaskDescription"),
            "achieved": self._tracker.update(observation, self._call("getGoalProgressStr")),
        }
        if gold_path:
            info["gold_path"] = self._list(self._call("getGoldActionSequence"))
        return observation, info | self._admissible()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply one action.

        Anything but a valid UTF-8 text counts as an invalid action.

        Returns:
            observation, reward, terminated, truncated, and info: ``score`` in [0, 1], ``valid`` (the simulator
                understood the
            action), ``achieved`` (new conditions), ``reason`` (of the end, else None), ``success`` and ``steps``.

        Raises:
            RuntimeError: no episode is in progress.
            SimulatorError: the simulator has died or failed; make a new environment.
        """
        if not self._playing:
            raise RuntimeError("no episode is in progress: call reset(options={'task': ..., 'variation': ...}) first")
        observation = self._call("step", action if _is_sendable(action) else "")
        raw_score, before = self._read_score(observation), self._raw_score
        self._raw_score = raw_score
        self._steps += 1
        # Every condition changes the score: with the same score nothing was achieved, and no further calls are needed.
        progress = self._call("getGoalProgressStr") if raw_score != before else ""
        reason = None
        if raw_score < 0:
            reason = "failed"
        elif raw_score != before and self._call("getCompleted"):
            reason = "goal"
        elif self._steps >= self.step_limit:
            reason = "step_limit"
        self._playing = reason is None
        score = _hundredths(raw_score)
        info = {
            "score": score,
            "valid": not observation.startswith(_INVALID),
            "achieved": self._tracker.update(observation, progress),
            "reason": reason,
            "success": reason == "goal",
            "steps": self._steps,
        } | self._admissible()
        reward = round(score - _hundredths(before), 2)
        return observation, reward, reason in ("goal", "failed"), reason == "step_limit", info

    def valid_actions(self) -> list[str]:
        """Return all actions that the simulator would accept now, several hundred, in 0.1 s.

        Raises:
            RuntimeError: no episode is in progress.
        """
        if not self._playing:
            raise RuntimeError("no episode is in progress: call reset first")
        return list(dict.fromkeys(self._list(self._call("getValidActionObjectCombinations"))))

    def _admissible(self) -> dict[str, list[str]]:
        """Return the admissible actions at requested steps only: they take 0.1 s."""
        return {"admissible": self.valid_actions()} if self._playing and self._steps in self._admissible_at else {}

    def tasks(self) -> list[str]:
        """Return the names of all tasks."""
        return list(self._tasks)

    def max_variations(self, task: str) -> int:
        """Return the number of variations of a task.

        Raises:
            ValueError: unknown task.
        """
        self._check_task(task)
        number: int = self._call("getTaskMaxVariations", task)
        return number

    def variations(self, task: str, split: Split) -> list[int]:
        """Return the variations of a task in one of the official splits.

        Raises:
            ValueError: unknown task or split.
        """
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        return list(self._splits(task)[split])

    def close(self) -> None:
        """End the Java process. A second call does nothing."""
        self._playing = False
        self._java.close()

    def _splits(self, task: str) -> dict[str, list[int]]:
        self._check_task(task)
        if task not in self._variations:
            # The splits depend on the task's name only: set it without loading, which would end an episode in progress.
            self._call("taskStr_$eq", task)
            self._variations[task] = {
                split: json.loads(self._call(f"getVariations{split.capitalize()}").toString())
                for split in get_args(Split)
            }
        return self._variations[task]

    def _check_options(self, options: dict[str, Any]) -> tuple[str, int, bool]:
        unknown = options.keys() - {"task", "variation", "gold_path", "admissible_at"}
        if unknown or not {"task", "variation"} <= options.keys():
            raise ValueError(
                "reset needs options={'task': name, 'variation': number} and takes 'gold_path': bool "
                "and 'admissible_at': list of steps; "
                f"got the options {sorted(map(str, options))}"
            )
        task = options["task"]
        number = self.max_variations(task)
        try:
            variation = operator.index(options["variation"])
        except TypeError:
            raise ValueError(f"variation must be a whole number, got {options['variation']!r}") from None
        if not 0 <= variation < number:
            raise ValueError(f"variation of {task} must be 0 to {number - 1}, got {variation}")
        if "noElectricalAction" in self.simplification and any(name in task for name in _ELECTRICAL_TASKS):
            raise ValueError(f"{task} needs electrical actions: remove noElectricalAction from the simplification")
        return task, variation, bool(options.get("gold_path", False))

    def _check_task(self, task: str) -> None:
        if task not in self._tasks:
            near = difflib.get_close_matches(str(task), self._tasks, n=5, cutoff=0.5) or self._tasks
            raise ValueError(f"unknown task {task!r}; did you mean: {', '.join(near)}")

    def _check_simplification(self) -> None:
        known = self._call("getPossibleSimplifications").split(", ")
        if self.simplification in ("", "easy"):
            return
        for name in self.simplification.split(","):
            if name not in known:
                raise ValueError(
                    f"unknown simplification {name!r} in {self.simplification!r}; expected '', 'easy' "
                    f"(alone) or some of these, joined by commas without spaces: {', '.join(known)}"
                )

    def _read_score(self, observation: str) -> float:
        """Return the simulator's score, up to 1; negative after a failure."""
        score: float = self._call("getScore")
        if score < 0 and observation.partition(":")[0].endswith(("Exception", "Error")):
            # An exception leaves the simulator in an error state: all later observations are its message.
            raise SimulatorError(f"the simulator failed: {observation[:300]}")
        return score

    def _list(self, strings: Any) -> list[str]:
        """Convert a Java list of strings without line breaks in one call instead of one per item."""
        joined = self._java.jvm.java.lang.String.join("\n", strings)
        return joined.split("\n") if joined else []

    def _call(self, method: str, *args: Any) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            return getattr(self._server, method)(*args)
        except Py4JJavaError as error:
            raise SimulatorError(f"the simulator failed in {method}: {str(error)[:500]}") from error
        except Py4JError as error:
            raise SimulatorError(
                f"the simulator's Java process {self.process_id} has ended: make a new ScienceWorldEnv"
            ) from error


def _hundredths(raw_score: float) -> float:
    return max(0, round(100 * raw_score)) / 100


def _is_sendable(action: object) -> bool:
    if not isinstance(action, str):
        return False
    try:
        action.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
