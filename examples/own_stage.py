"""A stage of your own: the policy imitates the best of each group of its completions (RAFT, arXiv 2304.06767).

python examples/own_stage.py [MODEL]
"""

import sys
import tempfile

from lit_rft import Problem, PromptFormat, RewardFunction, SamplingSettings, load_tokenizer
from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.models import utterance_log_probs
from lit_rft.models.processes import sum_numbers
from lit_rft.objectives import utterance_likelihood_loss
from lit_rft.rollouts import CompletionSource
from lit_rft.stages import PROMPTS, BatchingSettings, OptimizerSettings, PolicyModule, PolicySettings
from lit_rft.testing import fit, save_tiny_model
from lit_rft.transcripts import count_utterances


class BestOfGroup(PolicyModule):
    training_batch = PROMPTS  # other kinds of batches are refused

    def __init__(
        self,
        reward: RewardFunction,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batching: BatchingSettings | None = None,
        sampling: SamplingSettings | None = None,
        group_size: int = 8,
    ) -> None:
        super().__init__(policy, optimizer, batching)
        self.source = CompletionSource(reward, sampling or SamplingSettings(temperature=1.0), group_size=group_size)
        self.stateful = {"source": self.source}  # its position is in checkpoints

    def training_step(self, batch, batch_idx):
        policy, size = self.current_policy(), self.source.group_size
        self.samples = self.source(policy, batch)  # one group after another
        groups = [self.samples[first : first + size] for first in range(0, len(self.samples), size)]
        best = [max(group, key=lambda rollout: rollout.reward).transcripts[0] for group in groups]
        rewards = sum(rollout.reward for rollout in self.samples) / size
        sums = sum_numbers({"groups": len(groups), "rewards": rewards}, self.device)  # over all processes

        def loss(micro):
            log_probs = utterance_log_probs(policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, ends=False)
            return utterance_likelihood_loss(log_probs.tokens, micro.utterance_mask, normalizer=sums["groups"]).loss, {}

        terms = self.optimize(self.step_batch(best, count_utterances(best)).micro_batches, loss)
        self.log_terms({**terms, "reward": sums["rewards"] / sums["groups"]})


def main(model, steps=15):
    form = PromptFormat(load_tokenizer(model))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"Say {n}."},), str(n)) for n in range(4)]
    loader = PromptLoader([Prompt(p, form.prompt_ids(p.prompt), [], [], []) for p in problems], batch_size=4)
    policy, optimizer = PolicySettings(model, lora=None), OptimizerSettings(learning_rate=0.03)
    sampling = SamplingSettings(max_new_tokens=8, temperature=1.0)
    stage = BestOfGroup(lambda completions, rows: [-len(c) for c in completions], policy, optimizer, sampling=sampling)
    return float(fit(stage, loader, steps).callback_metrics["train/reward"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("mean reward:", main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(folder))))
