"""The library's parts in a LightningModule of your own: its objective, batches and adapters, your training loop.

python examples/own_module.py [MODEL]
"""

import sys
import tempfile

import lightning as L
import torch

from lit_rft.models import LoraSettings, load_backbone, load_tokenizer, utterance_log_probs
from lit_rft.models.lora import add_lora
from lit_rft.objectives import utterance_likelihood_loss
from lit_rft.testing import save_tiny_model
from lit_rft.transcripts import ChatFormat, Transcript, step_batch

EXAMPLES = [("What is 1 + 1?", "2"), ("What is 2 + 2?", "4"), ("What is 3 + 3?", "6")]


class Imitation(L.LightningModule):
    """Likelihood of answers, with automatic optimisation: nothing here is a stage of lit-rft."""

    def __init__(self, model):
        super().__init__()
        self.chat = ChatFormat(load_tokenizer(model))
        self.policy = add_lora(load_backbone(model), LoraSettings(rank=4, target_modules="all-linear"))

    def transcript(self, question, answer):
        transcript = Transcript("answer", self.chat.end_of_turn_id, question)
        transcript.append_prompt(self.chat.head("Be brief.", question))
        transcript.append_utterance(self.chat.utterance(answer))
        return transcript

    def training_step(self, pairs, batch_idx):
        transcripts = [self.transcript(*pair) for pair in pairs]
        batch = step_batch(transcripts, {"answer": len(pairs)}, micro_batch_tokens=10_000, pad_id=0).to(self.device)
        (micro,) = batch.micro_batches
        log_probs = utterance_log_probs(self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, ends=False)
        terms = utterance_likelihood_loss(log_probs.tokens, micro.utterance_mask, normalizer=len(pairs))
        self.log("loss", terms.loss, batch_size=len(pairs))
        return terms.loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


def main(model, steps=10):
    L.seed_everything(0, verbose=False)
    loader = torch.utils.data.DataLoader(EXAMPLES, batch_size=3, collate_fn=list)
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Imitation(model), loader)
    print(f"loss after {steps} steps: {trainer.callback_metrics['loss']:.3f}")
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(folder)))
