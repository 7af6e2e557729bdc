"""Admissible actions: lists in prompts, and choices among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.episodes import Episode
from lit_rft.episodes.record import ADMISSIBLE


@dataclass(frozen=True)
class AdmissibleActions:
    """Use of the admissible actions that an environment reports (`StepInfo.admissible`).

    Args:
        show: list them below each observation.
        choose: the policy's answer can only be one of them: at each token, its distribution is renormalised over the
            tokens with which an admissible action can go on, in sampling and in training. Not with a generation server.
        limit: maximum number of actions, > 0; the environment's first ones. With `choose` a longer list is an error.
        max_characters: maximum length of the list, > 0; longer lists are cut after an action. With `choose`, an error.
    """

    show: bool = True
    choose: bool = False
    limit: int = 50
    max_characters: int = 2000

    def __post_init__(self) -> None:
        for name in ("limit", "max_characters"):
            if not getattr(self, name) > 0:
                raise ValueError(f"admissible.{name} must be > 0, got {getattr(self, name)}")

    def select(self, info: Mapping[str, Any]) -> list[str]:
        """Return the actions to use of an environment's info, in its order, without duplicates; none if it has none.

        Raises:
            ValueError: `choose` would exclude actions beyond the limits.
        """
        return self.within_limits(info.get("admissible") or ())

    def within_limits(self, reported: Sequence[str]) -> list[str]:
        """Return the actions to use of those that were reported or recorded; see `select`."""
        selected: list[str] = []
        length = 0
        actions = list(dict.fromkeys(reported))
        for action in actions:
            length += len(action)
            if len(selected) == self.limit or length > self.max_characters:
                if self.choose:
                    raise ValueError(
                        f"admissible.choose needs all {len(actions)} admissible actions ({sum(map(len, actions))} "
                        f"characters) within admissible.limit={self.limit} and max_characters={self.max_characters}: "
                        "raise them"
                    )
                break
            selected.append(action)
        return selected

    def text(self, observation: str, actions: Sequence[str]) -> str:
        """Return an observation with the list of actions below it."""
        if not self.show or not actions:
            return observation
        return "\n".join([f"{observation}\n\nAdmissible actions:", *(f"- {action}" for action in actions)])


def recorded_actions(episode: Episode, index: int) -> list[str]:
    """Return the actions that a record has for an observation, the initial one at index 0; none if it has none.

    A record of play has those that were used, a record of an expert all that were reported.
    """
    recorded = episode.extra.get(ADMISSIBLE) or []
    return list(recorded[index]) if index < len(recorded) else []
