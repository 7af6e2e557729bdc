"""Random models in the shapes of real ones, and artificial text: nothing has to be downloaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = 2  # <|im_end|>


def make_model(shape: str, folder: Path) -> Path:
    """Write a model with random bf16 weights and a byte-level tokenizer, and return its folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = folder / shape
    if folder.exists():
        return folder
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True,
                         eos_token_id=END, pad_token_id=0, bos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # random numbers for 1.5 billion weights
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.to("cpu").save_pretrained(folder)
    _make_tokenizer().save_pretrained(folder)
    return folder


def _make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=special[1:], chat_template=CHATML,
    )  # fmt: skip


def words(number: int, randoms: random.Random) -> str:
    """Make a text of this many characters, one token each."""
    return "".join(randoms.choice("abcdefgh ") for _ in range(number))


def make_problems(number: int, characters: int) -> list[Any]:
    """Make problems with prompts of this many characters."""
    from lit_rft.problems import Problem

    randoms = random.Random(0)
    return [Problem(f"p{n}", ({"role": "user", "content": words(characters, randoms)},), "1") for n in range(number)]
