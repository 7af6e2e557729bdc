"""Losses with demonstrations: against slow loops in float64, their knobs, and training with traces."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import letter_sum
from torch import Tensor

from lit_rft import MixedPolicyGRPO, SamplingSettings
from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.losses import CHORD, HPT, SRFT, RLPlus
from lit_rft.losses.rl_plus import multiple_importance_losses
from lit_rft.models.backbone import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import MixedPolicyLoss, Normalizer, RolloutBatch
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import PromptFormat

B, T = 6, 5
LENGTHS = [5, 3, 1, 4, 2, 4]
OFF = [False, False, False, True, True, True]  # the fourth is a member of its group, the last two are imitated


def make_batch() -> tuple[Tensor, RolloutBatch]:
    generator = torch.Generator().manual_seed(0)
    log_probs = -2 * torch.rand(B, T, generator=generator, dtype=torch.float64) - 0.05
    tokens = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    imitated = tokens & torch.tensor([False] * 4 + [True] * 2)[:, None]
    batch = RolloutBatch(
        tokens & ~imitated, torch.tensor(OFF), torch.randn(B, generator=generator, dtype=torch.float64),
        old_log_probs=log_probs + 0.2 * torch.randn(B, T, generator=generator, dtype=torch.float64),
        imitated=imitated, group_reward=torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5, 0.0]),
        entropy=2 * torch.rand(B, T, generator=generator, dtype=torch.float64),
    )  # fmt: skip
    return log_probs, batch


def normalizer(batch: RolloutBatch, step: int = 0) -> Normalizer:
    assert batch.imitated is not None
    return Normalizer(batch.mask.sum(), torch.tensor(4), 7, batch.imitated.sum(), step)


def policy_loss(
    log_probs: Tensor, batch: RolloutBatch, rows: list[int], weights: dict[int, float] | None = None
) -> float:
    """PPO's clipped loss and LUFFY's shaped one, over some rows, with weights of their advantages."""
    total = 0.0
    for row in rows:
        advantage = float(batch.advantages[row]) * (weights or {}).get(row, 1.0)
        for t in range(LENGTHS[row]):
            p = math.exp(float(log_probs[row, t]))
            if OFF[row]:
                total -= p / (p + 0.1) * advantage
            else:
                assert batch.old_log_probs is not None
                ratio = p / math.exp(float(batch.old_log_probs[row, t]))
                total -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    return total / sum(LENGTHS[:4])


def likelihood(log_probs: Tensor, rows: list[int], weight: Callable[[int, int], float] = lambda row, t: 1.0) -> float:
    terms = [-weight(row, t) * float(log_probs[row, t]) for row in rows for t in range(LENGTHS[row])]
    return sum(terms) / sum(LENGTHS[4:])


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_hpt_equals_a_slow_loop(gate: float) -> None:
    log_probs, batch = make_batch()
    loss, sums = HPT(gate)(log_probs, batch, normalizer=normalizer(batch))
    learned, imitated = ([0, 1, 3], [5]) if gate == 0.0 else ([], [4, 5])
    assert float(loss) == pytest.approx(policy_loss(log_probs, batch, learned) + likelihood(log_probs, imitated))
    share = sums["imitated_fraction"]
    assert float(share[0] / share[1]) == pytest.approx(sum(LENGTHS[row] for row in imitated) / sum(LENGTHS[4:]))


@pytest.mark.parametrize(("step", "mu"), [(0, 0.9), (50, 0.475), (100, 0.05), (500, 0.05)])
@pytest.mark.parametrize("token_weights", [True, False])
def test_chord_equals_a_slow_loop(token_weights: bool, step: int, mu: float) -> None:
    log_probs, batch = make_batch()
    loss, _ = CHORD(0.9, 0.05, 100, token_weights)(log_probs, batch, normalizer=normalizer(batch, step))

    def phi(row: int, t: int) -> float:
        p = math.exp(float(log_probs[row, t]))
        return p * (1 - p) if token_weights else 1.0

    expected = (1 - mu) * policy_loss(log_probs, batch, [0, 1, 2, 3]) + mu * likelihood(log_probs, [4, 5], phi)
    assert float(loss) == pytest.approx(expected)
    assert CHORD(0.1, None).weight(1000) == pytest.approx(0.1)


def test_srft_equals_a_slow_loop() -> None:
    log_probs, batch = make_batch()
    assert batch.entropy is not None
    batch.advantages[:3] = torch.tensor([1.0, -0.5, 0.7])
    loss, _ = SRFT(0.5, 0.2)(log_probs, batch, normalizer=normalizer(batch))
    entropy = [float(batch.entropy[row, : LENGTHS[row]].mean()) for row in range(B)]
    weights = {row: 0.2 * math.exp(entropy[row]) for row in (0, 2)}  # of the successes
    expected = policy_loss(log_probs, batch, [0, 1, 2, 3], weights)
    expected += likelihood(log_probs, [4, 5], lambda row, t: 0.5 * math.exp(-entropy[row]))
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("exploration", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("known", [False, True])
def test_rl_plus_equals_a_slow_loop(known: bool, exploration: float) -> None:
    log_probs, batch = make_batch()
    behaviour = torch.full((B, T), math.nan, dtype=torch.float64)
    if known:
        behaviour[3, :2] = torch.tensor([-0.5, -1.0])
    batch.behaviour_log_probs = behaviour
    loss, _ = RLPlus(exploration)(log_probs, batch, normalizer=normalizer(batch))
    total = 0.0
    for t in range(LENGTHS[3]):
        p = math.exp(float(log_probs[3, t]))
        omega = math.exp(float(behaviour[3, t])) if known and t < 2 else (p + 1) / 2
        total -= 2 * p / (omega + p) * float(batch.advantages[3]) * (1 - p) ** exploration
    expected = policy_loss(log_probs, batch, [0, 1, 2]) + total / sum(LENGTHS[:4])
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.02, 0.2, -1.0), (0.2, 0.02, 1.0), (None, None, 1.0)])
def test_rl_plus_clips_completions_by_its_settings(low: float | None, high: float | None, sign: float) -> None:
    log_probs, batch = make_batch()
    assert batch.old_log_probs is not None
    batch.advantages[:3] = sign
    ratios = [float(r) for row in range(3) for r in (log_probs - batch.old_log_probs)[row, : LENGTHS[row]].exp()]

    def term(ratio: float, below: float | None, above: float | None) -> float:
        bounded = max(ratio, -math.inf if below is None else 1 - below)
        return -min(ratio * sign, min(bounded, math.inf if above is None else 1 + above) * sign)

    expected = sum(term(ratio, low, high) - term(ratio, 0.2, 0.2) for ratio in ratios) / sum(LENGTHS[:4])
    changed, default = (
        float(loss(log_probs, batch, normalizer=normalizer(batch))[0])
        for loss in (RLPlus(clip_low=low, clip_high=high), RLPlus())
    )
    assert abs(expected) > 1e-4
    assert changed - default == pytest.approx(expected)


@pytest.mark.parametrize(("method", "share"), [(CHORD(0.9, None), 0.1), (SRFT(), 1.0)], ids=["chord", "srft"])
def test_the_loss_of_the_setting_is_the_one_of_reinforcement(method: Any, share: float) -> None:
    log_probs, batch = make_batch()
    batch.advantages[:3] = -batch.advantages[:3].abs()  # SRFT weights successes only

    def value(loss: Any) -> float:
        return float(loss(log_probs, batch, normalizer=normalizer(batch))[0])

    inner = MixedPolicyLoss(policy_shaping=None, clip_low=0.05)
    other = CHORD(0.9, None, loss=inner) if isinstance(method, CHORD) else SRFT(loss=inner)
    difference = value(inner) - value(MixedPolicyLoss())
    assert abs(difference) > 1e-3
    assert value(other) - value(method) == pytest.approx(share * difference)


def test_the_gradient_of_a_traces_tokens_keeps_weights_and_old_policy_fixed() -> None:
    log_probs = torch.tensor([[-0.3, -1.5]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    losses = multiple_importance_losses(log_probs, advantages)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    torch.testing.assert_close(gradient, losses.detach())  # that of exp


LOSSES: list[Any] = [HPT(), CHORD(), CHORD(token_weights=False), SRFT(), RLPlus()]
IDS = ["hpt", "chord", "chord-mu", "srft", "rl_plus"]


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_losses_and_diagnostics_add_up_over_micro_batches(loss: Any) -> None:
    log_probs, batch = make_batch()
    full, sums = loss(log_probs, batch, normalizer=normalizer(batch))
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = RolloutBatch(*(None if value is None else value[rows] for value in vars(batch).values()))
        parts.append(loss(log_probs[rows], part, normalizer=normalizer(batch)))
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), full)
    for name, value in sums.items():
        torch.testing.assert_close(torch.stack([part[1][name] for part in parts]).sum(0), value)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_padding_has_no_gradient_and_weights_have_none(loss: Any) -> None:
    log_probs, batch = make_batch()
    assert batch.imitated is not None
    x = log_probs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, batch, normalizer=normalizer(batch))[0], x)
    tokens = batch.mask | batch.imitated
    assert (gradient[~tokens] == 0).all() and gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("loss", LOSSES[:4], ids=IDS[:4])
def test_stages_without_traces_are_refused(loss: Any) -> None:
    log_probs, batch = make_batch()
    bare = dataclasses.replace(batch, imitated=None, group_reward=None, entropy=None)
    with pytest.raises(ValueError, match="use it with GRPO's stages"):
        loss(log_probs, bare, normalizer=normalizer(batch))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CHORD(mu=1.5), "mu"), (lambda: CHORD(decay_steps=0), "decay_steps must be >= 1, got 0"),
        (lambda: SRFT(imitation_weight=-1.0), "imitation_weight"), (lambda: RLPlus(exploration=-1.0), "exploration"),
        (lambda: RLPlus(clip_low=-0.1), "loss.clip_low"), (lambda: RLPlus(clip_high=-0.1), "loss.clip_high"),
        (lambda: ObjectiveSettings(imitated_traces=-1), "imitated_traces must be >= 0 or null"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- training --------------------------------------------------------------------------------------------------------


def share_of_vowels(completions: Any, rows: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def loader(model: Path) -> PromptLoader:
    form, trace, prompts = PromptFormat(load_tokenizer(str(model))), "aeiou", []
    for n in range(2):
        problem = Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", (trace,))
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), [form.completion_ids(trace)], [trace], [[]]))
    return PromptLoader(prompts, batch_size=2)


class Rewards(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reward"]))


def train(
    model: Path, loss: Any, steps: int, traces: int, reward: Any = share_of_vowels
) -> tuple[MixedPolicyGRPO, list[float]]:
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=4, traces_per_group=traces, imitated_traces=1, entropy_coef=0.0),
        SamplingSettings(max_new_tokens=8, temperature=1.0), reward=reward, loss=loss,
    )  # fmt: skip
    rewards = Rewards()
    fit(stage, loader(model), steps, callbacks=[rewards])
    return stage, rewards.values


@pytest.mark.parametrize(
    ("loss", "traces"), [(HPT(0.3), 0), (CHORD(decay_steps=12), 0), (SRFT(), 1), (RLPlus(), 1)],
    ids=["hpt", "chord", "srft", "rl_plus"],
)  # fmt: skip
def test_the_reward_rises(loss: Any, traces: int, tiny_model_folder: Path) -> None:
    _, rewards = train(tiny_model_folder, loss, 32, traces)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards


def test_imitated_traces_reach_the_loss_beside_those_of_the_groups(tiny_model_folder: Path) -> None:
    stage, _ = train(tiny_model_folder, SRFT(), 1, 1)
    assert [rollout.off_policy for rollout in stage.samples] == [False, False, False, True] * 2


@pytest.mark.parametrize(
    "settings",
    [
        ((SRFT(), 1), (MixedPolicyLoss(), 1), (SRFT(0.1), 1), (SRFT(0.5, 2.0), 1)),
        ((CHORD(), 0), (CHORD(0.5), 0), (CHORD(decay_steps=3), 0), (CHORD(token_weights=False), 0)),
        ((HPT(), 0), (HPT(5.0), 0), (HPT(loss=MixedPolicyLoss(normalizer="max_length")), 0)),
        ((RLPlus(), 1), (MixedPolicyLoss(), 1), (RLPlus(2.0), 1)),
    ],
    ids=["srft", "chord", "hpt", "rl_plus"],
)
def test_every_knob_changes_the_result(settings: Any, tiny_model_folder: Path) -> None:
    runs = [trained(train(tiny_model_folder, loss, 4, traces, letter_sum)[0]) for loss, traces in settings]
    for other in runs[1:]:
        assert differs(runs[0], other, rtol=1e-5, atol=1e-7)
