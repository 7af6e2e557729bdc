"""Conversations of an agent's levels as token ids with masks."""

from lit_rft.transcripts.batch import (
    StepBatch,
    TranscriptBatch,
    collate_packed,
    collate_padded,
    count_utterances,
    pack,
    split_by_tokens,
    step_batch,
)
from lit_rft.transcripts.chat import ChatFormat, ChatTemplateWarning
from lit_rft.transcripts.messages import LevelFormats, MessageFormat
from lit_rft.transcripts.prompts import COMPLETION, PromptFormat, completion_transcript
from lit_rft.transcripts.shared import collate_shared, shared_step_batch, split_shared
from lit_rft.transcripts.thoughts import ThoughtMarks
from lit_rft.transcripts.transcript import DecisionOutcome, Transcript

__all__ = [
    "COMPLETION",
    "ChatFormat",
    "ChatTemplateWarning",
    "DecisionOutcome",
    "LevelFormats",
    "MessageFormat",
    "PromptFormat",
    "StepBatch",
    "ThoughtMarks",
    "Transcript",
    "TranscriptBatch",
    "collate_packed",
    "collate_padded",
    "collate_shared",
    "completion_transcript",
    "count_utterances",
    "pack",
    "shared_step_batch",
    "split_by_tokens",
    "split_shared",
    "step_batch",
]
