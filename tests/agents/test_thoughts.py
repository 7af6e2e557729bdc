"""Thinking models over several turns: in every family and format, transcripts are what was read and written."""

from typing import Any

import pytest
from families import FAMILIES
from local_play import Writer, answers, assert_recorded, assert_what_was_read, chat_of, play

from lit_rft.agents import (
    FirstLine,
    FlatAgent,
    HermesToolCall,
    HierarchicalAgent,
    JsonObject,
    LastLine,
    Llama3ToolCall,
    Tags,
    add_outcomes,
)
from lit_rft.metrics import EpisodeMetrics
from lit_rft.testing.corridor import CorridorEnv
from lit_rft.testing.tiny import make_episode

FORMATS: list[Any] = [FirstLine(), LastLine(), Tags(), JsonObject(), HermesToolCall(), Llama3ToolCall()]
OPENING = ["qwen3.5", "deepseek-r1", "glm"]  # their generation prompts open a thought


class SilentEnv(CorridorEnv):
    """Reports no validity."""

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return (*answer, {key: value for key, value in info.items() if key != "valid"})


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("family", FAMILIES)
def test_played_and_stored_episodes_have_the_same_transcripts(family: str, keep: bool) -> None:
    chat = chat_of(family)
    for answer_format in FORMATS:
        agent = FlatAgent("Act.", 4000, answer_format, keep_thoughts=keep)
        actions = ["go right", "go left", "jump\nhigh", "go right", "go right"]
        texts = answers(chat, [answer_format.render(action) for action in actions])
        texts.insert(
            1, "\n" if answer_format == LastLine() else texts[1].replace("left", "left</think>", 1) + "</think>"
        )
        writer = Writer(chat, {"flat": texts})
        played = play(agent, chat, writer)
        assert [step.action for step in played.episode.steps] == ["go right", "", *actions[1:]]
        assert [step.valid for step in played.episode.steps] == [True, False, True, False, True, True]
        assert played.episode.source["malformed"] == 1 and played.episode.num_utterances == 6
        assert_what_was_read(played, writer)
        assert_recorded(agent, chat, played)
        read = chat.tokenizer.decode(writer.seen[-1][0])
        assert ("Thought 0." in read) == keep
        assert len(played.transcripts) == (1 if keep else 6)


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_stored_tool_calls_have_the_models_own_tokens(family: str) -> None:
    chat = chat_of(family)
    (transcript,) = FlatAgent(answer_format=HermesToolCall()).transcripts(make_episode(0, 1), chat)
    marks = chat.tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    assert [i for i in transcript.utterance_ids(0) if i in marks] == marks


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3.5", "gemma2", "deepseek-r1"])
def test_both_levels_think(family: str, keep: bool) -> None:
    chat = chat_of(family)
    agent = HierarchicalAgent(max_length=4000, answer_format=Tags(), keep_thoughts=keep)
    low = [
        f"<action>{a}</action>\n{f}" for a, f in [("go right", "continue"), ("go right", "done"), ("go right", "done")]
    ]
    writer = Writer(chat, {"high": answers(chat, ["go to 2", "go to 3"]), "low": answers(chat, low)})
    played = play(agent, chat, writer)
    assert played.episode.outcome.success and [span.end for span in played.episode.subgoals] == [2, 3]
    assert_what_was_read(played, writer)
    assert_recorded(agent, chat, played)
    for transcript in add_outcomes(played.transcripts, played.episode, chat, agent):
        assert len(transcript.outcomes) == transcript.num_decisions
    assert len(played.transcripts) == (2 if keep else 5)


@pytest.mark.parametrize("family", OPENING)
def test_a_history_without_thoughts_is_the_templates_own(family: str) -> None:
    """What the level reads in its last turn is what the template renders of earlier answers, which drops thoughts."""
    chat = chat_of(family)
    agent = FlatAgent("Act.", 4000, keep_thoughts=False)
    writer = Writer(chat, {"flat": answers(chat, ["go right", "go right", "go right"])})
    episode = play(agent, chat, writer).episode
    messages = [{"role": "system", "content": "Act."}]
    observations = [episode.initial_observation, *(step.observation for step in episode.steps[:-1])]
    for number, observation in enumerate(observations):
        user = f"Task: {episode.task_description}\n\n{observation}" if number == 0 else observation
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": "go right"}]
    rendered = chat.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    read = chat.tokenizer.decode(writer.seen[-1][0], clean_up_tokenization_spaces=False)
    end = chat.tokenizer.decode([chat.end_of_turn_id])
    assert read == rendered or read.replace(end, "") == rendered.replace(end, "")


