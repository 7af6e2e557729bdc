"""Fresh utterances in stored states end as they do in acting."""

from lit_rft.generation import SamplingSettings
from lit_rft.generation.resample import sample_decisions
from lit_rft.testing.tiny import make_model
from lit_rft.transcripts import Transcript

END = 2


def test_every_end_ends_a_fresh_utterance() -> None:
    model = make_model()
    model.generation_config.eos_token_id = None
    transcript = Transcript("flat", END, "episode")
    transcript.append_prompt([5, 9, 17])
    transcript.append_utterance([40, END])
    (free,) = sample_decisions(model, [transcript], SamplingSettings(12, 1.0), END)
    said = free.utterance_ids(0)
    assert len(said) > 3
    until = said[: said.index(said[2]) + 1]
    settings = SamplingSettings(12, 1.0, stop_strings=(f"<{said[2]}>",))
    decoded = {"decode": lambda ids: "".join(f"<{token}>" for token in ids)}
    (by_token,) = sample_decisions(model, [transcript], SamplingSettings(12, 1.0), [END, said[2]])
    (by_text,) = sample_decisions(model, [transcript], settings, END, **decoded)
    assert by_token.utterance_ids(0) == by_text.utterance_ids(0) == until


def test_levels_have_sampling_of_their_own() -> None:
    """In the order of the decisions; the other level's utterances do not change."""
    model = make_model()
    transcripts = []
    for level in ("high", "low", "high"):
        transcript = Transcript(level, END, f"episode {len(transcripts)}")
        transcript.append_prompt([5, 9, 17 + len(transcripts)])
        transcript.append_utterance([40, END])
        transcripts.append(transcript)
    free, short = SamplingSettings(12, 1.0), {"high": SamplingSettings(4, 1.0)}
    plain = sample_decisions(model, transcripts, free, END)
    mixed = sample_decisions(model, transcripts, free, END, level_sampling=short, num_slots=1)
    assert [state.level for state in mixed] == ["high", "low", "high"]
    assert min(len(state.utterance_ids(0)) for state in plain) > 4
    for state, other, limit in zip(mixed, plain, (4, None, 4), strict=True):
        assert list(state.utterance_ids(0)) == list(other.utterance_ids(0))[:limit]
