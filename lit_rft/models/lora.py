"""Low-rank adapters: their settings and the layers that get them."""

import difflib
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

logger = logging.getLogger(__name__)

ATTENTION, ALL_LINEAR = "attention", "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (PEFT); the defaults are those of GLIDER's release.

    Layer names are as in PEFT: the last parts of their full names (`q_proj`, `self_attn.q_proj`).

    Args:
        rank: r, >= 1.
        alpha: scales the update by alpha / r, > 0.
        dropout: on the adapters' input, in [0, 1).
        target_modules: "attention" for all projections of the attention layers in any architecture; "all-linear" for
            all linear layers except the output layer; a list of names; or a regular expression for full names.
        exclude_modules: layers to leave out: a list of names, or a regular expression.
        layers_to_transform: adapt only layers with these indices; null for all.
        rank_pattern: other ranks for some layers, by name or regular expression.
        alpha_pattern: other values of alpha for some layers.
        use_dora: train the magnitude of each weight column apart from its direction (DoRA).
        use_rslora: scale by alpha / sqrt(r) (rank-stabilised LoRA).
        init_lora_weights: initialisation of A: default (Kaiming uniform, B zero), gaussian, or orthogonal.
        modules_to_save: layers to train in full, in addition to the adapters (`lm_head`, `embed_tokens`).

    Raises:
        ValueError: A value is out of range.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: str | Sequence[str] = ATTENTION
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: Sequence[int] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, int] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: Literal["default", "gaussian", "orthogonal"] = "default"
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        ranks = {"rank": self.rank} | {f"rank_pattern.{k}": v for k, v in (self.rank_pattern or {}).items()}
        for name, value in ranks.items():
            if value < 1:
                raise ValueError(f"lora.{name} must be >= 1, got {value}")
        alphas = {"alpha": self.alpha} | {f"alpha_pattern.{k}": v for k, v in (self.alpha_pattern or {}).items()}
        for name, value in alphas.items():
            if not value > 0:
                raise ValueError(f"lora.{name} must be > 0, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if not self.target_modules:
            raise ValueError(f"lora.target_modules must name at least one layer, got {self.target_modules!r}")
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"lora.modules_to_save must be a list of names, got {self.modules_to_save!r}")


def add_lora(model: nn.Module, lora: LoraSettings) -> nn.Module:
    """Freeze the model and add new adapters in float32.

    Raises:
        ValueError: A name, pattern or index matches no layer; the message lists the layers.
    """
    from peft import get_peft_model

    names = [name for name, module in model.named_modules() if isinstance(module, _adaptable())]
    _check_names(model, lora, names)
    config = _peft_config(model, lora)
    try:
        with warnings.catch_warnings():  # `_check_matches` turns these into errors
            warnings.filterwarnings("ignore", message=".*(did not match any|no module was matched)")
            adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"lora.target_modules={lora.target_modules!r}: {error}{_hint(lora, names)}") from error
    _check_matches(adapted, lora, names)
    report(adapted)
    return adapted


def report(model: Any, adapter: str = "default") -> None:
    """Log the layers of a PEFT model's adapter and the number of trainable weights."""
    layers = [*model.base_model.targeted_module_names, *model.base_model.targeted_parameter_names]
    trained, total = model.get_nb_trainable_parameters()
    saved = model.peft_config[adapter].modules_to_save
    logger.info(
        "LoRA adapts %d layers (%s)%s: %s of %s weights train (%.2f%%)",
        len(layers), ", ".join(_leaves(layers)), f" and trains {', '.join(sorted(saved))} in full" if saved else "",
        f"{trained:,}", f"{total:,}", 100 * trained / total,
    )  # fmt: skip


def _peft_config(model: nn.Module, lora: LoraSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        exclude_modules=_listed(lora.exclude_modules),
        layers_to_transform=_listed(lora.layers_to_transform),
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
        modules_to_save=_listed(lora.modules_to_save),
        task_type="CAUSAL_LM",
    )


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else list(value)


