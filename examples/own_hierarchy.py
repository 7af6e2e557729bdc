"""GLIDER's three stages on an environment of your own, which reports what each action has achieved."""

from typing import Any

import gymnasium as gym

from lit_rft.cli import main as lit_rft

ACTIONS = [f"{verb} {key}" for verb in ("pick", "turn") for key in range(5)]


class Vault(gym.Env[str, str]):
    """Three keys to turn one after another; each has to be picked first."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.code = [str(key) for key in self.np_random.permutation(5)[:3]]
        self.opened, self.held = 0, "nothing"
        return self.text(), {"task_description": "Open the vault .", "admissible": ACTIONS}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        verb, _, key = action.partition(" ")
        achieved = []
        if verb == "pick":
            self.held = key
        elif verb == "turn" and key == self.held == self.code[self.opened]:
            achieved = [f"open lock {self.opened}"]  # a subgoal of the high level
            self.opened, self.held = self.opened + 1, "nothing"
        done = self.opened == len(self.code)
        return self.text(), len(achieved) / 3 - 0.01, done, False, {"achieved": achieved, "admissible": ACTIONS}

    def text(self) -> str:
        return f"Code {' '.join(self.code)} . Lock {self.opened} . You hold {self.held} ."


def solve(observation: str, info: dict[str, Any]) -> str:
    words = observation.split()
    key = words[1 + int(words[words.index("Lock") + 1])]
    return f"turn {key}" if words[-2] == key else f"pick {key}"


def main(folder: str = "runs/vault", episodes: int = 400, *more: str) -> None:
    suite = ["--data.suite.env", "own_hierarchy.Vault", "--data.suite.env_args", "{}", "--data.suite.step_limit", "12"]
    suite += ["--data.suite.seeds", f"{{train: {episodes}, dev: 50, test: 50}}"]
    data = ["--data.train_files", f"[{folder}/episodes.jsonl]", "--data.annotate", "null", *suite, *more]
    expert = ["--expert", "own_hierarchy.solve", "--random", "0.2", "--step_limit", "12"]
    out = ["--episodes", str(episodes), "--out", f"{folder}/episodes.jsonl"]
    lit_rft(["collect", "own_hierarchy.Vault", *expert, *out])
    lit_rft(["make-model", f"{folder}/episodes.jsonl", "--out", f"{folder}/untrained"])
    stages = {  # model and initial weights: the full model of the first stage is the backbone of the others
        "sft": (f"{folder}/untrained", "null"),
        "offline_rl": (f"{folder}/sft/adapter", "null"),
        "online": (f"{folder}/sft/adapter", f"{folder}/offline_rl/checkpoints/last.ckpt"),
    }
    for stage, (model, start) in stages.items():
        place = ["--trainer.default_root_dir", f"{folder}/{stage}", "--model.policy.model", model]
        lit_rft(["fit", "-c", f"glider/games/{stage}.yaml", *data, *place, "--model.policy.start_from", start])
        lit_rft(["test", "-c", f"{folder}/{stage}/config.yaml", "--ckpt_path", "last"])


if __name__ == "__main__":
    main()
