"""What is damaged, how, and which commands it is given to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import mutations

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
Words = list[str | Path]


@dataclass(frozen=True)
class Case:
    """A file of a folder, the ways of damaging it, and what is done with the folder then.

    Attributes:
        source: the folder; it is copied.
        name: of the file.
        ways: of damaging it.
        commands: from the copy and an empty folder for outputs to command lines of ``bone``.
    """

    source: Path
    name: str
    ways: list[mutations.Mutation]
    commands: Callable[[Path, Path], list[Words]]


def readers(sentinel: Path, sources: Path) -> list[Case]:
    """For the commands that read and write files."""
    peft, rwkv = FIXTURES / "peft-0.18.1" / "bone-llama", FIXTURES / "rwkv-peft"
    bat = FIXTURES / "peft-0.18.1" / "bat-llama" / "adapter"
    torch_ways = [*mutations.TORCH, *[mutations.evil_pickle(str(sentinel))] * 2]
    base, adapter = peft / "base", peft / "adapter"
    config_ways = [*mutations.CONFIG, mutations.own_code(str(sentinel))]

    def read(path: Path, out: Path) -> list[Words]:
        return [["inspect", path, "--modules"], ["convert", path, "--to", "bone", "--out", out / "converted"]]

    def fold(path: Path, out: Path) -> list[Words]:
        return [["merge", "--base", base, "--adapter", path, "--out", out / "merged"]]

    def lora(path: Path, out: Path) -> list[Words]:
        return [["convert", path, "--to", "lora", "--base", base, "--out", out / "converted"]]

    def into(path: Path, out: Path) -> list[Words]:
        return [["merge", "--base", path, "--adapter", adapter, "--out", out / "merged"]]

    def cost(path: Path, out: Path) -> list[Words]:
        return [["estimate", path, "--no-memory"]]

    def read_file(path: Path, out: Path) -> list[Words]:
        return read(path / "adapter.pth", out)

    def into_file(path: Path, out: Path) -> list[Words]:
        files = ["--base", path / "base.pth", "--adapter", rwkv / "bone" / "adapter.pth"]
        return [["merge", *files, "--out", out / "merged.pth"]]

    def into_gguf(path: Path, out: Path) -> list[Words]:
        return [["merge", "--base", path / "base.gguf", "--adapter", sources / "gguf-adapter", "--out", out / "merged"]]

    mixture, experts = sources / "mixture", sources / "experts"

    def fold_experts(path: Path, out: Path) -> list[Words]:
        return [["merge", "--base", mixture, "--adapter", path, "--out", out / "merged"]]

    def lora_of_experts(path: Path, out: Path) -> list[Words]:
        return [["convert", path, "--to", "lora", "--base", mixture, "--out", out / "lora"]]

    def into_mixture(path: Path, out: Path) -> list[Words]:
        return [["merge", "--base", path, "--adapter", experts, "--out", out / "merged"]]

    weights, config = "adapter_model.safetensors", "adapter_config.json"
    return [
        Case(adapter, weights, mutations.SAFETENSORS, read),
        Case(adapter, weights, mutations.SAFETENSORS, fold),
        Case(adapter, config, mutations.JSON, read),
        Case(adapter, config, mutations.JSON, fold),
        Case(bat, weights, mutations.SAFETENSORS, read),
        Case(bat, config, mutations.JSON, lora),
        Case(base, "model.safetensors", mutations.SAFETENSORS, into),
        Case(base, "config.json", config_ways, into),
        Case(base, "config.json", config_ways, cost),
        Case(experts, weights, mutations.SAFETENSORS, fold_experts),
        Case(experts, weights, mutations.SAFETENSORS, lora_of_experts),
        Case(experts, config, mutations.JSON, fold_experts),
        Case(experts, config, mutations.JSON, lora_of_experts),
        Case(mixture, "model.safetensors", mutations.SAFETENSORS, into_mixture),
        Case(mixture, "config.json", config_ways, into_mixture),
        Case(rwkv / "bone", "adapter.pth", torch_ways, read_file),
        Case(rwkv / "bat", "adapter.pth", torch_ways, read_file),
        Case(rwkv / "bone", "base.pth", torch_ways, into_file),
        Case(sources / "gguf", "base.gguf", [*mutations.BYTES, *[mutations.flip_start] * 4], into_gguf),
    ]


def runners(command: str, sentinel: Path, sources: Path) -> list[Case]:
    """For a command that loads a model: train, generate or eval."""
    chat, trained = sources / "chat", sources / "adapter"
    rows = sources / "rows" / "rows.jsonl"
    code = mutations.own_code(str(sentinel))

    def on(base: Path, out: Path, adapter: Path = trained, data: Path = rows) -> list[Words]:
        if command == "generate":
            return [["generate", "--base", base, "--adapter", adapter, "--max-new-tokens", "2", "17+25="]]
        taken: Words = ["--base", base, "--data", data, "--fields", "query", "response"]
        if command == "eval":
            return [["eval", *taken, "--adapter", adapter, "--max-new-tokens", "2"]]
        return [["train", *taken, "--continue-from", adapter, "--steps", "1", "--out", out / "run"]]

    def recipe(path: Path, out: Path) -> list[Words]:
        return [["train", path / "recipe.yaml", "--base", chat, "--data", rows, "--out", out / "run"]]

    cases = [
        Case(chat, "config.json", [*mutations.CONFIG, code], on),
        Case(chat, "tokenizer_config.json", [*mutations.TOKENIZER, code], on),
        Case(chat, "tokenizer.json", mutations.JSON, on),
        Case(chat, "chat_template.jinja", mutations.BYTES, on),
        Case(chat, "generation_config.json", mutations.JSON, on),
        Case(chat, "model.safetensors", mutations.SAFETENSORS, on),
        Case(trained, "adapter_config.json", mutations.JSON, lambda path, out: on(chat, out, path)),
        Case(trained, "adapter_model.safetensors", mutations.SAFETENSORS, lambda path, out: on(chat, out, path)),
    ]
    if command != "generate":
        cases.append(
            Case(rows.parent, rows.name, mutations.ROWS, lambda path, out: on(chat, out, data=path / rows.name))
        )
    if command == "train":
        cases.append(Case(sources / "recipe", "recipe.yaml", mutations.YAML, recipe))
    return cases


def make_sources(folder: Path) -> Path:
    """A tiny base with a chat template, an adapter on it, the same of experts, rows, a recipe and GGUF, all sound."""
    sys.path.insert(0, str(ROOT))
    from peft import get_peft_model
    from tests.files.test_files_with_experts import qwen
    from tests.files.test_ties import write_gguf
    from tests.models import config_for, llama, randomize
    from tests.runs.tiny import make_base, sums, write_rows
    from transformers import AutoModelForCausalLM

    make_base(folder / "chat", chat=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "chat")
    randomize(get_peft_model(model, config_for("bone"))).save_pretrained(folder / "adapter")
    qwen().save_pretrained(folder / "mixture")
    model = AutoModelForCausalLM.from_pretrained(folder / "mixture")
    tuned = get_peft_model(model, config_for("bone", target_modules="all-linear"))
    randomize(tuned).save_pretrained(folder / "experts")
    for name in ("rows", "recipe", "gguf"):
        (folder / name).mkdir()
    write_rows(folder / "rows" / "rows.jsonl", sums(8))
    recipe = ["seed: 0", "fields: [query, response]", "dtype: float32", "chat: true", "template: null"]
    recipe += ["adapter: {r: 8, target_modules: [q_proj]}", "training: {max_steps: 1, learning_rate: 1e-4}"]
    (folder / "recipe" / "recipe.yaml").write_text("\n".join(recipe) + "\n")
    write_gguf(folder / "gguf" / "base.gguf")
    tuned = get_peft_model(llama(intermediate_size=64), config_for("bone"))
    randomize(tuned).save_pretrained(folder / "gguf-adapter")
    config = folder / "gguf-adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    return folder
