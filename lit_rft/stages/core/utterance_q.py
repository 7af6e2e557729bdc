"""Q of utterances that a policy considers, by the critics of the offline stage."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.actor_critic import ActorCritic
from lit_rft.transcripts import Transcript


@torch.no_grad()
def q_of_utterances(
    actor_critic: ActorCritic, policy: Policy, level: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Tensor:
    """Return Q of utterances of a level in their contexts, [N].

    Args:
        actor_critic: holds the critics and reads their features.
        policy: whose hidden states Q reads.
        level: of the utterances.
        pairs: context and utterance, as token ids.
    """
    transcripts = []
    for context, ids in pairs:
        transcripts.append(Transcript(level, policy.chat.end_of_turn_id))
        transcripts[-1].append_prompt(list(context))
        transcripts[-1].append_utterance(list(ids))
    critic = actor_critic.critics.critic
    assert critic is not None
    features = actor_critic.features.utterance_features(policy, transcripts)
    return critic.online.q(features, actor_critic.levels.index(level))
