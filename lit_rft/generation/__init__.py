"""Batched generation with a KV cache that is kept between turns."""

from lit_rft.generation.backends import BackendSettings, CompletionBackend, ServedAdapter
from lit_rft.generation.chat_conversations import ChatConversations
from lit_rft.generation.chat_server import ChatServer, ChatServerError, ChatServerSettings
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.generator import ConversationGenerator, Conversations
from lit_rft.generation.groups import sample_groups
from lit_rft.generation.kv_cache import SlotCache
from lit_rft.generation.sampling import Completion, SamplingSettings
from lit_rft.generation.served import ServedConversations
from lit_rft.generation.vllm import ServerSettings, VllmServer
from lit_rft.generation.vllm_in_process import VllmEngine, VllmInProcess

__all__ = [
    "BackendSettings",
    "ChatConversations",
    "ChatServer",
    "ChatServerError",
    "ChatServerSettings",
    "Completion",
    "CompletionBackend",
    "ConversationGenerator",
    "Conversations",
    "SamplingSettings",
    "ServedAdapter",
    "ServedConversations",
    "ServerSettings",
    "SlotCache",
    "TokenTrie",
    "VllmEngine",
    "VllmInProcess",
    "VllmServer",
    "sample_groups",
]
