"""Text in, tokens out: conversations of the hierarchy's levels as token ids with masks."""

from lit_rft.transcripts.batch import (
    StepBatch,
    TranscriptBatch,
    collate_packed,
    collate_padded,
    split_by_tokens,
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
)
from lit_rft.transcripts.transcript import LEVELS, Transcript

__all__ = [
    "LEVELS",
    "ChatFormat",
    "ChatTemplateWarning",
    "HierarchyPrompts",
    "LowLevelAnswer",
    "StepBatch",
    "Transcript",
    "TranscriptBatch",
    "collate_packed",
    "collate_padded",
    "flat_transcripts",
    "hierarchy_transcripts",
    "parse_low_level_answer",
    "parse_single_line",
    "split_by_tokens",
    "write_low_level_answer",
]
