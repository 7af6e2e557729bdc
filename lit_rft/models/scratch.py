"""A small untrained model with a tokenizer for given texts, for subjects that train in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_BYTES = 256  # tokens that a byte-level vocabulary has at least
_CONTEXT = 4096  # of the model, in tokens


def save_scratch_model(
    folder: str | Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 1024,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> Path:
    """Write a small Llama with random weights and a tokenizer with a chat template, to train from scratch.

    The folder is loaded by `PolicySettings(model=str(folder), lora=None)`. The tokenizer is a byte-level BPE, whose
    merges are those of the texts: their frequent words and numbers are single tokens, and any other text can be written
    as well. The default sizes have 0.2 million weights.

    Args:
        folder: a new folder, or one to overwrite.
        texts: training texts of the tokenizer, for example observations and actions.
        vocab_size: maximum number of tokens, >= 261 (the bytes and the structural tokens).
        hidden_size: a multiple of twice `heads`.
        layers: > 0.
        heads: of attention, > 0.
        seed: of the weights.

    Returns:
        The folder.

    Raises:
        ValueError: a size is out of range.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if heads < 1 or layers < 1 or hidden_size < 1 or hidden_size % (2 * heads):
        raise ValueError(
            "expected layers and heads > 0 and hidden_size a multiple of 2 * heads, "
            f"got {layers}, {heads} and {hidden_size}"
        )
    tokenizer = _train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=False,
        initializer_range=hidden_size**-0.5,  # the usual 0.02 is for wide models: narrow ones learn slowly from it
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE with the structural tokens and the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = _BYTES + len(_SPECIAL)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (bytes and structural tokens), got {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(_SPECIAL[2:]),
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
