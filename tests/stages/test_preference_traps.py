"""Traps of trajectory DPO: which tokens count, trailing observations, and a reference that stays where it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rft.datamodules.pairs import PairLoader, PreferencePair
from lit_rft.models import load_tokenizer
from lit_rft.models.reference import is_reference
from lit_rft.stages import DPO, OptimizerSettings, PolicySettings, TrajectoryDPO
from lit_rft.stages.preference import Trajectories
from lit_rft.testing.tiny import make_episode
from lit_rft.testing.tiny_stage import ADAPTERS, AGENT, FLAT, fit, make_stage, speak_out
from lit_rft.transcripts import ChatFormat, Transcript, collate_padded


def stage_of(model: Path, agent: Any, **policy: Any) -> TrajectoryDPO:
    policy_settings = PolicySettings(str(model), policy.pop("lora", ADAPTERS), **policy)
    return TrajectoryDPO(policy_settings, OptimizerSettings(learning_rate=5e-3), agent=agent)


@pytest.mark.parametrize("agent", [AGENT, FLAT], ids=["hierarchical", "flat"])
def test_only_what_the_agent_wrote_counts(agent: Any, tiny_model_folder: Path) -> None:
    """The log-probability of a trajectory is that of its utterances; a trailing observation changes nothing."""
    stage = stage_of(tiny_model_folder, agent)
    stage.configure_model()
    policy, chat = stage.current_policy(), ChatFormat(load_tokenizer(str(tiny_model_folder)))
    transcripts = agent.transcripts(make_episode(1, 4), chat)
    trailing = [transcript.copy() for transcript in transcripts]
    for transcript in trailing:
        transcript.append_prompt(chat.turn("Something else is here."))

    def log_prob(given: list[Transcript]) -> float:
        micro, joined = collate_padded(given, 0), Trajectories({id(transcript): 0 for transcript in given}, 1)
        with torch.no_grad():
            return float(stage.update.log_probs(policy, micro, joined)[0])

    expected = 0.0
    for transcript in transcripts:
        batch = collate_padded([transcript], 0)
        with torch.no_grad():
            logits = policy.model(batch.input_ids).logits[0].log_softmax(-1)
        places = [place for place, acts in enumerate(transcript.action_mask) if acts]
        expected += sum(float(logits[place - 1, transcript.input_ids[place]]) for place in places)
    assert log_prob(transcripts) == pytest.approx(expected, rel=1e-4)
    assert log_prob(trailing) == pytest.approx(expected, rel=1e-4)


def test_the_reference_is_the_policy_at_the_start_of_the_iteration(tiny_model_folder: Path, tmp_path: Path) -> None:
    """It does not move while the policy trains, and the next iteration's is this one's result."""
    chat = ChatFormat(load_tokenizer(str(tiny_model_folder)))
    sides = [[AGENT.transcripts(make_episode(seed, 2 + 2 * side), chat) for seed in range(2)] for side in range(2)]
    pairs = [PreferencePair(f"{n}", *both) for n, both in enumerate(zip(*sides, strict=True))]

    def adapter(stage: Any, of_reference: bool) -> list[torch.Tensor]:
        weights = {name: p for name, p in stage.named_parameters() if "lora_" in name}
        return [p.detach().clone() for name, p in weights.items() if is_reference(name) is of_reference]

    first = make_stage(tiny_model_folder)
    speak_out(first)
    fit(first, [], 0).save_checkpoint(tmp_path / "0.ckpt")
    start = adapter(first, False)
    for number in (1, 2):
        stage = stage_of(tiny_model_folder, AGENT, start_from=str(tmp_path / f"{number - 1}.ckpt"))
        fit(stage, PairLoader(pairs, batch_size=2), 3).save_checkpoint(tmp_path / f"{number}.ckpt")
        for reference, before in zip(adapter(stage, True), start, strict=True):
            assert torch.equal(reference, before)
        assert not all(torch.equal(a, b) for a, b in zip(adapter(stage, False), start, strict=True))
        start = adapter(stage, False)


def test_a_fresh_reference_is_the_model_without_adapters(tiny_model_folder: Path) -> None:
    stage = DPO(PolicySettings(str(tiny_model_folder), ADAPTERS))
    stage.configure_model()
    assert not any(is_reference(name) for name, _ in stage.named_parameters())
