"""The client of OpenAI-compatible servers, against a server in a process of its own that is slow, dead or wrong."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_chat_server import FakeChatServer, chat_server
from local_play import chat_of
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_rft.generation import (
    ChatConversations,
    ChatServer,
    ChatServerError,
    ChatServerSettings,
    SamplingSettings,
    TokenTrie,
)
from lit_rft.generation.completions_api import prompt_seed
from lit_rft.transcripts import MessageFormat

KEY = "sk-0123456789"
MESSAGES = [{"role": "user", "content": "Go."}]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeChatServer]:
    with chat_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def chat() -> MessageFormat:
    return MessageFormat(chat_of("qwen2.5").tokenizer)


def client(fake: FakeChatServer, model: str, **options: Any) -> ChatServer:
    return ChatServer(ChatServerSettings(fake.url, model, **{"pause": 0.01, "retries": 2, "timeout": 60, **options}))


def test_an_answer_and_its_cost(fake: FakeChatServer) -> None:
    server = client(fake, "echo:hello", body={"max_completion_tokens": 9, "max_tokens": None, "top_k": 5})
    answer = server.complete(MESSAGES, max_tokens=4, temperature=0.5)
    assert (answer.text, answer.finished) == ("hello", True)
    (request,) = fake.requests("echo:hello")
    assert request["path"] == "/v1/chat/completions" and request["key"] is None
    expected = {"model": "echo:hello", "messages": MESSAGES, "n": 1, "temperature": 0.5, "top_k": 5}
    assert request["body"] == {**expected, "max_completion_tokens": 9}
    assert not client(fake, "cut").complete(MESSAGES).finished
    assert client(fake, "silent").complete(MESSAGES).text == ""  # a refusal or a tool call
    server.complete(MESSAGES)
    assert server.usage == {
        "requests": 2, "retries": 0, "prompt_tokens": 14, "completion_tokens": 6, "uncounted": 0,
    }  # fmt: skip
    uncounted = client(fake, "uncounted")
    uncounted.complete(MESSAGES)
    assert [uncounted.usage[name] for name in ("requests", "uncounted", "prompt_tokens")] == [1, 1, 0]


def test_temporary_failures_are_tried_again(fake: FakeChatServer) -> None:
    server = client(fake, "flaky:2")
    assert server.complete(MESSAGES).text == "2"
    assert len(fake.requests("flaky:2")) == 3 and (server.usage["retries"], server.usage["requests"]) == (2, 1)
    with pytest.raises(ChatServerError, match=r"/v1/chat/completions: status 503: busy \(attempt 3\)"):
        client(fake, "flaky:9").complete(MESSAGES)
    assert len(fake.requests("flaky:9")) == 3


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (401, 1), (404, 1), (408, 3), (429, 3), (500, 3), (502, 3)])
def test_only_temporary_errors_are_tried_again(status: int, attempts: int, fake: FakeChatServer) -> None:
    with pytest.raises(ChatServerError, match=f"status {status}: refused"):
        client(fake, f"status:{status}").complete(MESSAGES)
    assert len(fake.requests(f"status:{status}")) == attempts


@pytest.mark.parametrize("number", range(4))
def test_malformed_answers_are_errors(number: int, fake: FakeChatServer) -> None:
    with pytest.raises(ChatServerError, match=r"expected a chat completion, got .* \(attempt 2\)"):
        client(fake, f"malformed:{number}", retries=1).complete(MESSAGES)


@pytest.mark.parametrize("model", ["slow", "dripping"])
def test_a_slow_server_is_given_up_within_the_limit(model: str, fake: FakeChatServer) -> None:
    started = time.monotonic()
    with pytest.raises(ChatServerError, match=r"no response within 1 s: TimeoutError.* \(attempt 1\)"):
        client(fake, model, timeout=1.0, retries=0).complete(MESSAGES)
    assert time.monotonic() - started < 20  # without the limit both would take 30 s


def test_a_server_that_dies_and_one_that_is_gone(fake: FakeChatServer) -> None:
    with pytest.raises(ChatServerError, match="no response within 60 s: Remote"):
        client(fake, "dead").complete(MESSAGES)
    with chat_server() as other:
        pass
    with pytest.raises(ChatServerError, match="Connection refused"):
        client(other, "echo", retries=1).complete(MESSAGES)


def test_pauses_grow_and_are_bounded(fake: FakeChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("lit_rft.generation.chat_server.time.sleep", pauses.append)
    with contextlib.suppress(ChatServerError):
        client(fake, "status:500", pause=1.0, retries=8).complete(MESSAGES)
    assert len(pauses) == 8 and pauses[-1] == 60.0
    for number, pause in enumerate(pauses[:5]):
        assert 0.75 * 2**number <= pause <= 1.25 * 2**number


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_appears_nowhere(
    fake: FakeChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server = client(fake, "status:403", key_variable="MY_KEY")
    with pytest.raises(ChatServerError) as error:
        server.complete(MESSAGES)
    assert fake.requests("status:403")[0]["key"] == f"Bearer {KEY}"
    assert "status 403: refused Bearer ***" in str(error.value)  # the server had repeated it
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert KEY not in repr(server.settings) + repr(vars(server)) + caplog.text + repr(error.value)


@pytest.mark.parametrize("value", [None, "", "two words", "a\nb", "é"])
def test_a_missing_or_invalid_key_is_an_error_without_it(
    value: str | None, fake: FakeChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ValueError, match="expected a key in the environment variable MY_KEY") as error:
        client(fake, "never", key_variable="MY_KEY").complete(MESSAGES)
    assert not value or value not in str(error.value)
    assert not fake.requests("never")


def test_redirections_are_not_followed(fake: FakeChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with chat_server() as other:
        with pytest.raises(ChatServerError, match="status 302"):
            client(fake, f"redirect:{other.port}", key_variable="MY_KEY").complete(MESSAGES)
        assert not other.requests()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x/v1"}, "chat_server.url must be http"),
        ({"url": "https://user:word@x/v1"}, "without user, key or query"),
        ({"url": "https://x/v1?key=word"}, "without user, key or query"),
        ({"url": "http://example.org/v1", "key_variable": "MY_KEY"}, "must begin with https:// to send a key"),
        ({"model": ""}, "chat_server.model must be"),
        ({"timeout": 0}, "chat_server.timeout must be > 0"),
        ({"retries": -1}, "chat_server.retries must be >= 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ChatServerSettings(**{"model": "m", **options})
    assert "word" not in str(error.value)


# --- conversations ----------------------------------------------------------------------------------------------------


TEXTS = ["", " a ", "<|im_end|>", "line\n\nline", "é\u2028𝄞", "e\u0301"]


@pytest.mark.parametrize("family", ["qwen2.5", "gemma2"])
def test_ids_hold_messages_exactly(family: str) -> None:
    chat = MessageFormat(chat_of(family).tokenizer)
    for text in TEXTS:
        ids = [*chat.head(f"S{text}", f"U{text}"), *chat.utterance(f"A{text}"), *chat.turn(f"V{text}")]
        assert chat.messages(ids) == [
            {"role": "system", "content": f"S{text}"}, {"role": "user", "content": f"U{text}"},
            {"role": "assistant", "content": f"A{text}"}, {"role": "user", "content": f"V{text}"},
        ]  # fmt: skip
        assert chat.text(chat.utterance(text)) == text


def test_texts_with_the_same_tokens_stay_apart() -> None:
    """A local tokenizer may know few words, or lower-case them: its tokens only measure lengths."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "you": 1, "see": 2, "a": 3}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    chat = MessageFormat(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    texts = ["You see", "you see a mug", "you see", "you see a knife", ""]
    ids = [*chat.head(*texts[:2]), *chat.utterance(texts[2]), *chat.turn(texts[3]), *chat.utterance(texts[4])]
    assert [message["content"] for message in chat.messages(ids)] == texts[:4]
    assert len(ids) == 12 + 5 + 2, "a token for each word, a mark for each role, and the ends"
    assert chat.utterance(texts[3]) == chat.utterance(texts[3]) != chat.utterance(texts[1])
    assert [chat.text(chat.utterance(text)) for text in texts] == texts


