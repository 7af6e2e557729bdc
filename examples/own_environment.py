"""GRPO on a text environment of your own.

python examples/own_environment.py [MODEL]
"""

import sys
import tempfile

import gymnasium as gym
import lightning as L

from lit_rft.agents import FlatAgent
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ActingSettings, MixedPolicyEpisodes, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing import save_tiny_model


class Brief(gym.Env):
    """Thanks for short answers: any gymnasium environment with texts in and out will do."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"Be brief, {self.np_random.integers(100)}.", {}

    def step(self, action):
        return "Thanks.", 1 - len(action) / 8, True, False, {}


class Rewards(L.Callback):
    """Keeps the mean reward of each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *args):
        self.values.append(float(trainer.callback_metrics["train/reward"]))


def main(model):
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyEpisodes(
        PolicySettings(model, lora=None),  # all weights of the tiny model
        OptimizerSettings(learning_rate=0.03),
        ObjectiveSettings(group_size=8, traces_per_group=0),
        exploration=SamplingSettings(max_new_tokens=8, temperature=1.0),
        acting=ActingSettings(parallel_episodes=8, pool=PoolSettings(threads=True)),
        agent=FlatAgent(max_length=512),
    )
    data = EpisodeGroupDataModule(suite=GymSuite(Brief, step_limit=1), train_episodes_per_task=None, batch_size=2)
    rewards = Rewards()
    trainer = L.Trainer(max_steps=10, accelerator="cpu", limit_val_batches=0, callbacks=[rewards], logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(stage, datamodule=data)
    print("reward of each step:", *(f"{value:.2f}" for value in rewards.values))
    return rewards.values


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(folder)))
