"""Mini-batches of rollouts: the same split, however many processes share a batch."""

from collections.abc import Sequence

from lit_rft.models.processes import all_gather_objects, global_index
from lit_rft.rollouts.rollout import Rollout


def split_groups(rollouts: Sequence[Rollout], number: int) -> list[list[Rollout]]:
    """Split rollouts into mini-batches of complete groups, in their order.

    Groups without rollouts are not counted: a source may leave out many (see `lit_rft.sources.DynamicSampling`).

    All processes must call this; each has every world_size-th group of the batch.

    Args:
        rollouts: of this process.
        number: of mini-batches.

    Returns:
        `number` lists, some of them perhaps empty.
    """
    groups = [global_index(rollout.group) for rollout in rollouts]
    order = sorted({group for share in all_gather_objects(groups) for group in share})
    return _split(rollouts, [order.index(group) for group in groups], len(order), number)


def split_rollouts(rollouts: Sequence[Rollout], number: int) -> list[list[Rollout]]:
    """Split rollouts into mini-batches of equal size, in their order; the rollouts of a group may part.

    All processes must call this; each has every world_size-th group of the batch.

    Args:
        rollouts: of this process, group after group.
        number: of mini-batches.

    Returns:
        `number` lists, some of them perhaps empty.
    """
    groups = [global_index(rollout.group) for rollout in rollouts]
    order = sorted(group for share in all_gather_objects(groups) for group in share)
    places = [order.index(group) + groups[:index].count(group) for index, group in enumerate(groups)]
    return _split(rollouts, places, len(order), number)


def _split(rollouts: Sequence[Rollout], places: Sequence[int], total: int, number: int) -> list[list[Rollout]]:
    parts: list[list[Rollout]] = [[] for _ in range(number)]
    for rollout, place in zip(rollouts, places, strict=True):
        parts[place * number // total].append(rollout)
    return parts