def test_dropped_turns_leave_no_empty_message(chat: MessageFormat) -> None:
    ids = [*chat.head("S", "U"), chat.end_of_turn_id, *chat.turn("V")]
    assert chat.messages(ids) == [{"role": "system", "content": "S"}, {"role": "user", "content": "U\n\nV"}]


def test_each_turn_sends_the_full_conversation(fake: FakeChatServer, chat: MessageFormat) -> None:
    server = client(fake, "echo:one|two")
    conversations = ChatConversations(
        server, chat, SamplingSettings(9, 0.3, top_p=0.9, stop_strings=("x",)), num_slots=2, seed=4
    )
    first, second = conversations.open("a"), conversations.open("b")
    sampled = conversations.sample({first: chat.head("S", "U"), second: chat.head("S", "W")})
    assert [chat.text(sampled[slot].ids) for slot in (first, second)] == ["one\ntwo"] * 2
    assert sampled[first].finished and sampled[first].ids[-1] == chat.end_of_turn_id
    conversations.sample({first: chat.turn("V")})
    body = fake.requests("echo:one|two")[-1]["body"]
    assert [message["content"] for message in body["messages"]] == ["S", "U", "one\ntwo", "V"]
    settings = {"max_tokens": 9, "temperature": 0.3, "top_p": 0.9, "stop": ["x"]}
    assert settings.items() <= body.items()
    seeds = [request["body"]["seed"] for request in fake.requests("echo:one|two")]
    assert len(set(seeds)) == 3, "the same prompt would have the same answer in each episode"
    assert set(seeds) == {prompt_seed(4, name) for name in ("a/0", "b/0", "a/1")}
    assert conversations.tokens_sampled == 3 * len(chat.utterance("one\ntwo"))
    conversations.forget(first)
    conversations.sample({first: chat.head("S", "Z")})
    assert len(fake.requests("echo:one|two")[-1]["body"]["messages"]) == 2
    conversations.close(first)
    with pytest.raises(ValueError, match="does not sample among given choices"):
        conversations.sample({second: [1]}, {second: TokenTrie([[1]])})


