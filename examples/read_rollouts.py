"""Rollouts of a run, read from its folder: the reward by step, and the best completion of the last group.

python examples/read_rollouts.py RUN
"""

import sys
from collections import defaultdict

from lit_rft import read_rollouts


def main(run):
    rewards = defaultdict(list)
    groups = [group for group in read_rollouts(run) if group.split == "train"]
    if not groups:
        sys.exit(f"{run}: no group of training is kept; RolloutFiles keeps a share of 0.25, set share: 1.0")
    for group in groups:
        rewards[group.step] += [rollout.reward for rollout in group.rollouts if not rollout.trace]
    for step, values in sorted(rewards.items()):
        print(f"step {step}: {len(values)} rollouts, mean reward {sum(values) / len(values):.2f}")
    best = max(groups[-1].rollouts, key=lambda rollout: rollout.reward)
    print(f"best of the last group, {best.id}: {best.text!r}")
    for conversation in best.conversations:
        tokens = [token for turn in conversation.turns for token in turn.tokens]
        print(f"{len(tokens)} tokens, log-probability {sum(conversation.sampled_log_probs):.1f}")
    return rewards


if __name__ == "__main__":
    main(sys.argv[1])
