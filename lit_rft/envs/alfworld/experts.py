"""Experts of the suites: the explorer's actions, computed in plain Python before an episode is played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.envs.alfworld.explorer import Mistakes, solve
from lit_rft.envs.alfworld.games import in_game_form
from lit_rft.envs.alfworld.sources import GameSource
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes.record import Episode
from lit_rft.episodes.subgoals import annotate_events


@dataclass(frozen=True)
class ExplorerExpert:
    """Searches objects in likely places (`Explorer`); an `Expert`.

    Games are deterministic, so a solution can be replayed. Wrong actions are made here, with the explorer's recovery
    from them: with random actions in an open loop (`collect_perturbed_episodes`) nothing is achieved after the first of
    them.

    Attributes:
        games: source of games.
        mistakes: probability of a wrong action at each step, for medium-quality data, in [0, 1).
        omniscient: know all positions from the start. Such paths are shorter, but depend on facts unknown to the
            policy.
        seed: of the wrong actions.
        irreversible: see `Expert`.
    """

    games: GameSource
    mistakes: float = 0.0
    omniscient: bool = False
    seed: int = 0
    irreversible: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        name = "planner" if self.omniscient else "explorer"
        return f"{name}-mistakes-{self.mistakes:g}-{self.seed}" if self.mistakes else name

    def prepare(self, spec: EpisodeSpec, admissible_at: Sequence[int]) -> EpisodeSpec:
        return spec  # the environment always reports admissible actions

    def actions(self, spec: EpisodeSpec, info: Mapping[str, Any]) -> Sequence[str]:
        mistakes = Mistakes(self.mistakes, self.seed) if self.mistakes else None
        household = self.games.household(spec.options)
        actions, _ = solve(household, mistakes=mistakes, key=spec.id, omniscient=self.omniscient)
        return [in_game_form(action, household.put) for action in actions]

    def annotate(self, episode: Episode) -> Any:
        return annotate_events(episode)
