"""Small real parts for tests: tokenizers with and without a template, tiny models, episodes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lit_rft.episodes import Achieved, Episode, Outcome, Step, Subgoal
from lit_rft.transcripts import Transcript, completion_transcript

SHAPES = ("llama", "qwen2", "gemma", "mistral")  # architectures for the tests of fast paths

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as Gemma's: no system role, a bos token, other names of the roles
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# a template that drops earlier answers: it cannot be used turn by turn
REWRITES = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] != 'assistant' else '...' }}"
)


def make_tokenizer(template: str | None = CHATML) -> Any:
    """Make a byte-level tokenizer with three special tokens and only a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "p"), ("op", "e"), ("ope", "n"), ("Ġ", "t"), ("d", "o"), ("do", "n"), ("don", "e")]
    vocab = {token: i for i, token in enumerate([*special, *alphabet, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>" if template is None else "<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def make_model(architecture: str = "llama", vocab_size: int = 272, seed: int = 0, **overrides: Any) -> Any:
    """Make a random model of two small layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **{**settings, **overrides})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # larger weights: random models should have distinct preferences
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model.eval()


def save_tiny_model(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny Llama with its tokenizer, so that `PolicySettings(model=str(folder))` loads it.

    Args:
        folder: a new or empty one.
        seed: of the weights.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def with_adapters(model: Any) -> Any:
    """Add LoRA of rank 2 to all linear layers, with an effect on the outputs."""
    import torch

    from lit_rft.models import LoraSettings
    from lit_rft.models.lora import add_lora

    adapted: Any = add_lora(model, LoraSettings(rank=2, dropout=0.0, target_modules="all-linear"))
    torch.manual_seed(1)
    let_adapters_act(adapted)
    return adapted


def let_adapters_act(model: Any, std: float = 0.3) -> None:
    """Randomise new adapters, which have no effect on the outputs at first."""
    import torch

    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)


def make_groups(sizes: tuple[int, ...] = (3, 1, 4)) -> list[list[Transcript]]:
    """Make groups of these sizes of completions with a common prompt and different lengths."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 272, (length,), generator=generator).tolist()

    groups = []
    for number, size in enumerate(sizes):
        prompt = ids(9 + 4 * number)
        groups.append([completion_transcript(f"{number}/{k}", prompt, ids(2 + 3 * k), 2) for k in range(size)])
    return groups


def make_episode(seed: int = 0, num_steps: int = 5, task: str = "find-plant", subgoals: bool = True) -> Episode:
    """Make an artificial valid episode."""
    rng = random.Random(seed)
    rooms = ["kitchen", "hallway", "greenhouse", "workshop", "outside"]
    steps, score = [], 0.0
    for index in range(num_steps):
        new = 1.0 if index == num_steps - 1 else round((index + 1) / (num_steps + 1), 2)
        room = rng.choice(rooms)
        achieved = [Achieved(f"room:{room}-{index}", f"go to {room}")] if index % 2 else []
        steps.append(Step(f"go to {room}", f"You move to the {room}.", new - score, new, True, achieved))
        score = new
    spans = []
    if subgoals and num_steps:
        cut = max(1, num_steps // 2)
        spans = [Subgoal(0, cut, "go to the kitchen", True, "events")]
        if cut < num_steps:
            spans.append(Subgoal(cut, num_steps, "focus on a plant", True, "events"))
    return Episode(
        id=f"{task}/{seed}",
        env="scienceworld",
        env_version="1.2.3",
        task=task,
        split="train",
        source={"kind": "gold"},
        task_description=f"Your task is to find a(n) plant in room {seed}.",
        initial_observation="This room is called the hallway.",
        steps=steps,
        subgoals=spans,
        outcome=Outcome(score, True, True, False, "goal"),
        step_limit=30,
        meta={"variation": seed, "simplification": "easy"},
    )
