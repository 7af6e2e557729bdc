"""A program: a guessing game on OpenEnv's own server, at the port of its argument."""

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from pydantic import Field


class GuessAction(Action):
    message: str = Field(max_length=20)


class GuessObservation(Observation):
    text: str


class Guess(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, number: int | None = None) -> Any:
        self.number = (seed or 0) % 4 if number is None else number
        self._state = State(episode_id=episode_id)
        return GuessObservation(text="Guess a number from 0 to 3.")

    def step(self, action: GuessAction, timeout_s: float | None = None, **kwargs: Any) -> Any:
        if action.message == "crash":
            raise RuntimeError("a bug")
        self._state.step_count += 1
        right, late = action.message == str(self.number), self._state.step_count >= 3
        return GuessObservation(
            text="right" if right else "wrong",
            done=right or late,
            reward=float(right),
            metadata={"truncated": late and not right, "metrics": {"guesses": self._state.step_count}, "other": 1},
        )

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Guess, GuessAction, GuessObservation, max_concurrent_envs=2)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
