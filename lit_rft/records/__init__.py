"""Records of rollouts on disk: groups of completions or episodes with their tokens, rewards and advantages."""

from lit_rft.records.files import RolloutWriter as RolloutWriter
from lit_rft.records.files import read_rollouts as read_rollouts
from lit_rft.records.group import Conversation as Conversation
from lit_rft.records.group import GroupRecord as GroupRecord
from lit_rft.records.group import RolloutRecord as RolloutRecord
from lit_rft.records.group import RolloutRecordError as RolloutRecordError
from lit_rft.records.group import Turn as Turn

__all__ = [
    "Conversation", "GroupRecord", "RolloutRecord", "RolloutRecordError", "RolloutWriter", "Turn", "read_rollouts",
]  # fmt: skip
