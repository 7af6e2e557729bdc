"""A fingerprint of tokenizers, equal if they write the same token ids."""

import hashlib
from typing import Any

_PROBE = "The 2 rooms:\n\n  kitchen's   door = 3.14 \t(Übung, 部屋) <b>x</b>"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a short hash of the vocabulary, the chat template, the end of turn and the splitting rules."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    about = (
        vocabulary,
        getattr(tokenizer, "chat_template", None),
        (tokenizer.bos_token_id, tokenizer.eos_token_id),
        list(tokenizer(_PROBE)["input_ids"]),
    )
    return hashlib.sha256(repr(about).encode("utf-8", "backslashreplace")).hexdigest()[:16]
