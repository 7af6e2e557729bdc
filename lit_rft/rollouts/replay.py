"""A buffer of a policy's latest episodes, for repeated use."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from lit_rft.transcripts import DecisionOutcome, Transcript


class EpisodeReplay:
    """Transcripts of the latest `capacity` episodes; new ones replace the oldest.

    Args:
        capacity: maximum number of episodes, >= 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"buffer_episodes must be >= 1, got {capacity}")
        self.capacity = capacity
        self.episodes: list[list[Transcript]] = []

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, transcripts: Sequence[Transcript]) -> None:
        """Add an episode; one without transcripts is ignored."""
        if transcripts:
            self.episodes = [*self.episodes, list(transcripts)][-self.capacity :]

    def sample(self, number: int, rng: random.Random) -> list[list[Transcript]]:
        """Sample episodes without replacement; all of them if there are not more."""
        return rng.sample(self.episodes, min(number, len(self.episodes)))

    def state_dict(self) -> list[list[dict[str, Any]]]:
        """Return plain lists, dictionaries and numbers for checkpoints."""
        return [[transcript_to_plain(transcript) for transcript in episode] for episode in self.episodes]

    def load_state_dict(self, state: list[list[dict[str, Any]]]) -> None:
        episodes = [[transcript_from_plain(plain) for plain in episode] for episode in state]
        self.episodes = episodes[-self.capacity :]


def transcript_to_plain(transcript: Transcript) -> dict[str, Any]:
    """Return a transcript as plain lists, dictionaries and numbers."""
    plain = {field.name: getattr(transcript, field.name) for field in dataclasses.fields(transcript)}
    return plain | {"outcomes": [list(outcome) for outcome in transcript.outcomes]}


def transcript_from_plain(plain: dict[str, Any]) -> Transcript:
    """Return the transcript of `transcript_to_plain`."""
    return Transcript(**{**plain, "outcomes": [DecisionOutcome(*outcome) for outcome in plain["outcomes"]]})
