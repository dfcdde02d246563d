"""The commands one after another, as a user runs them, on a tiny chat model."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bone_peft.cli.compare import _table
from bone_peft.cli.console import Screen
from bone_peft.cli.main import app
from bone_peft.runs import recipes
from bone_peft.runs.comparison import Line

from ..runs.test_train import reference_loss
from ..runs.tiny import sums, write_rows


def bone(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)


@pytest.fixture(scope="module")
def run(chat_base, rows_file, tmp_path_factory):
    """A folder with a trained adapter and its merge, in fp32, and held-out rows."""
    out = tmp_path_factory.mktemp("runs") / "run"
    held_out = write_rows(out.parent / "held-out.jsonl", sums(6, start=100))
    trained = bone(
        *("train", "--base", chat_base, "--data", rows_file, "--fields", "query", "response", "--out", out),
        *("--eval-data", held_out, "--no-bf16", "--r", 8, "--init-weights", "bat", "--target-modules", "q_proj,v_proj"),
        *("--steps", 3, "--lr", "1e-1", "--set", "training.weight_decay=0.1"),
    )
    assert trained.exit_code == 0, trained.output
    merged = bone("merge", "--base", chat_base, "--adapter", out / "adapter", "--out", out / "merged", "--no-bf16")
    assert merged.exit_code == 0, merged.output
    return out


def test_train_writes_the_recipe_with_every_override(run, chat_base, rows_file):
    recipe = (run / "recipe.yaml").read_text()
    for line in (f"base: {chat_base}", "init_weights: bat", "weight_decay: 0.1", "dtype: float32", "torch: "):
        assert line in recipe
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "BONE"
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == chat_base


def test_flags_override_a_recipe_file(run, tmp_path):
    trained = bone("train", run / "recipe.yaml", "--out", tmp_path / "again", "--seed", "1", "--steps", "1")
    assert trained.exit_code == 0, trained.output
    recipe = (tmp_path / "again" / "recipe.yaml").read_text()
    assert "max_steps: 1" in recipe
    assert "seed: 1" in recipe
    assert "init_weights: bat" in recipe


def test_merged_folder_has_no_trace_of_peft(run, chat_base):
    names = {path.name for path in (run / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any("adapter" in name for name in names)
    assert "peft" not in (run / "merged" / "config.json").read_text().lower()
    merged, base = load_file(run / "merged" / "model.safetensors"), AutoModelForCausalLM.from_pretrained(chat_base)
    assert set(merged) == set(load_file(f"{chat_base}/model.safetensors"))
    changed = {name for name, value in base.state_dict().items() if name in merged and not value.equal(merged[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    assert len(changed) == 4
    assert AutoTokenizer.from_pretrained(run / "merged").chat_template


def test_eval_scores_base_adapter_and_merged(run, chat_base, tmp_path):
    held_out, file = run.parent / "held-out.jsonl", tmp_path / "scores.json"
    done = bone(
        *("eval", "--base", chat_base, "--adapter", run / "adapter", "--merged", run / "merged", "--data", held_out),
        *("--fields", "query", "response", "--no-bf16", "--batch-size", 4, "--json", file),
    )
    assert done.exit_code == 0, done.output
    scores = json.loads(file.read_text())["scores"]
    assert list(scores) == ["base", "adapter", "merged"]
    assert scores["base"]["loss"] == pytest.approx(reference_loss(chat_base, str(held_out)), rel=1e-5)
    assert scores["merged"]["loss"] == pytest.approx(reference_loss(str(run / "merged"), str(held_out)), rel=1e-5)
    assert scores["adapter"]["loss"] == pytest.approx(scores["merged"]["loss"], rel=1e-5)
    assert abs(scores["adapter"]["loss"] - scores["base"]["loss"]) > 1e-3
    assert {score["rows"] for score in scores.values()} == {6}
    for name in ("base", "adapter", "merged"):
        assert re.search(rf"{name}.*{scores[name]['loss']:.4f}", done.output)


def test_exact_match_counts_right_answers(run, tmp_path):
    # The model's own greedy answers are right by definition; all but one of these are.
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    rows = []
    for row in sums(40):
        messages = [{"role": "user", "content": row["query"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(out, skip_special_tokens=True).strip()
        if text:
            rows.append({"query": row["query"], "response": text})
    rows = rows[:3] + rows[-2:]
    rows[2]["response"] = "x" + rows[2]["response"][1:]
    assert len({len(row["query"]) for row in rows}) > 1  # so that some rows are padded
    data, file = write_rows(tmp_path / "own.jsonl", rows), tmp_path / "scores.json"
    done = bone(
        *("eval", "--merged", run / "merged", "--data", data, "--fields", "query", "response", "--no-bf16"),
        *("--max-new-tokens", 6, "--json", file),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())["scores"]["merged"]["exact_match"] == pytest.approx(4 / 5)


def test_generate_streams_and_reads_standard_input(run, chat_base):
    options = ("--base", chat_base, "--adapter", run / "adapter", "--no-bf16", "--max-new-tokens", 8)
    by_argument = bone("generate", *options, "2+2=")
    by_input = bone("generate", *options, input="2+2=\n")
    merged = bone("generate", "--base", run / "merged", "--no-bf16", "--max-new-tokens", 8, "2+2=")
    assert by_argument.exit_code == by_input.exit_code == merged.exit_code == 0, by_argument.output
    assert by_argument.output == by_input.output == merged.output
    sampled = [bone("generate", *options, "--temperature", 2, "--seed", seed, "2+2=").output for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_run_is_asked_as_it_was_trained(chat_base, rows_file, tmp_path):
    """A base with a chat template, and rows that were learned as plain text."""
    run, held_out = tmp_path / "run", write_rows(tmp_path / "held-out.jsonl", sums(4, start=100))
    rows = ("--fields", "query", "response", "--no-bf16")
    plain = ("--no-chat", "--template", "Q: {prompt} A: {completion}")
    trained = bone(
        *("train", "--base", chat_base, "--data", rows_file, *rows, *plain, "--out", run, "--r", 8, "--steps", 2),
        *("--lr", "1e-1"),
    )
    assert trained.exit_code == 0, trained.output

    def loss(*form):
        done = bone("eval", "--adapter", run, "--data", held_out, *rows, *form, "--json", tmp_path / "scores.json")
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "scores.json").read_text())["scores"]["adapter"]["loss"], done.output

    as_it_was, said = loss()
    assert 'as the run wrote its rows: plain text, "Q: {prompt} A: {completion}"' in said
    explicit, said = loss("--no-chat", "--template", "Q: {prompt} A: {completion}")
    assert as_it_was == explicit
    assert "as the run wrote" not in said
    assert loss("--chat")[0] != as_it_was
    asked = ("--no-bf16", "--max-new-tokens", 8)
    answers = {
        words: bone("generate", "--adapter", run / "adapter", *asked, *words).stdout
        for words in (("1 + 2",), ("--no-chat", "Q: 1 + 2 A:"), ("--chat", "1 + 2"))
    }
    assert answers["1 + 2",] == answers["--no-chat", "Q: 1 + 2 A:"] != answers["--chat", "1 + 2"]
    (run / "recipe.yaml").write_text("no run wrote this: 1\n", encoding="utf-8")
    assert loss() == (loss("--chat")[0], loss("--chat")[1])


@pytest.mark.parametrize("command", ["train", "eval", "merge", "generate", "demo"])
def test_help_teaches_by_example(command):
    shown = bone(command, "--help")
    assert shown.exit_code == 0
    assert f"bone {command}" in shown.output
    assert "Examples" in shown.output


def test_help_of_train_lists_the_shipped_recipes():
    shown = bone("train", "--help").output
    assert all(name in shown for name in recipes.names())
    assert {"demo", "metamath-bone", "metamath-bat"} <= set(recipes.names())


def test_a_run_is_as_good_as_its_adapter_and_names_its_base(run, chat_base, tmp_path, monkeypatch):
    held_out = run.parent / "held-out.jsonl"
    rows = ("--data", held_out, "--fields", "query", "response", "--no-bf16", "--json")
    named = bone("eval", "--base", chat_base, "--adapter", run / "adapter", *rows, tmp_path / "named.json")
    found = bone("eval", "--adapter", run, *rows, tmp_path / "found.json")
    assert named.exit_code == found.exit_code == 0, found.output
    assert json.loads((tmp_path / "named.json").read_text()) == json.loads((tmp_path / "found.json").read_text())

    answers = [
        bone("generate", *given, "37+1=", "--no-bf16", "--max-new-tokens", 4)
        for given in (("--base", chat_base, "--adapter", run / "adapter"), ("--adapter", run))
    ]
    assert answers[0].exit_code == 0 and answers[0].output == answers[1].output
    assert bone("inspect", run).output == bone("inspect", run / "adapter").output
    converted = bone("convert", run, "--to", "bone", "--out", tmp_path / "copy")
    assert converted.exit_code == 0, converted.output
    again = bone("merge", "--base", chat_base, "--adapter", run, "--out", tmp_path / "merged", "--no-bf16")
    assert again.exit_code == 0, again.output
    one, other = (load_file(folder / "model.safetensors") for folder in (run / "merged", tmp_path / "merged"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_base_in_this_folder_is_found_from_another(chat_base, rows_file, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(chat_base)
    monkeypatch.chdir(tmp_path)
    options = ("--fields", "query", "response", "--no-bf16", "--r", 8, "--steps", 1)
    trained = bone("train", "--base", "base", "--data", rows_file, "--out", "run", *options)
    assert trained.exit_code == 0, trained.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    answer = bone("generate", "--adapter", tmp_path / "run", "37+1=", "--max-new-tokens", 2)
    assert answer.exit_code == 0, answer.output


def test_nothing_to_answer_with():
    asked = bone("generate", "hello")
    assert asked.exit_code == 2 and "give --base, --adapter, or both" in asked.stderr


def test_the_table_of_a_study_fits_a_narrow_terminal(capsys):
    means = {"loss": 0.0477, "exact_match": 0.121, "final_answer": 0.247}
    errors = {"loss": 0.0012, "exact_match": 0.01, "final_answer": 0.013}
    whole = Line("bottleneck", 33, 10_074_240, 1.25e-4, True, 3, means, errors, 2593.0, 2**31)
    failed = Line("full", None, None, None, False, 0, {}, {}, None, None, "it failed")
    Screen(width=80).print(_table([whole, failed]))
    text = capsys.readouterr().out
    for word in ("bottleneck", "10.07", "1.25e-4*", "0.0477", "±0.0012", "12.1%", "24.7%", "±1.3%", "2,593", "2.0"):
        assert word in text
    assert "full" in text and "…" not in text
