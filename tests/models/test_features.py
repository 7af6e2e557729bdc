"""Features of decisions: the frozen model's, gathered at once, and their cache."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rft.agents import HierarchicalAgent, HierarchyPrompts, add_outcomes
from lit_rft.models import FeatureCache, LoraSettings, backbone_fingerprint, frozen_features, gather_features
from lit_rft.models.backbone import add_lora, final_hidden_states
from lit_rft.models.feature_cache import transcript_key
from lit_rft.models.features import join_features, split_features
from lit_rft.testing.tiny import SHAPES, let_adapters_act, make_episode, make_model, make_tokenizer
from lit_rft.transcripts import (
    ChatFormat,
    Transcript,
    collate_packed,
    collate_padded,
)


def make_transcripts(number: int = 3) -> list[Transcript]:
    chat, agent = ChatFormat(make_tokenizer()), HierarchicalAgent(HierarchyPrompts("Plan.", "Act."))
    episodes = [make_episode(seed, 2 + seed) for seed in range(number)]
    return [t for e in episodes for t in add_outcomes(agent.transcripts(e, chat), e, chat, agent)]


EACH_SHAPE = pytest.mark.parametrize("architecture", SHAPES)


def make_adapted(architecture: str = "llama") -> Any:
    model: Any = add_lora(make_model(architecture), LoraSettings(4, 8, 0.5, "all-linear"))
    let_adapters_act(model, 0.5)
    return model.train()


@EACH_SHAPE
def test_gathering_equals_a_loop_over_transcripts(architecture: str) -> None:
    model, transcripts = make_model(architecture), make_transcripts()
    for batch in (collate_padded(transcripts, 0), collate_packed(transcripts, 0, 2000)):
        features = gather_features(final_hidden_states(model, batch.input_ids, batch.position_ids), batch)
        expected: list[list[torch.Tensor]] = [[], [], []]
        for transcript in batch.transcripts:
            ids = torch.tensor(transcript.input_ids)[None]
            hidden = final_hidden_states(model, ids, torch.arange(ids.shape[1])[None])[0]
            places = (transcript.state_ends, transcript.utterance_ends, transcript.next_state_ends)
            for column, where in zip(expected, places, strict=True):
                column += [hidden[i] for i in where]
        for values, column in zip(features, expected, strict=True):
            torch.testing.assert_close(values, torch.stack(column).detach(), rtol=1e-4, atol=1e-4)
            assert not values.requires_grad


@EACH_SHAPE
def test_frozen_features_see_neither_adapters_nor_dropout_and_leave_the_model_as_it_was(architecture: str) -> None:
    model, batch = make_adapted(architecture), collate_padded(make_transcripts(), 0)
    plain = make_model(architecture)
    features = frozen_features(model, batch)
    expected = gather_features(final_hidden_states(plain, batch.input_ids, batch.position_ids), batch)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert model.training
    adapted = gather_features(final_hidden_states(model, batch.input_ids, batch.position_ids), batch)
    assert not torch.allclose(adapted.state, features.state, atol=1e-2)
    with pytest.raises(ValueError, match="need LoRA"):
        frozen_features(plain, batch)


def test_splitting_and_joining() -> None:
    batch = collate_padded(make_transcripts(), 0)
    features = frozen_features(make_adapted(), batch)
    parts = split_features(features, batch.transcripts)
    assert [part.shape[1] for part in parts] == [t.num_decisions for t in batch.transcripts]
    for a, b in zip(join_features(parts), features, strict=True):
        assert torch.equal(a, b)


def test_fingerprints_tell_models_apart_but_not_adapters() -> None:
    assert backbone_fingerprint(make_model(seed=0)) == backbone_fingerprint(make_model(seed=0))
    assert backbone_fingerprint(make_model(seed=0)) != backbone_fingerprint(make_model(seed=1))
    assert backbone_fingerprint(make_model()) != backbone_fingerprint(make_model().bfloat16())
    assert backbone_fingerprint(make_model()) != backbone_fingerprint(make_model(rms_norm_eps=1e-3))  # same weights
    adapted = make_adapted()
    before = backbone_fingerprint(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.add_(1.0)
    assert backbone_fingerprint(adapted) == before


def features_of(transcript: Transcript, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, transcript.num_decisions, 8).to(dtype)


def test_what_was_flushed_is_there_for_the_next_run(tmp_path: Path) -> None:
    transcripts = make_transcripts()
    values = [features_of(t, torch.bfloat16) for t in transcripts]
    cache = FeatureCache(tmp_path, "model")
    cache.put(transcripts[:2], values[:2])
    cache.flush()
    cache.put(transcripts[2:4], values[2:4])
    cache.flush()
    cache.put(transcripts[4:], values[4:])  # not flushed: lost with the process
    again = FeatureCache(tmp_path, "model")
    for index, transcript in enumerate(transcripts):
        cached, expected = again.get(transcript), values[index] if index < 4 else None
        assert (cached is None) if expected is None else torch.equal(cached, expected)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.partial"))


def test_other_models_and_other_data_find_nothing(tmp_path: Path) -> None:
    transcript = make_transcripts()[0]
    cache = FeatureCache(tmp_path, "model")
    cache.put([transcript], [features_of(transcript)])
    cache.flush()
    assert FeatureCache(tmp_path, "another").get(transcript) is None
    changed = transcript.copy()
    changed.input_ids[3] += 1
    assert FeatureCache(tmp_path, "model").get(changed) is None
    shorter = transcript.first_decisions(1)
    assert transcript_key(shorter) != transcript_key(transcript)


def test_newer_code_does_not_use_older_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = make_transcripts()[0]
    cache = FeatureCache(tmp_path, "model")
    cache.put([transcript], [features_of(transcript)])
    cache.flush()
    monkeypatch.setattr("lit_rft.models.feature_cache.VERSION", "other")
    assert FeatureCache(tmp_path, "model").get(transcript) is None


@pytest.mark.parametrize("when", ["before opening", "after opening"])
def test_a_torn_file_is_removed_and_made_again(tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture) -> None:
    transcripts = make_transcripts()
    cache = FeatureCache(tmp_path, "model")
    cache.put(transcripts, [features_of(t) for t in transcripts])
    cache.flush()
    (file,) = tmp_path.rglob("*.safetensors")
    later = FeatureCache(tmp_path, "model") if when == "after opening" else None
    file.write_bytes(file.read_bytes()[:-100])
    later = later or FeatureCache(tmp_path, "model")
    assert later.get(transcripts[0]) is None
    assert not file.exists()
    assert "damaged" in caplog.text
    assert later.get(transcripts[1]) is None
    later.put(transcripts, [features_of(t) for t in transcripts])
    later.flush()
    assert FeatureCache(tmp_path, "model").get(transcripts[0]) is not None


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    folder = FeatureCache(tmp_path, "model").folder
    assert folder is not None
    old, new = (folder / f".{name}.safetensors.1.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    FeatureCache(tmp_path, "model")
    assert not old.exists() and new.exists()


def test_a_file_that_cannot_be_read_is_no_reason_to_delete_it(tmp_path: Path) -> None:
    transcripts = make_transcripts()
    cache = FeatureCache(tmp_path, "model")
    cache.put(transcripts, [features_of(t) for t in transcripts])
    cache.flush()
    (file,) = tmp_path.rglob("*.safetensors")
    moved = file.rename(tmp_path / "elsewhere")
    assert cache.get(transcripts[0]) is None and cache.get(transcripts[1]) is None
    moved.rename(file)
    assert FeatureCache(tmp_path, "model").get(transcripts[0]) is not None


def test_what_is_not_retained_is_forgotten() -> None:
    transcripts = make_transcripts()
    cache = FeatureCache(None, "model")
    cache.put(transcripts, [features_of(t) for t in transcripts])
    cache.retain(transcripts[:2])
    assert [cache.get(t) is not None for t in transcripts] == [True, True] + [False] * (len(transcripts) - 2)


def test_memory_only() -> None:
    transcript = make_transcripts()[0]
    cache = FeatureCache(None, "model")
    values = features_of(transcript)
    cache.put([transcript], [values])
    cache.flush()
    assert torch.equal(cache.get(transcript), values)  # type: ignore[arg-type]
