"""Generation: conversations with kept caches, sampled together."""

from lit_rft.rollout.cache import SlotCache
from lit_rft.rollout.generator import ConversationGenerator, Conversations
from lit_rft.rollout.groups import sample_groups
from lit_rft.rollout.sampling import Sampled, SamplingSettings
from lit_rft.rollout.served import ServedConversations
from lit_rft.rollout.vllm import ServerSettings, VllmServer

__all__ = [
    "ConversationGenerator",
    "Conversations",
    "Sampled",
    "SamplingSettings",
    "ServedConversations",
    "ServerSettings",
    "SlotCache",
    "VllmServer",
    "sample_groups",
]