def test_thoughts_of_a_record_are_written_where_the_template_opens_them() -> None:
    chat, episode = chat_of("qwen3.5"), make_episode(0, 3)
    episode.extra["thoughts"] = ["First.", "Then."]
    (transcript,) = FlatAgent(answer_format=Tags()).transcripts(episode, chat)
    said = [chat.text(transcript.utterance_ids(k)) for k in range(3)]
    actions = [step.action for step in episode.steps]
    assert said == [
        f"{thought}\n</think>\n\n<action>{action}</action>"
        for thought, action in zip(["First.", "Then.", ""], actions, strict=True)
    ]
    (plain,) = FlatAgent(answer_format=Tags()).transcripts(episode, chat_of("chatml"))
    assert chat_of("chatml").text(plain.utterance_ids(0)) == f"First.\n<action>{actions[0]}</action>"
    episode.extra["thoughts"] = [1]
    with pytest.raises(ValueError, match=r"list of texts as extra\.thoughts"):
        FlatAgent().transcripts(episode, chat)


def test_invalid_answers_are_not_valid_whatever_the_environment_reports() -> None:
    chat = chat_of("chatml")
    writer = Writer(chat, {"flat": ["<action>jump</action>", "jump"] * 3})
    played = play(FlatAgent(answer_format=Tags()), chat, writer, SilentEnv)
    assert [(step.action, step.valid) for step in played.episode.steps] == [("jump", True), ("", False)] * 3
    metrics = EpisodeMetrics(["walk"])
    metrics.update(played.episode)
    assert metrics.compute()["walk"]["invalid_answers"] == metrics.compute()["walk"]["valid_actions"] == 0.5


def test_utterances_of_another_format_are_rewritten() -> None:
    chat = chat_of("chatml")
    played = play(FlatAgent(answer_format=Tags()), chat, Writer(chat, {"flat": ["So: <action>go right</action>"] * 3}))
    (other,) = FlatAgent(answer_format=JsonObject()).transcripts(played.episode, chat)
    assert chat.text(other.utterance_ids(0)) == '{"action": "go right"}'


@pytest.mark.parametrize("end", [True, False], ids=["finished", "cut"])
def test_a_thought_that_never_ends_is_invalid_and_leaves_an_empty_answer(end: bool) -> None:
    chat = chat_of("qwen3.5")
    agent = FlatAgent("Act.", 4000, keep_thoughts=False)
    writer = Writer(chat, {"flat": ["hm"] * 6}, end=end)
    played = play(agent, chat, writer)
    assert {(step.action, step.valid) for step in played.episode.steps} == {("", False)}
    assert "hm" not in chat.tokenizer.decode(writer.seen[-1][0])
    assert_what_was_read(played, writer)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_a_short_context_drops_early_turns(keep: bool) -> None:
    chat = chat_of("qwen3.5")
    agent = FlatAgent("Act.", 260, keep_thoughts=keep)
    writer = Writer(chat, {"flat": answers(chat, ["jump"] * 6)})
    played = play(agent, chat, writer)
    assert len(played.episode.steps) == 6
    lengths = [len(context) for context, _ in writer.seen]
    assert max(lengths) <= 260 - 32 and lengths != sorted(lengths)
    for transcript, log_probs in zip(played.transcripts, played.log_probs, strict=True):
        assert len(log_probs) == transcript.num_decisions
    if not keep:
        assert_what_was_read(played, writer)
    stored = agent.transcripts(played.episode, chat)
    assert keep or max(map(len, stored)) <= 260


def test_the_state_after_a_decision_of_its_own_transcript() -> None:
    chat, episode = chat_of("qwen3.5"), make_episode(0, 3)
    agent = FlatAgent("Act.", keep_thoughts=False)
    transcripts = add_outcomes(agent.transcripts(episode, chat), episode, chat, agent)
    assert [t.first_decision for t in transcripts] == [0, 1, 2]
    for step, transcript in zip(episode.steps, transcripts, strict=True):
        assert [outcome.reward for outcome in transcript.outcomes] == [step.reward]
        after = transcript.input_ids[transcript.utterance_ends[0] + 1 :]
        assert after == ([] if step is episode.steps[-1] else chat.turn(step.observation))


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5"])
def test_long_observations_are_dropped_again_after_all_turns_were(family: str) -> None:
    """The room is for one observation: each turn drops all earlier ones, and the head stays that of the start."""

    class LongEnv(CorridorEnv):
        def step(self, action: str) -> Any:
            _, *rest = super().step(action)
            return ("far " * 60, *rest)

    chat = chat_of(family)
    whole = Writer(chat, {"flat": answers(chat, ["jump"] * 6)})
    play(FlatAgent("Act.", 4000, keep_thoughts=False), chat, whole, LongEnv)
    agent = FlatAgent("Act.", len(whole.seen[1][0]) + 32 + 10, keep_thoughts=False)
    writer = Writer(chat, {"flat": answers(chat, ["jump"] * 6)})
    played = play(agent, chat, writer, LongEnv)
    assert played.episode.outcome.reason == "step_limit" and len(played.episode.steps) == 6
    assert_what_was_read(played, writer)
    head = writer.seen[0][0]
    assert len({len(context) for context, _ in writer.seen[2:]}) == 1
    assert all(context[: len(head) - 8] == head[:-8] for context, _ in writer.seen)
