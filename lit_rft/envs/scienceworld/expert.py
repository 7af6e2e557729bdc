"""The simulator as an expert: its solver for its own tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.scienceworld.subgoals import annotate_scienceworld
from lit_rft.episodes.record import Episode


@dataclasses.dataclass(frozen=True)
class GoldPaths:
    """ScienceWorld's gold paths; an `Expert`. They differ between loads, so each is played in the load that made it."""

    kind: str = "gold"
    irreversible: tuple[str, ...] = ("focus",)  # a wrong focus ends the episode

    def prepare(self, spec: EpisodeSpec, admissible_at: Sequence[int]) -> EpisodeSpec:
        options = {**spec.options, "gold_path": True}
        if admissible_at:
            options["admissible_at"] = list(admissible_at)
        return dataclasses.replace(spec, options=options)

    def actions(self, spec: EpisodeSpec, info: Mapping[str, Any]) -> Sequence[str]:
        path: Sequence[str] = info["gold_path"]
        return path

    def annotate(self, episode: Episode) -> Any:
        return annotate_scienceworld(episode)
