"""Fresh utterances in the states of stored transcripts."""

from collections.abc import Sequence

from torch import nn

from lit_rft.rollout.generator import ConversationGenerator
from lit_rft.rollout.sampling import SamplingSettings
from lit_rft.transcripts import Transcript


def sample_decisions(
    model: nn.Module,
    transcripts: Sequence[Transcript],
    sampling: SamplingSettings,
    *,
    num_slots: int = 16,
    seed: int = 0,
) -> list[Transcript]:
    """One new utterance of the model in every state of the transcripts, `num_slots` states at a time.

    Each state is read from its start: this costs about as many passes over the transcripts as they have decisions.

    Returns: a transcript of one decision for each decision given, in order: the state's ids and the new utterance.
    """
    states, names = [], []
    for transcript in transcripts:
        for decision, start in enumerate(transcript.utterance_starts):
            state = Transcript(transcript.level, transcript.end_of_turn_id, transcript.episode_id)
            state.append_prompt(transcript.input_ids[:start])
            states.append(state)
            # random numbers of its own, whatever else is sampled beside it
            names.append(f"{transcript.episode_id}/{transcript.level}/{transcript.dropped_turns + decision}")
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(states), num_slots):
            part = slice(begin, begin + num_slots)
            _answer(model, states[part], names[part], sampling, seed)
    finally:
        model.train(training)
    return states


def _answer(
    model: nn.Module, states: list[Transcript], names: list[str], sampling: SamplingSettings, seed: int
) -> None:
    generator = ConversationGenerator(model, states[0].end_of_turn_id, sampling, num_slots=len(states), seed=seed)
    slots = [generator.open(name) for name in names]
    sampled = generator.sample({slot: state.input_ids for slot, state in zip(slots, states, strict=True)})
    for slot, state in zip(slots, states, strict=True):
        state.append_utterance(sampled[slot].ids)
