"""Records of rollouts and evaluation results, with the texts of their tokens."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lit_rft.agents import PlayedEpisode
from lit_rft.records import Conversation, RolloutRecord, Turn
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.update_record import UpdateRecord
from lit_rft.transcripts import Transcript

_DIGITS = 4  # of token-wise values


class TokenTexts:
    """Texts of tokens, which make up the decoded text.

    A character of several tokens is the text of its last one; the others are empty.

    Args:
        tokenizer: of the policy.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        for token in set(ids) - self._texts.keys():
            self._texts[token] = self.decode([token])
        texts = [self._texts[token] for token in ids]
        full = self.decode(ids)
        return texts if "".join(texts) == full else self._one_by_one(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _one_by_one(self, ids: Sequence[int]) -> list[str]:
        """Decode each token behind the few before it, for tokens whose text depends on their neighbours."""
        texts: list[str] = []
        start = read = 0  # tokens before `read` have been decoded; `start` is where their last text begins
        for end in range(1, len(ids) + 1):
            before, text = self.decode(ids[start:read]), self.decode(ids[start:end])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
                texts.append("")  # the middle of a character
                continue
            texts.append(text[len(before) :])
            start, read = read, end
        return texts


def record_rollout(
    rollout: Rollout, texts: TokenTexts, update: UpdateRecord | None = None, imitated: bool = False
) -> RolloutRecord:
    """Make the record of a rollout.

    Args:
        rollout: after its batch's updates.
        texts: of the policy's tokenizer.
        update: token-wise values of the updates.
        imitated: whether it is a trace outside of its group.
    """
    rows = [_row(rollout.sampled_log_probs, k, len(rollout.transcripts)) for k in range(len(rollout.transcripts))]
    conversations = [_conversation(t, texts, row) for t, row in zip(rollout.transcripts, rows, strict=True)]
    for k, (transcript, conversation) in enumerate(zip(rollout.transcripts, conversations, strict=True)):
        conversation.advantages = _numbers(_row(rollout.token_advantages, k, len(conversations)))
        if values := update and update.of(transcript):
            conversation.log_probs = _numbers(values.log_probs)
            conversation.old_log_probs = _numbers(values.old_log_probs)
            conversation.entropy = _numbers(values.entropy)
            conversation.clipped = values.clipped.nonzero().flatten().tolist()
            advantages = _numbers(values.advantages)
            if any(abs(advantage - rollout.advantage) > 10**-_DIGITS for advantage in advantages):
                conversation.advantages = advantages
    return RolloutRecord(
        rollout.id, rollout.text, rollout.off_policy, rollout.finished, float(rollout.reward),
        {name: value for name, value in rollout.reward_parts.items() if math.isfinite(value)},
        round(float(rollout.advantage), _DIGITS) if math.isfinite(rollout.advantage) else 0.0,
        conversations, rollout.ground_truth, rollout.episode, imitated,
    )  # fmt: skip


def record_episode(played: PlayedEpisode, texts: TokenTexts) -> RolloutRecord:
    """Make the record of an episode of an evaluation; the reward is its score."""
    episode = played.episode
    rows = [[value for decision in row for value in decision] for row in played.log_probs]
    conversations = [
        _conversation(t, texts, _row(rows, k, len(played.transcripts))) for k, t in enumerate(played.transcripts)
    ]
    text = "\n".join(step.action for step in episode.steps)
    finished = episode.outcome.reason != "context_full"
    return RolloutRecord(
        episode.id, text, False, finished, episode.outcome.score, conversations=conversations, episode=episode
    )


def record_answer(answer: Any) -> RolloutRecord:
    """Make the record of an `Answer` of an evaluation; its text stands for its tokens."""
    turns = [Turn(answer.prompt, [answer.completion])]
    return RolloutRecord(
        answer.id, answer.completion, False, answer.finished, float(answer.reward),
        conversations=[Conversation("completion", turns)], ground_truth=answer.ground_truth,
    )  # fmt: skip


def _conversation(transcript: Transcript, texts: TokenTexts, sampled: Iterable[float]) -> Conversation:
    turns, end = [], 0
    for k, start in enumerate(transcript.utterance_starts):
        turns.append(Turn(texts.decode(transcript.input_ids[end:start]), texts(transcript.utterance_ids(k))))
        end = transcript.utterance_ends[k] + 1
    if end < len(transcript):
        turns.append(Turn(texts.decode(transcript.input_ids[end:])))
    conversation = Conversation(transcript.level, turns)
    numbers = _numbers(sampled)
    # of another length if a transcript was shortened after it was played
    conversation.sampled_log_probs = numbers if len(numbers) == conversation.num_tokens else []
    return conversation


def _row(values: Sequence[Any], index: int, number: int) -> Any:
    """Return the values of one transcript; none if there are not as many rows as transcripts."""
    return values[index] if len(values) == number else []


def _numbers(values: Any) -> list[float]:
    """Round token-wise values; none at all if any of them is not finite."""
    if values is None:
        return []
    numbers = [round(value, _DIGITS) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    return numbers if all(map(math.isfinite, numbers)) else []
