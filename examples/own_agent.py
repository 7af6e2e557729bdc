"""GRPO with an agent of your own: the policy reads a menu of actions, and answers with a number.

python examples/own_agent.py [MODEL]
"""

import sys
import tempfile
from dataclasses import dataclass

from lit_rft import Episode, EpisodeGroupDataModule
from lit_rft.agents import Act, Ask, Session, opening_text, replay, step_outcomes
from lit_rft.stages import MixedPolicyEpisodes, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing import CorridorSuite, fit, save_tiny_model
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class Menu:
    actions: tuple[str, ...] = ("go right", "go left")
    max_length: int = 512
    levels = ("menu",)  # one conversation per episode

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return MenuSession(self.actions, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        utterances = {"menu": [str(self.actions.index(step.action)) for step in episode.steps]}
        return replay(self.session(episode.id, chat), episode, chat, utterances)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return step_outcomes(episode)  # one decision per step

    def update(self, level: str, observation: str) -> str:
        return observation


class MenuSession:
    def __init__(self, actions, chat):
        self.actions, self.chat, self.malformed = actions, chat, 0
        self.choices = [chat.utterance(str(number)) for number in range(len(actions))]

    def start(self, task_description, observation):
        menu = "\n".join(f"{number}: {action}" for number, action in enumerate(self.actions))
        return Ask("menu", self.chat.head(menu, opening_text(task_description, observation)), self.choices)

    def receive(self, text):
        return Act(self.actions[int(text)])

    def observe(self, observation):
        return Ask("menu", self.chat.turn(observation), self.choices)

    def subgoals(self, num_steps):
        return []


def main(model, steps=8):
    policy, objective = PolicySettings(model, lora=None), ObjectiveSettings(traces_per_group=0)
    stage = MixedPolicyEpisodes(policy, OptimizerSettings(learning_rate=0.01), objective, agent=Menu())
    fit(stage, EpisodeGroupDataModule(suite=CorridorSuite(step_limit=4), batch_size=2), steps)
    return stage.samples


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(folder)))[-1].text)  # its actions
