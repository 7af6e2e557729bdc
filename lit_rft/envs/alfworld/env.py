"""ALFWorld (Shridhar et al., ICLR 2021, arXiv 2010.03768), its text games, as a gymnasium environment."""

from __future__ import annotations

import re
import string
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Text

from lit_rft.envs.alfworld.facts import gained
from lit_rft.envs.alfworld.games import in_game_form
from lit_rft.envs.alfworld.sources import GameSource, Simulator
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS

_ARRIVAL = re.compile(r"You arrive at [^.]*\. ")


class AlfworldEnv(gym.Env[str, str]):
    """Household games in text.

    The task paragraph of a game's first text becomes ``task_description``, and "You arrive at ..." is left out, as in
    the prompts of ReAct and later work. Both forms of the command to put an object down are understood (``move mug 1 to
    desk 1``, ``put mug 1 in/on desk 1``), for any game.

    An episode terminates, with reward and score 1, when the goal is reached. The reply to an impossible command is
    "Nothing happens."; it counts as invalid.

    Args:
        games: source of games.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)

    def __init__(self, games: GameSource) -> None:
        games.check()  # now: an error of a later reset would be taken for a failure of the environment
        self.games = games
        self.action_space = Text(min_length=0, max_length=2**20, charset=string.printable)
        self.observation_space = Text(min_length=0, max_length=2**20, charset=string.printable)
        self._simulator: Simulator | None = None
        self._put = ""
        self._facts: set[tuple[str, ...]] = set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: unused; a game is fixed by its options.
            options: of the source of games.

        Returns:
            The first observation, and info: ``env``, ``env_version``, ``task_description`` and ``admissible``.

        Raises:
            ValueError: the source rejects the options, or the game is corrupt.
        """
        super().reset(seed=seed)
        self._simulator = None
        start = self.games.start(options or {})
        self._simulator, self._put, self._facts = start.simulator, start.put, start.simulator.facts()
        info = {
            "env": self.games.name,
            "env_version": self.games.version,
            "task_description": start.description,
            "admissible": start.simulator.admissible(),
        }
        return start.observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply one action.

        Returns:
            observation, reward, terminated, truncated (always False), and info: ``score``, ``success``, ``valid``,
            ``achieved`` (facts gained), ``admissible`` and ``reason``.

        Raises:
            RuntimeError: no episode is in progress.
        """
        if self._simulator is None:
            raise RuntimeError("no episode is being played: call reset first")
        simulator = self._simulator
        reply = simulator.step(self._command(action)) if isinstance(action, str) else NOTHING_HAPPENS
        won = simulator.won()
        facts = simulator.facts()
        info = {
            "score": float(won),
            "success": won,
            "valid": reply != NOTHING_HAPPENS,
            "achieved": gained(self._facts, facts),
            "admissible": [] if won else simulator.admissible(),
            "reason": "goal" if won else None,
        }
        self._facts = facts
        if won:
            self._simulator = None
        return _ARRIVAL.sub("", reply, count=1), float(won), won, False, info

    def _command(self, action: str) -> str:
        """Convert an action to the game's form."""
        return in_game_form(action.strip(), self._put)
