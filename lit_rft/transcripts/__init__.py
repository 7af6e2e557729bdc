"""Text in, tokens out: conversations of the hierarchy's levels as token ids with masks."""

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
from lit_rft.transcripts.hierarchy import (
    HierarchyPrompts,
    LowLevelAnswer,
    flat_transcripts,
    hierarchy_transcripts,
    parse_low_level_answer,
    parse_single_line,
    write_low_level_answer,
    write_single_line,
)
from lit_rft.transcripts.outcomes import add_outcomes
from lit_rft.transcripts.prompts import PromptFormat, completion_transcript
from lit_rft.transcripts.shared import collate_shared, shared_step_batch, split_shared
from lit_rft.transcripts.transcript import LEVELS, DecisionOutcome, Transcript

__all__ = [
    "LEVELS",
    "ChatFormat",
    "ChatTemplateWarning",
    "DecisionOutcome",
    "HierarchyPrompts",
    "LowLevelAnswer",
    "PromptFormat",
    "StepBatch",
    "Transcript",
    "TranscriptBatch",
    "add_outcomes",
    "collate_packed",
    "collate_padded",
    "collate_shared",
    "completion_transcript",
    "count_utterances",
    "flat_transcripts",
    "hierarchy_transcripts",
    "pack",
    "parse_low_level_answer",
    "parse_single_line",
    "shared_step_batch",
    "split_by_tokens",
    "split_shared",
    "step_batch",
    "write_low_level_answer",
    "write_single_line",
]
