"""An episode that is played by an expert, possibly with random actions among the expert's."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_rft._records import show_value
from lit_rft.envs.base import EpisodeSpec, Expert, ExpertPolicy
from lit_rft.envs.perturbation import Perturbation
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.episodes.record import ADMISSIBLE, Episode, Outcome, Step

PATH_END = "path_end"  # reason of an episode whose expert's actions ran out before the task was solved


def episode_id(spec: EpisodeSpec, expert: Expert, perturbation: Perturbation | None) -> str:
    """Return the id of an episode's record."""
    if perturbation is None:
        return f"{spec.id}/{expert.kind}"
    kind = "insert" if perturbation.insert else "replace"
    return f"{spec.id}/perturbed-{kind}-{perturbation.probability:g}-{perturbation.seed}"


def source_of(expert: Expert, perturbation: Perturbation | None) -> dict[str, Any]:
    """Return ``source`` of the records, without the settings."""
    if perturbation is None:
        return {"kind": expert.kind}
    return {"kind": "perturbed", **dataclasses.asdict(perturbation)}


class ExpertPlayer:
    """A player of one episode by the expert's actions."""

    def __init__(self, event: PoolEvent, expert: Expert, perturbation: Perturbation | None) -> None:
        self._spec, self._expert, self._perturbation = event.job, expert, perturbation
        self._observation, self._info = event.payload
        self._latest_observation, self._latest_info = self._observation, self._info
        self._admissible: list[list[str] | None] = [self._info.get("admissible")]
        self._act: ExpertPolicy | None = getattr(expert, "act", None)
        self._script = [] if self._act else list(expert.actions(self._spec, self._info))
        self._position = 0  # in the script
        self._action = ""
        self._steps: list[Step] = []
        self._end: tuple[bool, bool, str] | None = None  # terminated, truncated, reason
        if perturbation is not None:
            self._rng = perturbation.rng(self._spec.id)
            self._random_steps = perturbation.random_steps(self._rng, self._spec.step_limit)

    def next_action(self) -> str | None:
        """Return the next action; None at the end of the episode."""
        if self._end is not None:
            return None
        expert_action = self._expert_action()
        if expert_action is None:
            self._end = (False, True, PATH_END)
            return None
        random_action = self._random_action()
        self._action = expert_action if random_action is None else random_action
        if random_action is None or (self._perturbation is not None and not self._perturbation.insert):
            self._position += 1
        return self._action

    def _expert_action(self) -> str | None:
        """Return the expert's next action; None after its last."""
        if self._act is not None:
            action = self._act(self._latest_observation, self._latest_info)
            if not isinstance(action, str | None):
                raise ValueError(f"an expert must return text, or None to stop; got {show_value(action)}")
            return action
        return self._script[self._position] if self._position < len(self._script) else None

    def _random_action(self) -> str | None:
        """Return a random action if one is planned for this step."""
        if self._perturbation is None or len(self._steps) not in self._random_steps:
            return None
        if "admissible" not in self._latest_info:
            raise ValueError(
                f"{self._info['env']} reports no admissible actions (StepInfo.admissible), which perturbations need"
            )
        return self._perturbation.choose(self._rng, self._latest_info["admissible"], self._expert.irreversible)

    def observe(self, event: PoolEvent) -> None:
        """Take the result of the action."""
        observation, reward, terminated, truncated, info = event.payload
        self._latest_observation, self._latest_info = observation, info
        self._admissible.append(info.get("admissible"))
        self._steps.append(Step(self._action, observation, reward, info["score"], info["valid"], info["achieved"]))
        if terminated or truncated:
            self._end = (terminated, truncated, info["reason"])

    def episode(self) -> Episode:
        """Return the record of the episode, after its end; without subgoals."""
        assert self._end is not None
        terminated, truncated, reason = self._end
        score, success = self._latest_info["score"], self._latest_info.get("success", False)
        return Episode(
            id=episode_id(self._spec, self._expert, self._perturbation),
            env=self._info["env"],
            env_version=self._info["env_version"],
            task=self._spec.task,
            split=self._spec.split,
            source=source_of(self._expert, self._perturbation),
            task_description=self._info["task_description"],
            initial_observation=self._observation,
            steps=self._steps,
            subgoals=[],
            outcome=Outcome(score, success, terminated, truncated, reason),
            step_limit=self._spec.step_limit,
            meta=dict(self._spec.meta),
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, Any]:
        """Return the environment's metrics, and its admissible actions where it always reports them."""
        extra: dict[str, Any] = {}
        if self._latest_info["metrics"]:
            extra["metrics"] = self._latest_info["metrics"]
        if None not in self._admissible:
            extra[ADMISSIBLE] = [list(actions or ()) for actions in self._admissible]
        return extra
