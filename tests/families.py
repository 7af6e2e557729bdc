"""Small tokenizers with the habits of model families: which tokens they add, which of them are special, and the form of
their chat templates (in our own words)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Args: special: the special tokens, eos first. added: those that are not special. rstrip: special tokens take the
    blanks behind them. sentencepiece: blanks are `▁`, unknown letters bytes; else byte-level."""

    template: str | None
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    rstrip: bool = False
    sentencepiece: bool = False
    bos: str | None = None


def turns(start: str, end: str, generation: str, content: str = "m.content", before: str = "") -> str:
    """A template that writes every message in the same way."""
    return (
        f"{before}{{% for m in messages %}}{{{{ {start} }}}}{{{{ {content} }}}}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{generation}{{% endif %}}"
    )


_ROLE = "'<|im_start|>' + m.role + '\\n'"
_WITHOUT_THOUGHTS = "m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content"
_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
_GEMMA_ROLE = "'<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'"
_SYSTEM_LAST = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}"
    "{% elif m.role == 'user' %}[INST]{% if loop.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}"
    "<｜end▁of▁sentence｜>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_CHANNELS = (
    "<|start|>system<|message|>Be helpful.<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_NO_END = (
    "[gMASK]{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
)
_SWITCHES = (  # `/think` is taken out of system texts, and of what has it in it
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content | replace('/think', '') if m.role == 'system' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IM = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
_THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_BLANKS = tuple(" " * n for n in range(2, 12)) + ("\t\t", "\t\t\t")
_LINES = ("\n", "\n\n", "\n\n\n", "  ", "   ", "<b>", "</b>", "<table>", "<tr>")
_HEADER = "'<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'"
_LLAMA_GENERATION = "<|start_header_id|>assistant<|end_header_id|>\n\n"

FAMILIES = {
    "chatml": Family(turns(_ROLE, "<|im_end|>\n", "<|im_start|>assistant\n"), _IM),
    "qwen2.5": Family(
        "{% if tools %}Call in <tool_call>\n{...}\n</tool_call>.{% endif %}"
        + turns(_ROLE, "<|im_end|>\n", "<|im_start|>assistant\n"), _IM, ("<tool_call>", "</tool_call>"),
    ),
    "qwen3": Family(turns(_ROLE, "<|im_end|>\n", "<|im_start|>assistant\n", _WITHOUT_THOUGHTS), _IM, _THINK),
    "qwen3.5": Family(
        turns(_ROLE, "<|im_end|>\n", "<|im_start|>assistant\n<think>\n", f"({_WITHOUT_THOUGHTS}) | trim"), _IM, _THINK
    ),
    "special-think": Family(turns(_ROLE, "<|im_end|>\n", "<|im_start|>assistant\n"), (*_IM, "<think>", "</think>")),
    "gemma2": Family(
        turns(
            _GEMMA_ROLE, "<end_of_turn>\n", "<start_of_turn>model\n", "m.content | trim",
            "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            + _ALTERNATE,
        ),
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), _LINES, sentencepiece=True, bos="<bos>",
    ),
    "phi2": Family(None, ("<|endoftext|>",), _BLANKS),
    "pythia": Family(None, ("<|endoftext|>", "<|padding|>"), _BLANKS, bos="<|endoftext|>"),
    "phi3": Family(
        turns("'<|' + m.role + '|>\\n'", "<|end|>\n", "<|assistant|>\n", before="{{ bos_token }}"),
        ("<|endoftext|>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        rstrip=True, sentencepiece=True, bos="<s>",
    ),
    "llama3": Family(
        turns(_HEADER, "<|eot_id|>", _LLAMA_GENERATION, "m.content | trim", "{{ bos_token }}"),
        ("<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "mistral": Family(_SYSTEM_LAST, ("</s>", "<s>", "[INST]", "[/INST]"), sentencepiece=True, bos="<s>"),
    "deepseek-r1": Family(
        _DEEPSEEK, ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"), ("<｜User｜>", "<｜Assistant｜>", *_THINK),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "gpt-oss": Family(
        _CHANNELS, ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|endoftext|>")
    ),
    "glm": Family(_NO_END, ("<|endoftext|>", "[gMASK]", "<|user|>", "<|assistant|>", "<|system|>"), _THINK),
    "command-r": Family(
        turns(
            "'<|START|><|' + m.role + '|>'", "<|END_RESPONSE|><|END|>", "<|START|><|assistant|>",
        ),
        ("<|END|>", "<|START|>", "<|END_RESPONSE|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "granite": Family(
        turns("'<|start_of_role|>' + m.role + '<|end_of_role|>'", "<|end_of_text|>\n",
              "<|start_of_role|>assistant<|end_of_role|>"),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
    ),
    "smollm3": Family(_SWITCHES, _IM, _THINK),
    "words": Family(
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### assistant:\n", ("</s>",)
    ),
}  # fmt: skip


def family_tokenizer(family: Family) -> Any:
    """A tokenizer of a family, over single bytes or letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if family.sentencepiece:
        letters = ["▁", *(chr(c) for c in range(33, 127)), "\n", "\t"]
        tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "he"]
        merges = [("▁", "t"), ("h", "e")]
        vocab = {token: i for i, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "ĊĊ", "he"]
        merges = [("Ġ", "t"), ("Ċ", "Ċ"), ("h", "e")]
        backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, rstrip=family.rstrip, normalized=False) for t in family.special]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=family.special[0], bos_token=family.bos, clean_up_tokenization_spaces=True
    )
    tokenizer.chat_template = family.template
    return tokenizer
