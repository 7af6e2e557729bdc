"""Checks that a stage provides what its policy loss needs, before the first batch."""

import inspect
from typing import Any

from lit_rft.generation import BackendSettings, SamplingSettings
from lit_rft.rollouts.losses import name_of, needs_of
from lit_rft.rollouts.sources import GroupSource
from lit_rft.stages.core.settings import ObjectiveSettings


def check_group_loss(loss: Any, objective: ObjectiveSettings) -> None:
    """Check that groups have the traces that a loss needs, and none that it has no term for.

    Raises:
        ValueError: It names the settings of `objective` to change; or the loss takes other arguments.
    """
    _check_signature(loss)
    needs, sizes, name = needs_of(loss), objective.group_sizes, name_of(loss)
    if needs.group_traces and needs.no_group_traces:
        raise ValueError(f"{name} needs traces in the groups, and the loss within it has no term for them: exchange it")
    traces, imitated = sizes["traces_per_group"], sizes["imitated_traces"]
    if needs.group_traces and not traces:
        raise ValueError(f"{name} needs traces in the groups: set objective.traces_per_group to 1 or more, got 0")
    if needs.no_group_traces and traces:
        raise ValueError(f"{name} has no term for traces: set objective.traces_per_group to 0, got {traces}")
    if needs.imitated_traces and not imitated:
        raise ValueError(f"{name} imitates traces outside the groups: set objective.imitated_traces to 1 or more")


def check_imitation(source: GroupSource, objective: ObjectiveSettings) -> None:
    """Check that no term imitates what the policy itself has sampled.

    Raises:
        ValueError: A source continues traces (`TracePrefixes`), and the objective imitates them.
    """
    if getattr(source, "continues_traces", False) and (objective.sft_coef > 0 or source.imitated_traces):
        raise ValueError(
            "the traces of this source are continued by the policy, right or wrong, and no examples to imitate: set "
            f"objective.sft_coef to 0, got {objective.sft_coef}, and imitated_traces to 0, got {source.imitated_traces}"
        )


def check_ppo_loss(loss: Any) -> None:
    """Check that a loss needs nothing that PPO does not have.

    Raises:
        ValueError: For a loss with traces, entropies or weights for the sampler's mismatch, or with other arguments.
    """
    _check_signature(loss)
    needs, name = needs_of(loss), name_of(loss)
    if needs.sampler_log_probs:
        raise ValueError(
            f"PPO keeps no log-probabilities of the sampler, which {name} needs: set loss.importance_cap to null, or "
            "leave out SamplerCorrected"
        )
    if needs.entropy or needs.imitated_traces or needs.group_traces:
        raise ValueError(f"PPO has neither traces nor entropies, which {name} needs: use it with GRPO's stages")


def check_served(server: BackendSettings | None, sampling: SamplingSettings, loss: Any) -> None:
    """Check that a loss can correct for the rounding of a generation server.

    Raises:
        ValueError: For importance weights that would be wrong.
    """
    corrects = server is not None and needs_of(loss).sampler_log_probs
    if corrects and (sampling.top_k or sampling.top_p < 1):
        raise ValueError(
            f"{name_of(loss)} with importance weights (loss.importance_cap, SamplerCorrected) needs the probabilities "
            "before top-k and top-p, which a server does not report: leave out one of them, got "
            f"top_k={sampling.top_k} and top_p={sampling.top_p}"
        )


def _check_signature(loss: Any) -> None:
    try:
        inspect.signature(loss).bind(None, None, normalizer=None)
    except ValueError:  # no readable signature: of a builtin
        return
    except TypeError as error:
        raise ValueError(
            f"the loss {name_of(loss)} must be callable with (log_probs, rollouts, normalizer=...): {error}"
        ) from error
