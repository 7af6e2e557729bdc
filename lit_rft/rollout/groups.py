"""Groups of completions to prompts."""

from collections.abc import Sequence

import torch
from torch import nn

from lit_rft.rollout.generator import ConversationGenerator, Sampled, SamplingSettings


@torch.no_grad()
def sample_groups(
    model: nn.Module,
    prompts: Sequence[tuple[str, list[int]]],
    sizes: Sequence[int],
    sampling: SamplingSettings,
    end_of_turn_id: int,
    *,
    seed: int = 0,
    num_slots: int = 64,
) -> list[list[Sampled]]:
    """Completions of every prompt, `num_slots` at a time.

    What is sampled for a prompt depends on the seed, its name and the number within its group only, but for rounding.

    Args:
        prompts: name and ids of each.
        sizes: how many completions each gets, >= 0.
    Raises: ValueError if there are not as many sizes as prompts, or `num_slots` is below 1.
    """
    if len(prompts) != len(sizes) or num_slots < 1:
        raise ValueError(f"expected {len(prompts)} sizes and num_slots >= 1, got {len(sizes)} and {num_slots}")
    wanted = [(p, n) for p, size in enumerate(sizes) for n in range(size)]
    # completions of similar prompts are read together; names, not places, decide what is sampled
    wanted.sort(key=lambda pair: len(prompts[pair[0]][1]), reverse=True)
    groups: list[list[Sampled]] = [[Sampled([], [], False)] * size for size in sizes]
    training = model.training
    model.eval()
    try:
        for start in range(0, len(wanted), num_slots):
            part = wanted[start : start + num_slots]
            generator = ConversationGenerator(model, end_of_turn_id, sampling, num_slots=len(part), seed=seed)
            slots = [generator.open(f"{prompts[p][0]}/{n}") for p, n in part]
            sampled = generator.sample({slot: prompts[p][1] for slot, (p, _) in zip(slots, part, strict=True)})
            for slot, (p, n) in zip(slots, part, strict=True):
                groups[p][n] = sampled[slot]
    finally:
        model.train(training)
    return groups
