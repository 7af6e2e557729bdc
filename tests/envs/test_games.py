"""The shipped games: their optimum is the one that a search finds, and their experts reach it."""

import copy
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from lit_rft.envs import EpisodeEnv, EpisodeSpec
from lit_rft.envs.games import Errands, GuessNumber, KeyRooms, PriceLookup, errands, guess, prices, rooms
from lit_rft.episodes import Episode, Outcome, Step, apply_annotator
from lit_rft.testing.tiny import make_episode

GAMES: list[tuple[type[Any], Any]] = [
    (Errands, errands),
    (GuessNumber, guess),
    (KeyRooms, rooms),
    (PriceLookup, prices),
]


def play(env: Any, spec: EpisodeSpec, act: Callable[[str, Any], str]) -> tuple[float, dict[str, Any]]:
    """The return of an episode and its last info."""
    observation, info = env.reset(spec)
    total, ended = 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(act(observation, info))
        total, ended = total + reward, terminated or truncated
    return total, info


@pytest.mark.parametrize(("game", "module"), GAMES)
def test_the_expert_earns_the_optimum(game: type[Any], module: Any) -> None:
    env = EpisodeEnv(game())
    results = [play(env, EpisodeSpec("e", seed=seed, step_limit=30), module.expert) for seed in range(2000)]
    assert all(info["score"] == pytest.approx(total) for total, info in results)
    assert sum(total for total, _ in results) / len(results) == pytest.approx(module.optimal_return(), abs=0.03)


@pytest.mark.parametrize(("game", "module"), GAMES)
def test_admissible_actions_are_valid_and_random_ones_are_worse(game: type[Any], module: Any) -> None:
    rng = random.Random(0)
    env = EpisodeEnv(game())
    totals = []
    for seed in range(200):
        _, info = env.reset(EpisodeSpec("e", seed=seed, step_limit=12))
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, info = env.step(rng.choice(info["admissible"]))
            assert info["valid"]
            total, ended = total + reward, terminated or truncated
        totals.append(total)
    assert sum(totals) / len(totals) < module.optimal_return() - 0.2


@pytest.mark.parametrize(("game", "module"), GAMES)
def test_a_seed_is_an_episode(game: type[Any], module: Any) -> None:
    first, second, other = (game() for _ in range(3))
    starts = [(env.reset(seed=seed), vars(env)) for env, seed in ((first, 7), (second, 7), (other, 8))]
    states = [{name: value for name, value in state.items() if not name.startswith("_")} for _, state in starts]
    assert starts[0][0] == starts[1][0] and states[0] == states[1] != states[2]


@pytest.mark.parametrize(("game", "module"), GAMES)
@pytest.mark.parametrize("action", ["", "a b\nc", "9" * 5000, "-1", "answer", "price dragon", "\ud800", "²"])
def test_other_actions_are_invalid(game: type[Any], module: Any, action: str) -> None:
    env = EpisodeEnv(game())
    env.reset(EpisodeSpec("e", seed=0))
    observation, reward, terminated, _, info = env.step(action)
    assert observation and reward <= 0 and not terminated and info["valid"] is False


def test_bisection_is_optimal() -> None:
    """Against the best of all strategies, found by dynamic programming over ranges."""

    def best(size: int, guesses: int) -> int:
        """The largest number of numbers, of a range of this size, that can be found."""
        if size <= 0 or guesses == 0:
            return 0
        return max(1 + best(below, guesses - 1) + best(size - 1 - below, guesses - 1) for below in range(size))

    for highest, guesses in itertools.product([1, 4, 9, 12], [1, 2, 3, 4]):
        assert guess.optimal_return(highest, guesses) == best(highest + 1, guesses) / (highest + 1)


def test_no_way_through_the_rooms_is_shorter_than_the_experts() -> None:
    """Against a breadth-first search over copies of the environment."""
    returns = []
    for seed in range(40):
        env = KeyRooms(step_cost=0.05)
        _, info = env.reset(seed=seed)
        queue, seen = deque([(env, info["admissible"])]), set()
        score = None
        while score is None:
            state, admissible = queue.popleft()
            for action in admissible:
                after = copy.copy(state)
                _, _, done, _, info = after.step(action)
                if done:
                    score = info["score"]
                    break
                if (key := (after.position, after.has_key)) not in seen:
                    seen.add(key)
                    queue.append((after, info["admissible"]))
        returns.append(score)
        total, _ = play(EpisodeEnv(KeyRooms(step_cost=0.05)), EpisodeSpec("e", seed=seed, step_limit=12), rooms.expert)
        assert total == pytest.approx(score)
    assert rooms.optimal_return(step_cost=0.05) == pytest.approx(sum(returns) / len(returns), abs=0.05)