def _targets(model: nn.Module, lora: LoraSettings) -> str | list[str]:
    """Return the layers to adapt, in PEFT's format.

    Raises:
        ValueError: There are no attention projections.
    """
    if not isinstance(lora.target_modules, str):
        return list(lora.target_modules)
    linear = _linear_layers(model)
    if lora.target_modules == ATTENTION:
        wanted = [name for name in linear if is_attention(name)]
        if not wanted:
            raise ValueError(
                f"lora.target_modules=attention: {type(model).__name__} has no attention layers; set {ALL_LINEAR}, or "
                f"a list of {', '.join(_leaves(linear))}"
            )
        return _short_names(wanted, set(linear) - set(wanted))
    if lora.layers_to_transform is None:
        return lora.target_modules
    if lora.target_modules != ALL_LINEAR:
        raise ValueError(
            "lora.layers_to_transform needs target_modules as a list of names, got the regular expression "
            f"{lora.target_modules!r}"
        )
    return _leaves(linear)  # PEFT ignores layers_to_transform for full names


def _adaptable() -> tuple[type, ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, nn.Embedding, Conv1D


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, of torch's or of transformers' kind (GPT-2)."""
    return isinstance(module, tuple(kind for kind in _adaptable() if kind is not nn.Embedding))


def is_excluded(name: str, lora: LoraSettings) -> bool:
    """Return whether settings exclude the layer of this name."""
    excluded = lora.exclude_modules
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(_matches(name, other) for other in excluded or ())


def _linear_layers(model: Any) -> list[str]:
    """Return the full names of all linear layers except the output layer."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]


def is_attention(name: str) -> bool:
    """Return whether a linear layer is a projection of an attention block (not a router of experts in it)."""
    *parents, _ = name.split(".")
    return any("attn" in part or "attention" in part for part in parents) and "router" not in parents


def _short_names(wanted: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return the shortest suffixes of names that match none of the others (GPT-2 has `c_proj` in attention and MLP)."""
    rest = [f".{name}" for name in others]
    short: dict[str, None] = {}
    for name in wanted:
        parts = name.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts)))
        short[next((end for end in ends if not any(other.endswith(f".{end}") for other in rest)), name)] = None
    return list(short)


def _leaves(names: Iterable[str]) -> list[str]:
    """Return the last parts of names, without duplicates."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _check_names(model: Any, lora: LoraSettings, names: Sequence[str]) -> None:
    """Check settings that PEFT would ignore silently, as far as they are known before adapters are added.

    Raises:
        ValueError: A name or index matches no layer.
    """
    modules = [name for name, _ in model.named_modules() if name]
    for wanted in lora.modules_to_save or ():
        if not any(_matches(name, wanted) for name in modules):
            raise ValueError(_unknown("modules_to_save", wanted, _leaves(modules)))
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for index in lora.layers_to_transform or ():
        if number is not None and not 0 <= index < number:
            raise ValueError(f"lora.layers_to_transform must be in 0..{number - 1}, the model's layers: got {index}")
    for wanted in [lora.exclude_modules] if isinstance(lora.exclude_modules, str) else lora.exclude_modules or ():
        regular = isinstance(lora.exclude_modules, str)
        if not any(re.fullmatch(wanted, name) if regular else _matches(name, wanted) for name in names):
            raise ValueError(_unknown("exclude_modules", wanted, _leaves(names)))


def _check_matches(model: Any, lora: LoraSettings, names: Sequence[str]) -> None:
    """Check that every name has adapted a layer.

    Raises:
        ValueError: A name matches no layer.
    """
    adapted = [*model.base_model.targeted_module_names, *model.base_model.targeted_parameter_names]
    if not isinstance(lora.target_modules, str):
        left = model.peft_config["default"].target_modules  # PEFT removes names of experts stored as one parameter
        for wanted in lora.target_modules:
            if wanted in left and not any(_matches(name, wanted) for name in adapted):
                raise ValueError(_unknown("target_modules", wanted, _leaves(names)))
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, key) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                raise ValueError(_unknown(key, pattern, _leaves(adapted)))


def _unknown(key: str, wanted: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted, names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"lora.{key}: {wanted!r} matches no layer that could be adapted; there are: {', '.join(names)}{meant}"


def _hint(lora: LoraSettings, names: Sequence[str]) -> str:
    """Return advice for targets that PEFT has rejected."""
    leaves = _leaves(names)
    if lora.target_modules in (ATTENTION, ALL_LINEAR):
        return ""
    hint = f"; there are: {', '.join(leaves)}"
    if isinstance(lora.target_modules, str):
        parts = [part.strip() for part in lora.target_modules.split(",")]
        if all(part in leaves for part in parts):
            hint += f"; write a list: [{', '.join(parts)}]"
        else:
            hint += f"; a text is {ATTENTION}, {ALL_LINEAR}, or a regular expression of full names"
    else:
        near = [match for name in lora.target_modules for match in difflib.get_close_matches(name, leaves, n=1)]
        hint += f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    return hint
