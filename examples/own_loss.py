"""A policy loss of your own: GRPO with a hard mask on tokens whose ratio has left the clip range.

python examples/own_loss.py [MODEL]
"""

import sys
import tempfile
from dataclasses import dataclass

import lightning as L

from lit_rft import GRPO
from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer
from lit_rft.objectives import mean_parts
from lit_rft.problems import Problem
from lit_rft.rollouts import LossNeeds
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing import save_tiny_model
from lit_rft.transcripts import PromptFormat


@dataclass(frozen=True)
class MaskedRatio:
    """-1/Z sum of r A over the tokens with |r - 1| <= clip, r = pi / pi_old."""

    clip: float = 0.2
    needs = LossNeeds(no_group_traces=True)  # a trace has no ratio to a sampling policy: stages with traces refuse it

    def __call__(self, log_probs, rollouts, *, normalizer):
        old = log_probs.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        ratio = (log_probs - old).exp()
        kept = rollouts.mask & ((ratio.detach() - 1).abs() <= self.clip)
        losses = -(ratio * rollouts.token_advantages).masked_fill(~kept, 0.0)
        # never divide by the size of the micro-batch: the normaliser counts all of them, in all processes
        masked = mean_parts((rollouts.mask & ~kept).sum(), rollouts.mask.sum())
        return losses.sum() / normalizer.tokens, {"masked": masked}


def main(model):
    L.seed_everything(0, verbose=False)
    form = PromptFormat(load_tokenizer(model))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"Say {n}."},), str(n)) for n in range(4)]
    loader = PromptLoader([Prompt(p, form.prompt_ids(p.prompt), [], [], []) for p in problems], batch_size=4)
    stage = GRPO(
        PolicySettings(model, lora=None),
        OptimizerSettings(learning_rate=0.01),
        ObjectiveSettings(group_size=8, mini_batches=2, epochs=2),
        SamplingSettings(max_new_tokens=8, temperature=1.0),
        reward=lambda completions, rows: [1 - len(text) / 32 for text in completions],
        loss=MaskedRatio(),
    )
    trainer = L.Trainer(max_steps=8, accelerator="cpu", limit_val_batches=0, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(stage, loader)
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items() if "perf" not in name})
    return trainer.callback_metrics


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(folder)))
