"""New utterances in the states of stored transcripts."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from lit_rft.generation.generator import ConversationGenerator
from lit_rft.generation.sampling import SamplingSettings
from lit_rft.transcripts import Transcript


def sample_decisions(
    model: nn.Module,
    transcripts: Sequence[Transcript],
    sampling: SamplingSettings,
    end_ids: int | Sequence[int],
    *,
    num_slots: int = 16,
    seed: int = 0,
    decode: Callable[[list[int]], str] | None = None,
    level_sampling: Mapping[str, SamplingSettings] | None = None,
) -> list[Transcript]:
    """Sample a new utterance in every state of the transcripts, `num_slots` states at a time.

    Each state is prefilled from its start: the cost is about one pass over the transcripts per decision.

    Args:
        model: with or without adapters.
        transcripts: with the states.
        sampling: temperature, limits and stop criteria.
        end_ids: tokens that end an utterance; see `ConversationGenerator`.
        num_slots: maximum number of states at the same time.
        seed: of the sampling.
        decode: token ids to text, for stop strings.
        level_sampling: by level, in place of `sampling`.

    Returns:
        A transcript of one decision for each decision, in order: the state's ids and the new utterance.
    """
    if any(transcript.allowed for transcript in transcripts):
        raise ValueError("fresh utterances are not sampled among given choices: set value_actions to dataset")
    states, names = [], []
    for transcript in transcripts:
        for decision, start in enumerate(transcript.utterance_starts):
            state = Transcript(transcript.level, transcript.end_of_turn_id, transcript.episode_id)
            state.append_prompt(transcript.input_ids[:start])
            states.append(state)
            # a separate random generator, independent of the batch
            names.append(f"{transcript.episode_id}/{transcript.level}/{transcript.first_decision + decision}")
    training = model.training
    model.eval()
    try:
        by_level = level_sampling or {}
        keys = [state.level if state.level in by_level else None for state in states]
        for key in dict.fromkeys(keys):  # a generator has one sampling
            rows = [row for row, of_row in enumerate(keys) if of_row == key]
            chosen = sampling if key is None else by_level[key]
            for part in (rows[begin : begin + num_slots] for begin in range(0, len(rows), num_slots)):
                generator = ConversationGenerator(model, end_ids, chosen, num_slots=len(part), seed=seed, decode=decode)
                _answer(generator, [states[row] for row in part], [names[row] for row in part])
    finally:
        model.train(training)
    return states


def _answer(generator: ConversationGenerator, states: list[Transcript], names: list[str]) -> None:
    slots = [generator.open(name) for name in names]
    sampled = generator.sample({slot: state.input_ids for slot, state in zip(slots, states, strict=True)})
    for slot, state in zip(slots, states, strict=True):
        state.append_utterance(sampled[slot].ids)
