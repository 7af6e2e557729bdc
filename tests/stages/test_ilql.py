"""ILQL on a tiny model: its loss against a slow loop, every knob, resume, and acting by the critics."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import exact
import lightning as L
import pytest
import torch
from torch import Tensor

from lit_rft.agents import FlatAgent
from lit_rft.generation import ConversationGenerator, SamplingSettings, ServerSettings
from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import hidden_states
from lit_rft.models.token_critic import TokenCritic, output_embedding
from lit_rft.stages import (
    ILQL,
    ActingSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicySettings,
    TokenCriticSettings,
)
from lit_rft.stages.core.token_q_update import PerturbedReadOut, token_chains
from lit_rft.testing.fork import OPTIMUM, uniform_episodes
from lit_rft.testing.tiny_stage import ADAPTERS, AGENT, FLAT, differs, fit, make_loader, updated
from lit_rft.transcripts import DecisionOutcome, Transcript, collate_padded

CRITIC = TokenCriticSettings(learning_rate=1e-2, rank=8, polyak_rate=0.5)


def make_ilql(model: Path, critic: TokenCriticSettings = CRITIC, **options: Any) -> ILQL:
    L.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {"agent": AGENT, "batching": BatchingSettings(2000), **options}
    optimizer = settings.pop("optimizer", OptimizerSettings(learning_rate=5e-3))
    return ILQL(PolicySettings(str(model), settings.pop("lora", ADAPTERS)), optimizer, critic=critic, **settings)


def after(model: Path, *, steps: int = 3, agent: Any = AGENT, **options: Any) -> dict[str, Tensor]:
    stage = make_ilql(model, agent=agent, **options)
    fit(stage, make_loader(model, agent=agent, outcomes=True), steps)
    return updated(stage)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, Tensor]:
    return after(tiny_model_folder)


# --- the loss --------------------------------------------------------------------------------------------------------


def conversation(observation_tokens: int, terminated: bool, name: str) -> Transcript:
    """Two actions of 2 and 3 tokens with their ends, after observations of a given length."""
    transcript = Transcript("flat", 2, name)
    for action in ([11, 12], [14, 15, 16]):
        transcript.append_prompt([30] * observation_tokens)
        transcript.append_utterance([*action, 2])
    transcript.outcomes = [DecisionOutcome(0.5, 1, False), DecisionOutcome(1.0, 2, terminated)]
    if not terminated:
        transcript.append_prompt([30] * observation_tokens)
    return transcript


def random_critic(stage: ILQL) -> TokenCritic:
    torch.manual_seed(3)
    critic = stage.critics.critic
    assert critic is not None
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return critic


def slow_loss(stage: ILQL, transcripts: list[Transcript], settings: TokenCriticSettings) -> dict[str, float]:
    """The losses of all tokens, one after another, in double precision."""
    policy, critic = stage.current_policy(), copy.deepcopy(stage.critics.critic)
    assert critic is not None
    critic.double()
    sums = dict.fromkeys(("q_loss", "value_loss", "conservative_loss", "policy_loss"), 0.0)
    number = 0
    for transcript in transcripts:
        hidden = hidden_states(policy.model, collate_padded([transcript], 0))[0].detach()
        logits, embedding = output_logits(policy.model, hidden).double().log_softmax(-1), output_embedding(policy.model)
        embedding = embedding.double()

        def q(heads: Any, place: int, hidden: Tensor = hidden, embedding: Tensor = embedding) -> list[Tensor]:
            rows = []
            for head in heads:
                out = head.up(torch.relu(head.down(hidden[place].double())))
                rows.append(embedding @ (out[:-1] * head.scale) + out[-1])
            return rows

        values = critic.value(hidden.double())[:, 0]
        written = [n for n, acts in enumerate(transcript.action_mask) if acts]
        ends = dict(zip(transcript.utterance_ends, transcript.outcomes, strict=True))
        for k, place in enumerate(written):
            token, outcome = transcript.input_ids[place], ends.get(place)
            reward = outcome.reward if outcome else 0.0
            time = 1 if settings.discount_each == "token" else outcome.steps if outcome else 0
            is_last = k == len(written) - 1
            state = len(transcript) - 1 if is_last else written[k + 1] - 1  # before the next token written
            following = 0.0 if outcome and outcome.terminated else float(values[state])
            target = reward + settings.discount**time * following
            value, both = float(values[place - 1]), q(critic.online, place - 1)
            sums["q_loss"] += sum((float(row[token]) - target) ** 2 for row in both)
            x = min(float(row[token]) for row in q(critic.target, place - 1)) - value
            sums["value_loss"] += abs(settings.expectile - (x < 0)) * x * x
            sums["conservative_loss"] += sum(float(row.logsumexp(0) - row[token]) for row in both) / 2
            sums["policy_loss"] -= float(logits[place - 1, token])
            number += 1
    return {name: total / number for name, total in sums.items()}


@pytest.mark.parametrize("discount_each", ["token", "step"])
def test_the_loss_equals_a_slow_loop(discount_each: Any, tiny_model_folder: Path) -> None:
    settings = dataclasses.replace(CRITIC, discount=0.8, discount_each=discount_each, conservative_coef=0.3)
    stage = make_ilql(tiny_model_folder, settings, agent=FLAT, likelihood_coef=0.7, chunk_tokens=4)
    stage.configure_model()
    random_critic(stage)
    transcripts = [conversation(3, True, "a"), conversation(5, False, "b")]
    micro = collate_padded(transcripts, 0)
    loss, sums = stage.update.loss(micro, stage.current_policy(), micro.utterance_mask.sum())
    expected = slow_loss(stage, transcripts, settings)
    for name, value in expected.items():
        assert float(sums[name].detach()) == pytest.approx(value, rel=1e-4), name
    total = 0.7 * expected["policy_loss"] + expected["q_loss"] + expected["value_loss"]
    assert float(loss.detach()) == pytest.approx(total + 0.3 * expected["conservative_loss"], rel=1e-4)


def test_observations_are_skipped_and_each_trajectory_ends() -> None:
    batch = [conversation(3, True, "a"), conversation(9, False, "b")]
    chains = token_chains(collate_padded(batch, 0))
    assert chains.rewards.tolist() == [0, 0, 0.5, 0, 0, 0, 1.0] * 2
    assert chains.last.tolist() == [False] * 6 + [True] + [False] * 6 + [True]
    assert chains.terminated.tolist() == [False] * 6 + [True] + [False] * 7
    assert chains.steps.tolist() == [0, 0, 1, 0, 0, 0, 2] * 2
    assert chains.decision.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_targets_get_no_gradient_and_the_policy_none_of_the_critics(tiny_model_folder: Path) -> None:
    for gradients in (False, True):
        settings = dataclasses.replace(CRITIC, gradients=gradients)
        stage = make_ilql(tiny_model_folder, settings, agent=FLAT, likelihood_coef=0.0)
        stage.configure_model()
        critic = random_critic(stage)
        micro = collate_padded([conversation(3, True, "a")], 0)
        loss, _ = stage.update.loss(micro, stage.current_policy(), torch.tensor(1.0))
        loss.backward()
        assert all(p.grad is None for p in critic.target.parameters())
        assert all(p.grad is not None and p.grad.any() for p in critic.value.parameters())
        assert stage.policy is not None
        reached = any(p.grad is not None and bool(p.grad.any()) for p in stage.policy.parameters())
        assert reached is gradients


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [AGENT, FLAT], ids=["hierarchical", "flat"])
def test_what_should_train_does_and_the_rest_does_not(agent: Any, tiny_model_folder: Path) -> None:
    stage = make_ilql(tiny_model_folder, agent=agent)
    stage.configure_model()
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    fit(stage, make_loader(tiny_model_folder, agent=agent, outcomes=True), 3)
    for name, parameter in stage.named_parameters():
        assert (not torch.equal(parameter, before[name])) is ("lora" in name or "token_critic" in name), name


def test_targets_follow_at_the_polyak_rate(tiny_model_folder: Path) -> None:
    stage = make_ilql(tiny_model_folder, dataclasses.replace(CRITIC, polyak_rate=0.25))
    stage.configure_model()
    critic = stage.critics.critic
    assert critic is not None
    start = [p.detach().clone() for p in critic.target.parameters()]
    fit(stage, make_loader(tiny_model_folder, outcomes=True), 1)
    for before, target, online in zip(start, critic.target.parameters(), critic.online.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * before + 0.25 * online.detach())


@pytest.mark.parametrize("batching", [BatchingSettings(1), BatchingSettings(700, packing=True)])
def test_micro_batches_change_nothing(batching: Any, base: dict[str, Tensor], tiny_model_folder: Path) -> None:
    assert not differs(base, after(tiny_model_folder, batching=batching), rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(
    "knob",
    [
        {"learning_rate": 1e-3}, {"rank": 4}, {"discount": 0.5}, {"discount_each": "step"}, {"expectile": 0.9},
        {"conservative_coef": 1.0}, {"polyak_rate": 0.1}, {"gradients": True},
    ],
    ids=lambda knob: next(iter(knob)),
)  # fmt: skip
def test_every_knob_of_the_critics_changes_the_result(
    knob: dict[str, Any], base: dict[str, Tensor], tiny_model_folder: Path
) -> None:
    other = after(tiny_model_folder, critic=dataclasses.replace(CRITIC, **knob))
    shapes_differ = any(base[name].shape != other[name].shape for name in base)
    assert shapes_differ or differs(base, other, rtol=1e-5, atol=1e-7)


def test_the_likelihood_coefficient_changes_the_result(base: dict[str, Tensor], tiny_model_folder: Path) -> None:
    assert differs(base, after(tiny_model_folder, likelihood_coef=0.0), rtol=1e-5, atol=1e-7)


def test_resume_equals_uninterrupted(tiny_model_folder: Path, tmp_path: Path) -> None:
    def loader() -> Any:
        return make_loader(tiny_model_folder, outcomes=True)

    whole = make_ilql(tiny_model_folder)
    fit(whole, loader(), 4)
    fit(make_ilql(tiny_model_folder), loader(), 2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_ilql(tiny_model_folder)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=4, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **settings)
    trainer.fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    target = {name: p for name, p in resumed.named_parameters() if ".target." in name}
    assert target
    for name, weight in updated(whole).items():
        assert torch.equal(weight, updated(resumed)[name]), name
    for name, parameter in whole.named_parameters():
        assert name not in target or torch.equal(parameter, target[name]), name


# --- acting ----------------------------------------------------------------------------------------------------------


def test_acting_shifts_probabilities_by_the_advantage(tiny_model_folder: Path) -> None:
    """The log-probabilities of sampled tokens are those of log pi + w (min Q - V), from the KV cache or not."""
    stage = make_ilql(tiny_model_folder, agent=FLAT, advantage_weight=3.0, max_advantage=0.4)
    stage.configure_model()
    critic, policy = random_critic(stage), stage.current_policy()
    assert set(policy.samplers) == {"flat"}
    sampler = policy.sampler("flat")(policy.model.eval(), [2], SamplingSettings(6, 1.0), num_slots=1)
    prompt = [5, 9, 30, 31]
    completion = sampler.sample({sampler.open("a"): prompt})[0]
    ids = [*prompt, *completion.ids]
    with torch.no_grad():
        transcript = Transcript("flat", 2)
        transcript.append_prompt(ids)
        hidden = hidden_states(policy.model, collate_padded([transcript], 0))[0]
        log_probs, embedding = output_logits(policy.model, hidden).log_softmax(-1), output_embedding(policy.model)
        q = torch.stack([head.of_vocabulary(hidden, embedding) for head in critic.target]).amin(0)  # type: ignore[operator]
        expected = (log_probs + 3.0 * (q - critic.v(hidden)[:, None]).clamp(max=0.4)).log_softmax(-1)
    for k, (token, log_prob) in enumerate(zip(completion.ids, completion.log_probs, strict=True)):
        assert log_prob == pytest.approx(float(expected[len(prompt) + k - 1, token]), abs=1e-4)
        assert not math.isclose(log_prob, float(log_probs[len(prompt) + k - 1, token]), abs_tol=1e-4)


def test_without_a_weight_the_imitating_policy_acts(tiny_model_folder: Path) -> None:
    stage = make_ilql(tiny_model_folder, advantage_weight=0.0)
    stage.configure_model()
    assert stage.current_policy().sampler("high") is ConversationGenerator
    shifted = make_ilql(tiny_model_folder, advantage_weight=2.0)
    shifted.configure_model()
    read_out = shifted.current_policy().sampler("low").keywords["read_out"]  # type: ignore[attr-defined]
    assert isinstance(read_out, PerturbedReadOut) and read_out.weight == 2.0
    assert shifted.evaluation_source()["advantage_weight"] == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.1}, r"critic.discount must be in \[0, 1\], got 1.1"), ({"polyak_rate": -1}, "polyak_rate"),
        ({"expectile": 1.0}, "expectile must be in"), ({"rank": 0}, "critic.rank must be >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"), ({"conservative_coef": -1.0}, "conservative_coef >= 0"),
        ({"discount_each": "episode"}, "must be token or step"),
    ],
)  # fmt: skip
def test_bad_settings_of_the_critics_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenCriticSettings(**settings)


def test_bad_settings_of_the_stage_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="advantage_weight must be >= 0, got -1"):
        make_ilql(tiny_model_folder, advantage_weight=-1.0)
    with pytest.raises(ValueError, match="likelihood_coef must be >= 0"):
        make_ilql(tiny_model_folder, likelihood_coef=-1.0)
    with pytest.raises(ValueError, match="does not know the critics"):
        acting = ActingSettings(server=ServerSettings("http://127.0.0.1:9"))
        make_ilql(tiny_model_folder, acting=acting, agent=FlatAgent("Act."))


def test_it_reaches_the_optimum_from_random_play(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The data earn 0.45 on average; the policy that imitates them, too; the critics find the best path."""
    settings = TokenCriticSettings(
        learning_rate=3e-3, rank=32, polyak_rate=0.2, discount=1.0, expectile=0.8, conservative_coef=0.01
    )
    stage = exact.make(ILQL, tiny_model_folder, learning_rate=1e-3, critic=settings)
    fit(stage, exact.loader(tiny_model_folder, uniform_episodes(), outcomes=True), 60)
    assert exact.average_return(stage, tiny_model_folder, tmp_path) >= 0.95 * OPTIMUM  # measured: 1.00
    assert exact.average_return(stage, tiny_model_folder, tmp_path, temperature=0.0) == OPTIMUM
    stage.advantage_weight = 0.0
    assert exact.average_return(stage, tiny_model_folder, tmp_path) < 0.7  # measured: 0.4 to 0.5
