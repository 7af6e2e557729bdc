"""Errands for customers along a street of shops: a longer task, in which a player has to remember its progress."""

from __future__ import annotations

import itertools
import statistics
import string
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from lit_rft.episodes.record import Episode
from lit_rft.episodes.subgoals import UNFINISHED_GOAL, Segment

_SHOPS = {
    "bread": "bakery", "roses": "florist", "books": "library", "shoes": "cobbler", "meat": "butcher",
    "pills": "pharmacy",
}  # fmt: skip
_ITEMS, _STREET = tuple(_SHOPS), tuple(_SHOPS.values())  # in the order of the shops, from left to right
_MOVES = {"left": -1, "right": 1}
LISTS: Mapping[str, tuple[str, ...]] = {
    "Anna": ("pills", "bread"),
    "Ben": ("shoes", "roses"),
    "Cleo": ("books", "meat", "roses"),
    "Dan": ("roses", "pills", "shoes"),
    "Eve": ("meat", "roses", "pills", "bread", "shoes"),
    "Finn": ("bread", "shoes", "roses", "meat", "books"),
    "Gwen": ("pills", "books", "roses"),
    "Hugo": ("meat", "bread", "shoes"),
}
CUSTOMERS = ("Anna", "Ben", "Cleo", "Dan", "Eve", "Finn")  # of episodes, unless others are named


class Errands(gym.Env[str, str]):
    """Walk along a street of six shops, and buy what a customer wants, in the customer's order.

    Each customer always wants the same items, which the task does not name: a player has to learn `LISTS`. An item on
    its turn has reward 1 / (their number), and a purchase out of turn costs `wrong_cost`; every action costs
    `step_cost`. An episode ends when all items are bought; the environment has no step limit. Observations name the
    shop alone, so that a player has to remember its purchases.

    Args:
        customers: names of `LISTS`, of which each episode has one.
        step_cost: cost of an action, >= 0.
        wrong_cost: cost of a purchase out of turn, >= 0.

    Raises:
        ValueError: an unknown customer, none, or a negative cost; at `reset`, for the option `customer`.
    """

    observation_space = action_space = gym.spaces.Text(200, min_length=0, charset=string.printable)

    def __init__(
        self,
        customers: Sequence[str] = CUSTOMERS,
        step_cost: float = 0.01,
        wrong_cost: float = 0.1,
    ) -> None:
        if not customers or not set(customers) <= set(LISTS):
            raise ValueError(f"customers must be among {', '.join(LISTS)}, got {', '.join(customers) or 'none'}")
        if step_cost < 0 or wrong_cost < 0:
            raise ValueError(f"step_cost and wrong_cost must be >= 0, got {step_cost} and {wrong_cost}")
        self.customers, self.step_cost, self.wrong_cost = tuple(customers), step_cost, wrong_cost

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Choose a customer and a shop to start at; the option `customer` names any customer."""
        super().reset(seed=seed)
        customer = self.customers[int(self.np_random.integers(len(self.customers)))]
        customer = (options or {}).get("customer", customer)
        if customer not in LISTS:
            raise ValueError(f"customer must be one of {', '.join(LISTS)}, got {customer!r}")
        self.place = int(self.np_random.integers(len(_ITEMS)))
        self.left = list(LISTS[customer])  # the next one first
        self.reward, self.score, self.purchases = 1.0 / len(self.left), 0.0, 0
        return f"{_STREET[self.place]}.", {**self._info(), "task_description": f"{customer}."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Walk to the next shop, or buy the item of this one."""
        word, text, reward = action.strip().lower(), "", -self.step_cost
        valid, achieved = word in self._possible(), []
        if word == "buy":
            item = _ITEMS[self.place]
            self.purchases += 1
            achieved = [{"key": f"{self.purchases}: {item}", "text": f"buy {item}"}]
            right = self.left[:1] == [item]
            text = f"{'Bought' if right else 'Not'} {item}. "
            reward += self.reward if right else -self.wrong_cost
            self.left = self.left[right:]
        elif valid:
            self.place += _MOVES[word]
        else:
            text = "Not possible. "
        self.score += reward
        info = {**self._info(), "valid": valid, "achieved": achieved}
        return f"{text}{_STREET[self.place]}.", reward, not self.left, False, info

    def _possible(self) -> list[str]:
        ways = [name for name, step in _MOVES.items() if 0 <= self.place + step < len(_ITEMS)]
        return [*ways, "buy"]

    def _info(self) -> dict[str, Any]:
        """Return the info; its key `left`, the items not yet bought in their order, is for experts."""
        return {"score": self.score, "admissible": self._possible(), "left": list(self.left)}


def way_to(item: str, observation: str) -> str:
    """Return the next action on the way to buying an item, from the latest observation."""
    shops = _shops_to(item, observation)
    return "buy" if shops == 0 else "left" if shops < 0 else "right"


def distance(item: str, observation: str) -> int:
    """Return the number of shops between the latest observation's and that of an item."""
    return abs(_shops_to(item, observation))


def _shops_to(item: str, observation: str) -> int:
    """Return the number of shops to the right, negative to the left."""
    return _ITEMS.index(item) - _STREET.index(observation.rstrip(".").split()[-1])


def expert(observation: str, info: Mapping[str, Any]) -> str:
    """Return the next action on the shortest way to the next item, or `buy`."""
    return way_to(info["left"][0], observation)


def annotate(episode: Episode) -> list[Segment]:
    """Return a subgoal for each purchase, in hindsight, also for those out of turn (an annotator).

    Raises:
        ValueError: The episode is of another environment.
    """
    if episode.env != Errands.__name__:
        raise ValueError(
            f"this annotator is for Errands, got an episode of {episode.env}: set data.init_args.annotate to null, for "
            "the subgoals that your environment reports, or to an annotator of yours"
        )
    ends = [index + 1 for index, step in enumerate(episode.steps) if step.achieved]
    segments = [(start, end, episode.steps[end - 1].achieved[0].text) for start, end in itertools.pairwise([0, *ends])]
    rest = ends[-1] if ends else 0
    return segments + ([(rest, len(episode.steps), UNFINISHED_GOAL)] if rest < len(episode.steps) else [])


def optimal_return(customers: Sequence[str] = CUSTOMERS, step_cost: float = 0.01) -> float:
    """Return the best expected return over customers and starts, if the step limit permits the way."""
    actions = []
    for customer, start in itertools.product(customers, range(len(_ITEMS))):
        stops = [start, *(_ITEMS.index(item) for item in LISTS[customer])]
        actions.append(len(LISTS[customer]) + sum(abs(a - b) for a, b in itertools.pairwise(stops)))
    return 1.0 - step_cost * statistics.mean(actions)
