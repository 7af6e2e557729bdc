"""The share of the actor's weight on wasted actions: by hand, and against loops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_modules import load

from lit_rft.episodes import Episode, write_episodes
from lit_rft.testing import make_episode


@pytest.fixture(scope="module")
def weights() -> Any:
    return load("offline_weights")


def game(actions: str, *, success: bool) -> Episode:
    """Make a game with a reward of 1 at its end, if it succeeds; upper-case actions are not accepted."""
    episode = make_episode(num_steps=len(actions), subgoals=False)
    episode.id, episode.outcome.success = f"{actions}-{success}", success
    for step, action in zip(episode.steps, actions, strict=True):
        step.action, step.reward, step.achieved = action, 0.0, []
        step.valid = not action.isupper()
    episode.steps[-1].reward = float(success)
    return episode


def test_wasted_actions_are_repeated_or_not_accepted(weights: Any) -> None:
    assert weights.wasted_actions(game("abaCd", success=True)) == [False, False, True, True, False]


def test_values_are_mean_returns_of_like_decisions(weights: Any) -> None:
    """Of the task, the number of met conditions and pairs of actions so far."""
    data = weights.decisions([game("abc", success=True), game("ab", success=False)])
    g = 0.97
    first = (g**2 + g + 0 + 0) / 4
    torch.testing.assert_close(data.values, torch.tensor([first, first, 1.0, first, first], dtype=torch.float64))
    assert data.last.tolist() == [False, False, True, False, True]
    assert data.failed.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("temperature", [0.3, 0.03])
def test_weights_are_those_of_a_slow_loop(weights: Any, temperature: float) -> None:
    games = [game("abc", success=True), game("aAa", success=False)]
    data = weights.decisions(games)
    values, expected = data.values.tolist(), []
    for start in (0, 3):
        for i in range(3):  # one step
            after = 0.97 * values[start + i + 1] if i < 2 else 0.0
            advantage = games[start // 3].steps[i].reward + after - values[start + i]
            expected.append(min(20.0, math.exp(advantage / temperature)))
    torch.testing.assert_close(data.weights(0.0, temperature), torch.tensor(expected, dtype=torch.float64))
    shares, total = data.shares(data.weights(0.0, temperature)), sum(expected)
    assert shares["wasted"] == pytest.approx(sum(expected[4:]) / total, abs=1e-4)
    assert shares["failed"] == pytest.approx(sum(expected[3:]) / total, abs=1e-4)
    assert shares["effective"] == pytest.approx(total**2 / sum(w * w for w in expected) / 6, abs=1e-4)


def test_sharper_weights_leave_failed_games(weights: Any, tmp_path: Path) -> None:
    games = [game(actions, success=actions != "aAa") for actions in ("abc", "aAa", "abd", "aAa")]
    for number, episode in enumerate(games):
        episode.id = str(number)
    results = weights.measure(games)
    assert results["all games"] == {"wasted": 0.3333, "rewarded": 0.1667, "failed": 0.5, "effective": 1.0}
    assert results["solved games"] == {"wasted": 0.0, "rewarded": 0.3333, "failed": 0.0, "effective": 0.5}
    assert results["best quarter"] == results["solved games"] | {"effective": 0.25}
    failed = [results[f"lambda-returns, temperature {t}"]["failed"] for t in ("0.3", "0.1", "0.03")]
    assert failed == sorted(failed, reverse=True) and 0.5 > failed[0] > 2 * failed[-1]


def test_command(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "FILE", tmp_path / "weights.json")
    files = [tmp_path / f"seed-{seed}" / "medium" / "all.jsonl" for seed in (4, 5)]
    for file, second in zip(files, ("aaa", "bcd"), strict=True):
        write_episodes(file, [game("abc", success=True), game(second, success=False)])
    weights.main(["households", *map(str, files)])
    assert "| all games | 17 (0 to 33) | 17 (17 to 17) | 50 (50 to 50) |" in capsys.readouterr().out
    weights.main(["--report"])
    assert "| all games | 17 (0 to 33) |" in capsys.readouterr().out
    for arguments in ([], ["households"], ["households", str(files[0]), "--report"]):
        with pytest.raises(SystemExit):
            weights.main(arguments)