def test_each_request_has_its_own_seed_which_follows_from_the_run(fake: FakeChatServer, chat: MessageFormat) -> None:
    def seeds(seed: int, model: str) -> list[int]:
        conversations = ChatConversations(client(fake, model), chat, SamplingSettings(9, 1.0), num_slots=2, seed=seed)
        slots = [conversations.open(name) for name in ("a/0/flat", "a/1/flat")]
        for prompts in (chat.head("S", "U"), chat.turn("V")):
            for slot in slots:  # one after another: requests of one round arrive in any order
                conversations.sample({slot: prompts})
        return [request["body"]["seed"] for request in fake.requests(model)]

    first = seeds(0, "echo:seeds")
    assert len(set(first)) == 4  # two episodes of a problem, two turns
    assert all(0 <= seed < 2**31 for seed in first)
    assert seeds(0, "echo:again") == first and not set(seeds(1, "echo:other")) & set(first)


def test_ctrl_c_does_not_wait_for_the_server(fake: FakeChatServer, chat: MessageFormat) -> None:
    conversations = ChatConversations(client(fake, "slow"), chat, SamplingSettings(4), num_slots=3)
    prompts = {conversations.open(name): chat.head("S", "U") for name in "abc"}
    started = time.monotonic()
    threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run before may have left another one
    try:
        with pytest.raises(KeyboardInterrupt):
            conversations.sample(prompts)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - started < 10  # the server answers after 30 s
    requests = [thread for thread in threading.enumerate() if "work" in thread.name]
    assert requests and all(thread.daemon for thread in requests)  # the end of the process does not wait, either


def test_a_failed_request_ends_the_attempts_of_the_others(fake: FakeChatServer) -> None:
    with pytest.raises(ChatServerError, match="stopped after attempt 1"):
        client(fake, "flaky:8").complete(MESSAGES, stopped=lambda: True)
    assert len(fake.requests("flaky:8")) == 1


def test_an_unfinished_answer_has_no_end(fake: FakeChatServer, chat: MessageFormat) -> None:
    conversations = ChatConversations(client(fake, "cut"), chat, SamplingSettings(4), num_slots=1)
    slot = conversations.open("a")
    completion = conversations.sample({slot: chat.head("S", "U")})[slot]
    assert not completion.finished and completion.ids == chat.utterance("go ri")[:-1]


@pytest.mark.parametrize("sampling", [SamplingSettings(top_k=3), SamplingSettings(stop_token_ids=(3,))])
def test_settings_that_the_interface_does_not_have(sampling: SamplingSettings, fake: FakeChatServer, chat: Any) -> None:
    with pytest.raises(ValueError, match="has no top_k and stop_token_ids"):
        ChatConversations(client(fake, "echo"), chat, sampling, num_slots=1)
