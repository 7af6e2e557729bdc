"""HiPER's advantages against a slow loop, their limits, and training."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lit_rft.advantages import HAE
from lit_rft.agents import Agent, FlatAgent, HierarchicalAgent, HierarchyPrompts, transcript_decisions
from lit_rft.datamodules import OnlineDataModule
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.episodes import Episode, Outcome, Step, Subgoal
from lit_rft.generation import SamplingSettings
from lit_rft.rollouts import Chain, ChainGAE
from lit_rft.rollouts.rollout import utterance_lengths
from lit_rft.stages import ActingSettings, OptimizerSettings, PolicySettings, PPOEpisodes, PPOSettings
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.testing.tiny_stage import FLAT_PLAYER, PLAYER, differs, fit, trained
from lit_rft.transcripts import ChatFormat

AGENT = HierarchicalAgent(HierarchyPrompts("Plan.", "Act."))
CHAT = ChatFormat(make_tokenizer())
REWARDS, CUTS = [0.5, -0.25, 1.0, 0.0, 0.75, 0.5], [2, 3, 6]  # ends of the subgoals
RATES = {"discount": 0.9, "gae_lambda": 0.7}


def make_episode(*, terminated: bool = True, completed: bool = True) -> Episode:
    steps, score = [], 0.0
    for index, reward in enumerate(REWARDS):
        score += reward
        steps.append(Step(f"walk {index}", f"place {index}", reward, score, True))
    spans = [Subgoal(start, end, f"goal {end}", completed or end < 6, "events") for start, end in zip([0, *CUTS], CUTS)]  # noqa: B905
    outcome = Outcome(score, terminated, terminated, not terminated, "goal" if terminated else "step_limit")
    return Episode("e", "env", "1", "t", "train", {"kind": "policy"}, "Go.", "start", steps, spans, outcome)


def make_chains(episode: Episode, agent: Agent = AGENT, penalty: float = 0.0) -> list[Chain]:
    generator, chains = torch.Generator().manual_seed(3), []
    for transcript in agent.transcripts(episode, CHAT):
        lengths = torch.tensor(utterance_lengths(transcript))
        decisions = transcript_decisions(transcript, episode, agent)
        number, tokens = len(lengths), int(lengths.sum())
        outcomes = agent.outcomes(episode, transcript.level)[transcript.first_decision :][:number]
        columns = zip(*outcomes, strict=True)
        chains.append(
            Chain(
                transcript.level, lengths, *(torch.tensor(column) for column in columns),
                values=torch.randn(tokens, generator=generator, dtype=torch.float64),
                after=torch.randn(number, generator=generator, dtype=torch.float64),
                penalty=penalty * torch.rand(tokens, generator=generator, dtype=torch.float64), decisions=decisions,
            )
        )  # fmt: skip
    return chains


def firsts(chain: Chain) -> list[float]:
    return [float(row[0]) for row in chain.values.split(chain.lengths.tolist())]


def slow(chains: list[Chain], *, cut_value: float, high_lambda: float) -> tuple[list[float], list[float]]:
    """Advantages of the subgoals and actions, each as an explicit sum of weighted errors.

    Args:
        chains: of the high and the low level.
        cut_value: after the last step of the low level.
        high_lambda: of the high level.
    """
    discount, gae_lambda = RATES["discount"], RATES["gae_lambda"]
    high, low = chains
    plans, actions = firsts(high), firsts(low)
    fines = [[float(row.sum()) for row in chain.penalty.split(chain.lengths.tolist())] for chain in chains]
    spans = list(zip([0, *CUTS[:-1]], CUTS, strict=True))
    above, below = [], []
    for k, (start, end) in enumerate(spans):
        for t in range(start, end):
            total = 0.0
            for u in range(t, end):
                next_value = actions[u + 1] if u + 1 < end else plans[k + 1] if k < 2 else cut_value
                error = REWARDS[u] - fines[1][u] + discount * next_value - actions[u]
                total += (discount * gae_lambda) ** (u - t) * error
            below.append(total)
    after = 0.0 if low.decisions[-1].terminated else float(high.after[-1])
    for k in range(3):
        total, weight = 0.0, 1.0
        for m in range(k, 3):
            start, end = spans[m]
            earned = sum(discount**j * REWARDS[start + j] for j in range(end - start)) - fines[0][m]
            next_value = plans[m + 1] if m < 2 else after
            total += weight * (earned + discount ** (end - start) * next_value - plans[m])
            weight *= discount ** (end - start) * high_lambda
        above.append(total)
    return above, below


@pytest.mark.parametrize("high_lambda", [0.95, 0.3])
@pytest.mark.parametrize("penalty", [0.0, 0.5])
@pytest.mark.parametrize("end", ["terminated", "cut within", "cut after"])
def test_both_levels_equal_a_slow_loop(end: str, penalty: float, high_lambda: float) -> None:
    chains = make_chains(make_episode(terminated=end == "terminated", completed=end != "cut within"), penalty=penalty)
    high, low = chains
    last = {"terminated": 0.0, "cut within": float(low.after[-1]), "cut after": float(high.after[-1])}[end]
    estimates = HAE(high_lambda)(chains, **RATES)
    for chain, estimate, expected in zip(
        chains, estimates, slow(chains, cut_value=last, high_lambda=high_lambda), strict=True
    ):
        rows: list[Tensor] = list(estimate.advantages.split(chain.lengths.tolist()))
        assert all((row == row[0]).all() for row in rows)
        assert [float(row[0]) for row in rows] == pytest.approx(expected, abs=1e-9)
        returns = [float(row[0]) for row in estimate.returns.split(chain.lengths.tolist())]
        assert returns == pytest.approx([a + v for a, v in zip(expected, firsts(chain), strict=True)], abs=1e-9)


def test_with_lambda_1_the_high_levels_are_returns_minus_values() -> None:
    (high, low) = chains = make_chains(make_episode())
    estimate = HAE(1.0)(chains, discount=1.0, gae_lambda=1.0)
    following = [sum(REWARDS[start:]) for start in (0, 2, 3)]
    rows = estimate[0].returns.split(high.lengths.tolist())
    assert [float(row[0]) for row in rows] == pytest.approx(following)
    plans = firsts(high)
    within = [sum(REWARDS[t:end]) + (plans[k + 1] if k < 2 else 0.0)
              for k, (start, end) in enumerate(((0, 2), (2, 3), (3, 6))) for t in range(start, end)]  # fmt: skip
    assert [float(row[0]) for row in estimate[1].returns.split(low.lengths.tolist())] == pytest.approx(within)


@pytest.mark.parametrize("estimator", [HAE(), ChainGAE(), ChainGAE(True)], ids=["hae", "token", "utterance"])
def test_one_transcript_per_decision_changes_nothing(estimator: Any) -> None:
    """An agent that does not read its thoughts again has a transcript for each decision."""
    episode, whole = make_episode(), make_chains(make_episode())
    agent = dataclasses.replace(AGENT, keep_thoughts=False)
    assert len(agent.transcripts(episode, CHAT)) == 9
    parts = []
    for chain in whole:
        cuts = chain.lengths.tolist()
        tokens = zip(chain.values.split(cuts), chain.penalty.split(cuts), strict=True)
        for k, (values, penalty) in enumerate(tokens):
            row = [getattr(chain, name)[k : k + 1] for name in ("lengths", "rewards", "steps", "terminated")]
            parts.append(Chain(chain.level, *row, values, chain.after[k : k + 1], penalty, [chain.decisions[k]]))
    expected = torch.cat([estimate.advantages for estimate in estimator(whole, **RATES)])
    torch.testing.assert_close(torch.cat([e.advantages for e in estimator(parts, **RATES)]), expected)
    if not isinstance(estimator, HAE):
        return
    backwards = HAE()(parts[::-1], **RATES)  # their steps say in which order they are
    torch.testing.assert_close(torch.cat([e.advantages for e in backwards[::-1]]), expected)


def test_dropped_subgoals_leave_the_rest_as_it_was() -> None:
    high, low = make_chains(make_episode())
    full = HAE()([high, low], **RATES)
    tokens = int(high.lengths[0])
    later = Chain(
        "high", *(getattr(high, name)[1:] for name in ("lengths", "rewards", "steps", "terminated")),
        high.values[tokens:], high.after[1:], high.penalty[tokens:], high.decisions[1:],
    )  # fmt: skip
    short = HAE()([later, low], **RATES)
    torch.testing.assert_close(short[1].advantages, full[1].advantages)
    torch.testing.assert_close(short[0].advantages, full[0].advantages[tokens:])
    alone = HAE()([low], **RATES)  # no subgoal is left: the low level's own values stand in
    assert alone[0].advantages.isfinite().all() and not torch.allclose(alone[0].advantages, full[1].advantages)


def test_episodes_without_subgoals_are_refused() -> None:
    episode = dataclasses.replace(make_episode(), subgoals=[])
    with pytest.raises(ValueError, match="HAE needs episodes with subgoals, and the level 'flat' has none"):
        HAE()(make_chains(episode, FlatAgent("Act.")), **RATES)
    with pytest.raises(ValueError, match="high_lambda"):
        HAE(1.5)


# --- training --------------------------------------------------------------------------------------------------------


class Scores(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/score"]))


def train(
    model: Path, folder: Path, steps: int, advantages: Any, agent: Any = PLAYER, **ppo: Any
) -> tuple[Any, list[float]]:
    L.seed_everything(0, verbose=False)
    stage = PPOEpisodes(
        PolicySettings(str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        PPOSettings(**{"value_learning_rate": 1e-2, **ppo}), SamplingSettings(6, 1.0),

        ActingSettings(SamplingSettings(6), parallel_episodes=8, pool=PoolSettings(threads=True)), agent,
        advantages=advantages,
    )  # fmt: skip
    suite = GymSuite("vowels_env.Vowels", step_limit=2, seeds={"train": 16})
    data = OnlineDataModule(model=str(model), data_dir=str(folder), suite=suite, rounds=steps, episodes_per_round=16)
    scores = Scores()
    fit(stage, data, steps, callbacks=[scores])
    return stage, scores.values


@pytest.fixture(scope="module")
def bases() -> dict[int, dict[str, Any]]:
    """Weights of the unchanged runs, by steps of a subgoal; made when they are first needed."""
    return {}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))


def test_the_score_rises(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, scores = train(tiny_model_folder, tmp_path, 20, HAE())
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 8, scores


@pytest.mark.parametrize(
    ("subgoal_steps", "advantages", "ppo"),
    [(2, None, {}), (1, HAE(0.1), {}), (2, HAE(), {"gae_lambda": 0.1}), (2, HAE(), {"discount": 0.5})],
    ids=["estimator", "high_lambda", "gae_lambda", "discount"],
)
def test_every_knob_changes_the_result(
    subgoal_steps: int,
    advantages: Any,
    ppo: dict[str, Any],
    bases: dict[int, dict[str, Any]],
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    """One subgoal for both steps of an episode, or one for each."""
    agent = dataclasses.replace(PLAYER, subgoal_steps=subgoal_steps)
    if subgoal_steps not in bases:
        bases[subgoal_steps] = trained(train(tiny_model_folder, tmp_path, 2, HAE(), agent)[0])
    turned = trained(train(tiny_model_folder, tmp_path, 2, advantages, agent, **ppo)[0])
    assert differs(bases[subgoal_steps], turned, rtol=1e-5, atol=1e-7)


def test_a_flat_agent_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HAE needs episodes with subgoals"):
        train(tiny_model_folder, tmp_path, 1, HAE(), FLAT_PLAYER)