def test_rooms_report_what_was_achieved() -> None:
    env = EpisodeEnv(KeyRooms())
    observation, info = env.reset(EpisodeSpec("e", seed=3, step_limit=12))
    achieved = []
    while observation != "The door is open.":
        observation, _, _, _, info = env.step(rooms.expert(observation, info))
        achieved += [condition.text for condition in info["achieved"]]
    assert achieved == ["take the key", "open the door"] and info["success"]
    assert env.step("open")[4]["valid"]  # the door stays open, and the environment harmless


def test_no_way_along_the_street_is_shorter_than_the_experts() -> None:
    """Against a breadth-first search over copies of the environment, for each customer and shop."""
    returns = []
    for customer, place in itertools.product(Errands().customers, range(6)):
        env = Errands()
        _, info = env.reset(seed=0, options={"customer": customer})
        env.place = place
        queue, seen, score = deque([(env, ["left", "right", "buy"])]), set(), None
        while score is None:
            state, admissible = queue.popleft()
            for action in admissible:
                after = copy.copy(state)
                _, reward, done, _, info = after.step(action)
                score = info["score"] if done else score
                if reward > -after.wrong_cost and (key := (after.place, len(info["left"]))) not in seen:
                    seen.add(key)
                    queue.append((after, info["admissible"]))
        returns.append(score)
    assert sum(returns) / len(returns) == pytest.approx(errands.optimal_return())


def test_a_purchase_out_of_turn_costs_and_ends_a_subgoal() -> None:
    """Subgoals are purchases in hindsight, also the wrong ones."""
    env = EpisodeEnv(Errands())
    observation, info = env.reset(EpisodeSpec("e", seed=0, options={"customer": "Anna"}, step_limit=40))
    assert info["left"] == ["pills", "bread"] and info["task_description"] == "Anna."
    steps, rewards, terminated = [], [], False
    for item in ("books", "pills", "bread"):
        action = ""
        while action != "buy":
            action = errands.way_to(item, observation)
            observation, reward, terminated, _, info = env.step(action)
            rewards.append(round(reward, 3))
            steps.append(Step(action, observation, reward, info["score"], info["valid"], info["achieved"]))
    assert [r for r in rewards if r != -0.01] == [-0.11, 0.49, 0.49] and terminated
    outcome = Outcome(steps[-2].score, False, False, True, "step_limit")  # cut before the last purchase
    source = {"kind": "expert"}
    episode = Episode("e", "Errands", "1", "Errands", "train", source, "Anna.", "bakery.", steps[:-1], [], outcome)
    subgoals = apply_annotator(episode, errands.annotate, "purchases").subgoals
    assert [(s.goal, s.completed) for s in subgoals] == [
        ("buy books", True), ("buy pills", True), ("continue with the task", False),
    ]  # fmt: skip
    assert [s.end for s in subgoals[:2]] == [i + 1 for i, s in enumerate(steps[:-1]) if s.action == "buy"]


def test_options_choose_the_problem() -> None:
    env = GuessNumber()
    env.reset(options={"number": 4})
    assert env.step("4")[0] == "Right."
    shop = PriceLookup()
    assert shop.reset(seed=0, options={"item": "vase"})[0] == "What does the vase cost?"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Errands(["Zoe"]), "customers must be among Anna, .* got Zoe"),
        (lambda: Errands([]), "customers must be among Anna, .* got none"),
        (lambda: Errands(wrong_cost=-1), "got 0.01 and -1"),
        (lambda: Errands().reset(options={"customer": "Zoe"}), "customer must be one of Anna, .* got 'Zoe'"),
        (lambda: GuessNumber(highest=0), "got 0 and 3"),
        (lambda: GuessNumber(guesses=0), "got 9 and 0"),
        (lambda: KeyRooms(size=1), "got 1 and"),
        (lambda: KeyRooms(step_cost=-1), "got 3 and -1"),
        (lambda: PriceLookup(tool_cost=-1), "tool_cost must be >= 0, got -1"),
        (lambda: GuessNumber().reset(options={"number": 10}), r"number must be in 0\.\.9, got 10"),
        (lambda: PriceLookup().reset(options={"item": "dragon"}), "item must be one of lamp, .* got 'dragon'"),
    ],
)
def test_bad_arguments_are_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_call_of_the_tool_costs_decides_whether_it_pays() -> None:
    assert prices.optimal_return(0.25) == 0.75
    assert prices.optimal_return(2.0) == pytest.approx(1 / 90)


def test_the_mean_way_through_nine_rooms_has_six_steps() -> None:
    """Two different rooms of nine are 2 steps apart on average: 2 to the key, 2 to the door, and one action at each."""
    assert rooms.optimal_return(3, 0.02) == pytest.approx(1 - 6 * 0.02)


def test_the_annotator_of_errands_refuses_other_games() -> None:
    with pytest.raises(ValueError, match=r"is for Errands, got an episode of .*: set data.init_args.annotate to null"):
        errands.annotate(make_episode(0, 3))
