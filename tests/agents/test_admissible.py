"""Admissible actions: listed below observations, and as the only answers that a policy can give."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from local_play import Writer, assert_recorded, assert_what_was_read, chat_of, play

from lit_rft.agents import AdmissibleActions, FlatAgent, HierarchicalAgent, MarkedAgent, Tags, add_outcomes
from lit_rft.envs import GymSuite
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.envs.games import KeyRooms, rooms
from lit_rft.episodes import Episode, read_episodes
from lit_rft.generation import ConversationGenerator, SamplingSettings, TokenTrie
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.testing.corridor import CorridorEnv
from lit_rft.testing.tiny import make_model
from lit_rft.transcripts import collate_packed, collate_padded


class DoorsEnv(CorridorEnv):
    """The corridor, which reports what can be done; in room 2 it says nothing."""

    def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(**options)
        return observation, {**info, "admissible": self._admissible()}

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return (*answer, info if self.room == 2 else {**info, "admissible": self._admissible()})

    def _admissible(self) -> list[str]:
        return ["go right", "go left", "go right"] if self.room else ["go right"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AdmissibleActions(), ["a b", "c", "d"]),
        (AdmissibleActions(limit=2), ["a b", "c"]),
        (AdmissibleActions(max_characters=4), ["a b", "c"]),
        (AdmissibleActions(max_characters=3), ["a b"]),
    ],
    ids=repr,
)
def test_selected_actions_are_bounded(settings: AdmissibleActions, expected: list[str]) -> None:
    assert settings.select({"admissible": ["a b", "c", "a b", "d"]}) == expected
    assert settings.select({}) == settings.select({"admissible": None}) == []


@pytest.mark.parametrize("bad", ["limit", "max_characters"])
def test_bad_bounds_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=f"admissible.{bad} must be > 0, got 0"):
        AdmissibleActions(**{bad: 0})


def test_a_marked_agent_chooses_as_its_inner_agent_does() -> None:
    chat = chat_of("chatml")
    agent = MarkedAgent(FlatAgent("Act.", 4000, admissible=AdmissibleActions(choose=True)))
    writer = Writer(chat, {"flat": ["go right"] * 3})
    played = play(agent, chat, writer, DoorsEnv)
    assert set(played.transcripts[0].allowed) == {0, 1} and "- go left" in chat.tokenizer.decode(writer.seen[1][0])
    assert_recorded(agent, chat, played)


@pytest.mark.parametrize("choose", [False, True])
def test_shown_actions_are_read_recorded_and_read_again(choose: bool) -> None:
    chat, settings = chat_of("chatml"), AdmissibleActions(choose=choose)
    agent = FlatAgent("Act.", 4000, Tags(), admissible=settings)
    texts = [f"<action>go {d}</action>" for d in ("right", "right", "left", "right", "right")]
    writer = Writer(chat, {"flat": texts})
    played = play(agent, chat, writer, DoorsEnv)
    read = chat.tokenizer.decode(writer.seen[2][0])
    assert "Go to room 3.\n\nYou are in room 0.\n\nAdmissible actions:\n- go right<|im_end|>" in read
    assert "You are in room 1.\n\nAdmissible actions:\n- go right\n- go left<|im_end|>" in read
    assert "user\nYou are in room 2.<|im_end|>" in read
    assert played.episode.extra["admissible"][:3] == [["go right"], ["go right", "go left"], []]
    assert_what_was_read(played, writer)
    assert_recorded(agent, chat, played)
    (transcript,) = played.transcripts
    assert set(transcript.allowed) == ({0, 1, 3} if choose else set())
    assert len(played.episode.extra["admissible"]) == len(played.episode.steps) + 1
    played.episode.outcome.terminated, played.episode.steps = False, played.episode.steps[:3]
    (extended,) = add_outcomes([transcript.first_decisions(3).without_last_prompt()], played.episode, chat, agent)
    assert extended.input_ids[extended.utterance_ends[-1] + 1 :] == chat.turn(
        settings.text("You are in room 1.", ["go right", "go left"])
    )


@pytest.mark.parametrize("family", ["chatml", "qwen3.5", "llama3", "mistral"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_random_model_that_chooses_is_always_valid(family: str, keep: bool) -> None:
    """And what trains are the log-probabilities with which it has chosen."""
    chat = chat_of(family)
    model = make_model(vocab_size=len(chat.tokenizer))
    agent = FlatAgent("Act.", 4000, Tags(), keep, AdmissibleActions(show=False, choose=True))
    generator = ConversationGenerator(model, chat.end_ids, SamplingSettings(60, 1.5), num_slots=1, seed=3)
    played = play(agent, chat, generator, DoorsEnv)
    listed = played.episode.extra["admissible"]
    free = [index for index, actions in enumerate(listed[:-1]) if not actions]
    for index, step in enumerate(played.episode.steps):
        assert index in free or step.action in listed[index]
    assert len(played.episode.steps) - len(free) >= 2
    sampled = [v for values in played.log_probs for row in values for v in row]
    for batch in (collate_padded(played.transcripts, 0), collate_packed(played.transcripts, 0, 9000)):
        trained = utterance_log_probs(model, batch, end_of_turn_id=chat.end_of_turn_id, temperature=1.5, ends=False)
        order = [played.transcripts.index(transcript) for transcript in batch.transcripts]
        expected = [v for index in order for row in played.log_probs[index] for v in row]
        torch.testing.assert_close(trained.tokens[batch.utterance_mask], torch.tensor(expected), rtol=1e-3, atol=1e-3)
    (first, *_) = played.log_probs[0]
    assert all(value == 0 for value in first) and math.isfinite(sum(sampled))  # one action only


@pytest.mark.parametrize("mark", [False, True])
@pytest.mark.parametrize("choose", [False, True])
def test_only_the_low_level_reads_and_chooses_actions(choose: bool, mark: bool) -> None:
    chat, settings = chat_of("chatml"), AdmissibleActions(choose=choose)
    agent: Any = HierarchicalAgent(max_length=4000, subgoal_steps=2, answer_format=Tags(), admissible=settings)
    agent = MarkedAgent(agent) if mark else agent
    flags = ("continue", "done", "continue", "continue", "done")
    low = [
        f"<action>go {d}</action>\n{f}"
        for d, f in zip(("right", "right", "left", "right", "right"), flags, strict=True)
    ]
    writer = Writer(chat, {"high": ["out", "back", "out again"], "low": low})
    played = play(agent, chat, writer, DoorsEnv)
    assert_what_was_read(played, writer)
    assert_recorded(agent, chat, played)
    high, below = played.transcripts
    assert (high.allowed, set(below.allowed)) == ({}, {0, 1, 3} if choose else set())  # free in room 2
    texts = [chat.tokenizer.decode(transcript.input_ids) for transcript in (high, below)]
    assert "Admissible actions" not in texts[0]
    assert "You are in room 0.\n\nAdmissible actions:\n- go right\n\nSubgoal: out<|im_end|>" in texts[1]
    assert "user\nYou are in room 1.\n\nAdmissible actions:\n- go right\n- go left<|im_end|>" in texts[1]
    assert "user\nYou are in room 2.\n\nSubgoal: back<|im_end|>" in texts[1]
    if choose:
        answers = [f"<action>go {d}</action>\n{f}" for d in ("right", "left") for f in ("done", "continue")]
        trie = TokenTrie(map(chat.utterance, answers))
        assert below.allowed[1] == trie.allowed_along(below.utterance_ids(1))

    played.episode.outcome.terminated, played.episode.steps = False, played.episode.steps[:3]
    played.episode.subgoals = played.episode.subgoals[:1] + [
        replace(played.episode.subgoals[1], end=3, completed=False)
    ]
    cut = [high.first_decisions(2).without_last_prompt(), below.first_decisions(3).without_last_prompt()]
    above, beside = add_outcomes(cut, played.episode, chat, agent)
    assert above.input_ids[above.utterance_ends[-1] + 1 :] == chat.turn("You are in room 1.")
    listed = settings.text("You are in room 1.", ["go right", "go left"])
    assert beside.input_ids[beside.utterance_ends[-1] + 1 :] == chat.turn(listed)


@pytest.mark.parametrize("family", ["chatml", "qwen3.5", "llama3", "mistral"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_random_low_level_that_chooses_is_always_valid(family: str, keep: bool) -> None:
    """And what trains are the log-probabilities with which it has chosen an action and a flag."""
    chat = chat_of(family)
    model = make_model(vocab_size=len(chat.tokenizer))
    settings = AdmissibleActions(show=False, choose=True)
    agent = HierarchicalAgent(max_length=4000, subgoal_steps=2, keep_thoughts=keep, admissible=settings)
    generator = ConversationGenerator(model, chat.end_ids, SamplingSettings(60, 1.5), num_slots=2, seed=3)
    played = play(agent, chat, generator, DoorsEnv)
    listed = played.episode.extra["admissible"]
    texts = played.episode.extra["utterances"]["low"]
    chosen = [index for index, actions in enumerate(listed[: len(texts)]) if actions]
    for index in chosen:
        answer = agent.low_level_answer(texts[index], chat)
        assert answer.action == played.episode.steps[index].action in listed[index] and not answer.malformed
    assert len(chosen) >= 2
    sampled = {id(transcript): rows for transcript, rows in zip(played.transcripts, played.log_probs, strict=True)}
    for batch in (collate_padded(played.transcripts, 0), collate_packed(played.transcripts, 0, 9000)):
        trained = utterance_log_probs(model, batch, end_of_turn_id=chat.end_of_turn_id, temperature=1.5, ends=False)
        expected = [v for transcript in batch.transcripts for row in sampled[id(transcript)] for v in row]
        torch.testing.assert_close(trained.tokens[batch.utterance_mask], torch.tensor(expected), rtol=1e-3, atol=1e-3)
    low = [transcript for transcript in played.transcripts if transcript.level == "low"]
    assert sum(len(transcript.allowed) for transcript in low) == len(chosen)
    assert not any(transcript.allowed for transcript in played.transcripts if transcript.level == "high")


class FirstRooms(KeyRooms):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=0)


@pytest.fixture(scope="module")
def expert_episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    suite = GymSuite(KeyRooms, step_limit=12, seeds={"train": 1}, expert_policy=rooms.expert)
    path = tmp_path_factory.mktemp("expert") / "expert.jsonl"
    collect_expert_episodes(suite, suite.episodes("train"), path, num_workers=1, progress=False)
    (episode,) = read_episodes(path)
    return episode


@pytest.mark.parametrize("settings", [AdmissibleActions(choose=True), AdmissibleActions(limit=2)], ids=repr)
@pytest.mark.parametrize("levels", [1, 2])
def test_an_experts_episode_reads_as_its_play_would(
    expert_episode: Episode, settings: AdmissibleActions, levels: int
) -> None:
    """A model that is fine-tuned on it meets the same lists, and the same choices, when it plays."""
    chat, episode = chat_of("chatml"), expert_episode
    ends = {span.end - 1 for span in episode.subgoals}
    flags = [f"{step.action}\n{'done' if k in ends else 'continue'}" for k, step in enumerate(episode.steps)]
    agent: Any = FlatAgent("Act.", 9000, admissible=settings)
    if levels == 2:
        agent = HierarchicalAgent(max_length=9000, subgoal_steps=99, admissible=settings)
    texts = {"flat": [step.action for step in episode.steps], "low": flags}
    texts["high"] = [span.goal for span in episode.subgoals]
    played = play(agent, chat, Writer(chat, texts), FirstRooms, step_limit=12)
    stored = agent.transcripts(episode, chat)
    assert len(episode.steps) > 2 and played.episode.outcome.success and len(stored) == levels
    for transcript, original in zip(stored, played.transcripts, strict=True):
        assert transcript.input_ids == original.input_ids and transcript.allowed == original.allowed
    assert bool(stored[-1].allowed) == settings.choose
    assert "\n- " in chat.tokenizer.decode(stored[-1].input_ids)


@pytest.mark.parametrize("bounds", [{"limit": 2}, {"max_characters": 10}])
def test_a_choice_never_excludes_actions(bounds: Any) -> None:
    info = {"admissible": ["go north", "go south", "take the key"]}
    assert len(AdmissibleActions(**bounds).select(info)) < 3
    with pytest.raises(ValueError, match=r"admissible.choose needs all 3 admissible actions .*: raise them"):
        AdmissibleActions(choose=True, **bounds).select(info)
