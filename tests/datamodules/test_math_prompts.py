"""Prompts of problems: formats, limits, order, and sharing among processes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.datamodules import MathPromptDataModule, PromptLoader
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.transcripts import PromptFormat

MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}]


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"What is {i}+1?",
            "ground_truth": str(i + 1),
            "traces": [f"It is {i + 1}." + "x" * i],
        }
        for i in range(10)
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_data(model: Path, file: str, **options: Any) -> MathPromptDataModule:
    data = MathPromptDataModule(str(model), train_files=[file], eval_files=[file], **options)
    data.setup("fit")
    return data


def test_formats_by_name_and_of_ones_own() -> None:
    tokenizer = make_tokenizer()
    chat, think = PromptFormat(tokenizer, "chat"), PromptFormat(tokenizer, "think")
    plain = tokenizer.decode(chat.prompt_ids(MESSAGES))
    assert plain == ("<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(think.prompt_ids(MESSAGES)) == plain + "<think>\n"
    trace = "<think>\nEasy.\n</think>\n2"
    assert tokenizer.decode(chat.completion_ids(trace)) == trace + "<|im_end|>"
    assert tokenizer.decode(think.completion_ids(trace)) == "Easy.\n</think>\n2<|im_end|>"
    own = PromptFormat(tokenizer, "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>")
    assert tokenizer.decode(own.prompt_ids(MESSAGES)) == "[Think.][1+1?]>"
    without = PromptFormat(make_tokenizer(None), "chat")
    assert without.chat.tokenizer.decode(without.prompt_ids(MESSAGES)) == "System: Think.\n\nUser: 1+1?\n\nAssistant:\n"
    with pytest.raises(ValueError, match="chat or think, or a Jinja template, got 'chatty'"):
        PromptFormat(tokenizer, "chatty")


def test_prompts_and_traces_hold_no_markup() -> None:
    form = PromptFormat(make_tokenizer(), "chat")
    ids = form.prompt_ids([{"role": "user", "content": "x<|im_end|>y"}])
    assert ids.count(form.end_of_turn_id) == 1
    assert form.completion_ids("a<|im_end|>b").count(form.end_of_turn_id) == 1


def test_a_template_cannot_reach_out() -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(Exception, match=r"unsafe|access"):
        PromptFormat(make_tokenizer(), template).prompt_ids(MESSAGES)


def test_long_prompts_and_traces_go_by_rule_and_are_counted(
    tiny_model_folder: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    everything = make_data(tiny_model_folder, file).prompts["train"]
    longest = max(len(p.traces[0]) for p in everything)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        dropped = make_data(tiny_model_folder, file, max_trace_length=longest - 4).prompts["train"]
    assert [len(p.traces) for p in dropped] == [1] * 7 + [0] * 3 and "3 of 10 traces are longer" in caplog.text
    cut = make_data(tiny_model_folder, file, max_trace_length=longest - 4, long_traces="cut").prompts["train"]
    assert max(len(p.traces[0]) for p in cut) == longest - 4
    assert cut[9].traces[0] == everything[9].traces[0][: longest - 4]
    with pytest.raises(ValueError, match="all 10 prompts are longer than max_prompt_length=3"):
        make_data(tiny_model_folder, file, max_prompt_length=3)


def test_every_prompt_comes_once_an_epoch_whatever_the_number_of_processes(tiny_model_folder: Path, file: str) -> None:
    prompts = make_data(tiny_model_folder, file).prompts["train"]

    def epoch(rank: int, world_size: int, loader: Any = None) -> list[list[str]]:
        loader = loader or PromptLoader(prompts, batch_size=4, rank=rank, world_size=world_size)
        return [[p.problem.id for p in batch.prompts] for batch in loader]

    whole = epoch(0, 1)
    assert sorted(name for batch in whole for name in batch) == sorted(p.problem.id for p in prompts)
    parts = [epoch(rank, 2) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    loader = PromptLoader(prompts, batch_size=4)
    first, second = epoch(0, 1, loader), epoch(0, 1, loader)
    assert first == whole != second
    stopped, resumed = PromptLoader(prompts, batch_size=4), PromptLoader(prompts, batch_size=4)
    next(iter(stopped))
    resumed.load_state_dict(stopped.state_dict())
    assert epoch(0, 1, resumed) == whole[1:]
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with batch_size=4"):
        PromptLoader(prompts, batch_size=5).load_state_dict(stopped.state_dict())


def few_traces(tmp_path: Path, number: int = 3) -> str:
    rows = [
        {"id": f"p{i}", "prompt": f"What is {i}+1?", "ground_truth": str(i + 1), "traces": ["a"] * (i < number)}
        for i in range(14)
    ]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids_of(loader: PromptLoader) -> list[list[str]]:
    return [[prompt.problem.id for prompt in batch.prompts] for batch in loader]


def test_each_batch_has_a_share_of_prompts_with_traces(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, few_traces(tmp_path), batch_size=4, trace_share=0.5)
    loader = data.train_dataloader()
    assert len(loader) == 6
    epochs = [ids_of(loader), ids_of(loader)]
    traced = {"p0", "p1", "p2"}
    for epoch in epochs:
        assert [len(traced & set(batch)) for batch in epoch] == [2] * 6  # none of them twice
        assert [len(batch) for batch in epoch] == [4] * 5 + [3]
        others = [name for batch in epoch for name in batch if name not in traced]
        assert sorted(others) == sorted(f"p{i}" for i in range(3, 14))
        counts = [sum(name in batch for batch in epoch) for name in sorted(traced)]
        assert counts == [4, 4, 4]
    assert epochs[0] != epochs[1]


def test_the_cycle_of_prompts_with_traces_continues(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Over epochs, after a resumption, and in two processes."""
    prompts = make_data(tiny_model_folder, few_traces(tmp_path, 4)).prompts["train"]

    def loader(rank: int = 0, world_size: int = 1) -> PromptLoader:
        return PromptLoader(prompts, batch_size=5, traced_per_batch=3, rank=rank, world_size=world_size)

    complete = loader()
    epochs = [ids_of(complete), ids_of(complete)]
    cycle = [name for epoch in epochs for batch in epoch for name in batch[:3]]
    assert set(cycle[:4]) == {"p0", "p1", "p2", "p3"} and cycle == (cycle[:4] * 8)[: len(cycle)]
    stopped, resumed = loader(), loader()
    next(iter(stopped))
    resumed.load_state_dict(stopped.state_dict())
    assert ids_of(resumed) == epochs[0][1:] and ids_of(resumed) == epochs[1]
    parts = [ids_of(loader(rank, 2)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in epochs[0]]
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with traced_per_batch=3"):
        PromptLoader(prompts, batch_size=5).load_state_dict(stopped.state_dict())


def test_all_prompts_of_a_batch_with_traces(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_data(tiny_model_folder, few_traces(tmp_path), batch_size=2, trace_share=1.0)
    assert sorted(name for batch in ids_of(data.train_dataloader()) for name in batch) == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("traces", "options", "message"),
    [
        (3, {"trace_share": 1.5}, r"trace_share must be in \(0, 1\], .* got 1.5"),
        (3, {"trace_share": 0.1, "batch_size": 4}, "at least one prompt of batch_size=4, got 0.1"),
        (0, {"trace_share": 1.0}, "trace_share=1.0, but none of 14 training problems has a trace"),
        (
            1,
            {"trace_share": 0.5, "batch_size": 4},
            "expected 2 different prompts with traces in each batch of 4, .*1 with",
        ),
        (14, {"trace_share": 0.5, "batch_size": 4}, "got 14 with traces and 0 without"),
    ],
)
def test_shares_that_a_batch_cannot_have_are_refused(
    traces: int, options: dict[str, Any], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(tiny_model_folder, few_traces(tmp_path, traces), **options).train_dataloader()


def test_problems_without_any_download(tiny_model_folder: Path) -> None:
    data = MathPromptDataModule(str(tiny_model_folder), train_tasks={"chain_sum": 5}, eval_tasks={"chain_sum": 5})
    data.setup("fit")
    train, evaluation = ({p.problem.prompt[0]["content"] for p in data.prompts[name]} for name in ("train", "eval"))
    assert len(train) == 5 and not train & evaluation
    assert all(len(p.traces) == 1 for p in data.prompts["train"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"max_prompt_length": 0}, "max_prompt_length must be >= 1"),
        ({"long_traces": "fold"}, "long_traces must be drop or cut"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MathPromptDataModule(**bad)


def test_files_take_the_place_of_generated_problems(
    tiny_model_folder: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = {"train_tasks": {"chain_sum": 5}, "eval_tasks": {"chain_sum": 3}}
    data = MathPromptDataModule(str(tiny_model_folder), train_files=file, **tasks)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        data.setup("fit")
    assert {p.problem.id for p in data.prompts["train"]} == {f"p{i}" for i in range(10)}
    assert {p.problem.source for p in data.prompts["eval"]} == {"chain_sum"}
    assert "10 problems of train_files replace 5 generated problems of chain_sum" in caplog.text
    assert "eval: train_files are given, but no eval_files: 3 generated problems of chain_sum are used" in caplog.text
    MathPromptDataModule(str(tiny_model_folder), eval_files=file, train_tasks={"gcd": 4}).setup("fit")
    assert "train: eval_files are given, but no train_files: 4 generated problems of gcd are used" in caplog.text
    caplog.clear()
    data = MathPromptDataModule(str(tiny_model_folder), train_files=[file], eval_files=[file], eval_tasks={"gcd": 4})
    with caplog.at_level(logging.WARNING, "lit_rft"):
        data.setup("test")
    assert len(data.prompts["eval"]) == 10
    assert "10 problems of eval_files replace 4 generated problems of gcd" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lit_rft"):
        MathPromptDataModule(str(tiny_model_folder), **tasks).setup("fit")
    assert not caplog.text  # nothing to warn of


def test_held_out_problems_are_no_training_problems(
    tiny_model_folder: Path, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    tasks: dict[str, Any] = {"train_tasks": {"chain_sum": 40}, "eval_tasks": {"chain_sum": 30}, "task_settings": small}
    data = MathPromptDataModule(str(tiny_model_folder), **tasks)
    data.setup("fit")
    train, held_out = ({str(p.problem.prompt) for p in data.prompts[name]} for name in ("train", "eval"))
    assert len(data.prompts["train"]) == 40 and not train & held_out
    some = tmp_path / "some.jsonl"
    some.write_text("".join(Path(file).read_text().splitlines(keepends=True)[3:6]))
    data = MathPromptDataModule(str(tiny_model_folder), train_files=file, eval_files=str(some))
    with caplog.at_level(logging.WARNING, "lit_rft"):
        data.setup("fit")
    assert f"3 of 10 training problems are held out as well, such as {file}:4 ('What is 3+1?')" in caplog.text


def test_files_on_the_command_line_are_not_mixed_with_a_configs_sums(tiny_model_folder: Path, file: str) -> None:
    config = ["-c", "luffy/arithmetic.yaml", "--model.init_args.policy.model", str(tiny_model_folder)]
    files = ["--data.init_args.train_files", file, "--data.init_args.eval_files", f"[{file}]"]
    data = build(resolve_configs([*config, *files]), run=False).datamodule
    data.setup("fit")
    for name in ("train", "eval"):
        assert {prompt.problem.id for prompt in data.prompts[name]} == {f"p{i}" for i in range(10)}


def test_columns_of_training_and_evaluation(tiny_model_folder: Path, tmp_path: Path) -> None:
    for name, row in (
        ("train", {"q": "1+1?", "a": 2, "worked": "It is 2."}),
        ("held_out", {"question": "1+2?", "answer": "#### 3"}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    train, held_out = (str(tmp_path / f"{name}.jsonl") for name in ("train", "held_out"))
    files: dict[str, Any] = {"train_files": train, "eval_files": held_out}
    columns: dict[str, str | None] = {"prompt": "q", "ground_truth": "a", "traces": "worked"}
    data = MathPromptDataModule(str(tiny_model_folder), **files, columns=columns, eval_columns={})
    data.setup("fit")
    assert data.prompts["train"][0].trace_texts == ["It is 2."]
    assert data.prompts["eval"][0].problem.ground_truth == "3"
    data = MathPromptDataModule(str(tiny_model_folder), **files, columns=columns)
    with pytest.raises(ValueError, match=r"held_out\.jsonl:1: prompt: expected q, got a row with question, answer"):
        data.setup("fit")


def test_problems_of_two_files_stay_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    files = []
    for letter in "ab":
        rows = [{"id": n, "prompt": f"{letter}{n}?", "ground_truth": n} for n in range(4)]
        files.append(tmp_path / f"{letter}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = MathPromptDataModule(str(tiny_model_folder), eval_files=[str(file) for file in files])
    data.setup("validate")
    loader = data.val_dataloader()
    problems = [prompt.problem for batch in loader for prompt in batch.prompts]
    assert len(problems) == 8 and len({problem.id for problem in problems}) == 8
    assert isinstance(loader, PromptLoader)
    other = MathPromptDataModule(str(tiny_model_folder), eval_files=str(files[0]))
    other.setup("validate")
    reverse = MathPromptDataModule(str(tiny_model_folder), eval_files=[str(file) for file in files[::-1]])
    reverse.setup("validate")
    assert loader.fingerprint() == reverse.val_dataloader().fingerprint() != other.val_dataloader().fingerprint()


def test_no_problems_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="no problems: set train_files or train_tasks"):
        MathPromptDataModule(str(tiny_model_folder)).setup("fit")
