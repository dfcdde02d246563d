"""``method: dpo``: what is learned of pairs, measured against log probabilities in float64; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.errors import BoneError
from bone_peft.runs.training import Recipe, train

from .tiny import write_rows

BETA = 0.5


def pairs(count: int, start: int = 0) -> list[dict]:
    return [
        {"prompt": f"{i * 37}+{i}=", "chosen": str(i * 38), "rejected": str(i * 38 + 1 + i % 7)}
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pairs to learn from, and others to judge by; seven of them, which make no whole batches."""
    folder = tmp_path_factory.mktemp("pairs")
    return [str(write_rows(folder / f"{n}.jsonl", rows)) for n, rows in (("train", pairs(24)), ("test", pairs(7, 100)))]


def recipe(base, files, out, **values) -> Recipe:
    return Recipe(
        method="dpo", base=base, data=files[0], eval_data=files[1], out=str(out), dtype="float32"
    ).with_values(
        {
            "adapter.r": 8,
            "adapter.target_modules": "all-linear",
            "training.beta": BETA,
            "training.learning_rate": 1e-2,
            "training.max_steps": 3,
            "training.per_device_train_batch_size": 4,
            "training.gradient_checkpointing": False,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
    )


def log_p(model, prompt: list[int], answer: list[int]) -> float:
    """Of an answer, in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())


def in_float64(base: str, adapter: Path | None = None):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).double()


def measured(base: str, reference, model, rows: list[dict]) -> dict[str, float]:
    """Loss, accuracy and margin by their definitions, a pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    margins = []
    for row in rows:
        rewards = []
        for text in (row["chosen"], row["rejected"]):
            prompt, answer = row["prompt"], f"{text}</s>"
            if tokenizer.chat_template:
                prompt = f"<u>{prompt}</s><a>"
            ids = [tokenizer(part)["input_ids"] for part in (prompt, answer)]
            rewards.append(BETA * (log_p(model, *ids) - log_p(reference, *ids)))
        margins.append(rewards[0] - rewards[1])
    found = torch.tensor(margins, dtype=torch.float64)
    return {
        "eval_loss": float(-logsigmoid(found).mean()),
        "eval_rewards/accuracies": float((found > 0).double().mean()),
        "eval_rewards/margins": float(found.mean()),
    }


def last_look(result) -> dict:
    return [entry for entry in result.history if "eval_loss" in entry][-1]


@pytest.mark.parametrize(("kind", "init_weights"), [("plain_base", True), ("chat_base", "bat")])
def test_measures_are_those_of_the_definition_and_the_reference_is_the_base(
    kind, init_weights, request, files, tmp_path
):
    base = request.getfixturevalue(kind)
    result = train(recipe(base, files, tmp_path / "run", adapter__init_weights=init_weights))
    first, last = result.history[0], last_look(result)
    assert first["eval_loss"] == pytest.approx(torch.tensor(2.0).log().item())
    expected = measured(base, in_float64(base), in_float64(base, tmp_path / "run" / "adapter"), pairs(7, 100))
    assert {key: last[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert abs(last["eval_loss"] - first["eval_loss"]) > 1e-3  # it is another model by now


@pytest.fixture(scope="module")
def trained(plain_base, files, tmp_path_factory) -> Path:
    """An adapter to train on."""
    out = tmp_path_factory.mktemp("runs") / "first"
    train(recipe(plain_base, files, out, training__max_steps=1, training__eval_strategy="no"))
    return out / "adapter"


def test_an_adapter_that_is_trained_on_is_its_own_reference(plain_base, files, tmp_path, trained):
    plan = recipe(plain_base, files, tmp_path / "second", continue_from=str(trained))
    plan.adapter = {}
    result = train(plan)
    expected = measured(
        plain_base,
        in_float64(plain_base, trained),
        in_float64(plain_base, tmp_path / "second" / "adapter"),
        pairs(7, 100),
    )
    assert {key: last_look(result)[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert result.base_parameters == sum(p.numel() for p in in_float64(plain_base).parameters())
    assert not [path for path in (tmp_path / "second" / "adapter").iterdir() if path.is_dir()]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(plain_base, files, tmp_path, trained, goes_on):
    plan = recipe(plain_base, files, tmp_path / "run", training__max_steps=2, training__save_steps=1)
    if goes_on:
        plan.continue_from, plan.adapter = str(trained), {}
    whole = train(plan)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    learned = load_file(file)
    # A kill in the middle of the last save.
    (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "trainer_state.json").unlink()
    again = train(plan, resume=True)
    assert [entry["loss"] for entry in again.history if "loss" in entry] == [
        entry["loss"] for entry in whole.history if "loss" in entry
    ]
    assert last_look(again)["eval_loss"] == last_look(whole)["eval_loss"]
    assert all(learned[name].equal(tensor) for name, tensor in load_file(file).items())


def test_what_a_run_leaves_speaks_of_pairs(chat_base, files, tmp_path):
    plan = recipe(chat_base, files, tmp_path / "run", training__max_steps=2)
    plan.eval_data, plan.eval_split, plan.keep = None, True, "best"
    result = train(plan)
    assert (result.rows, result.held_out_removed, result.kept_step is not None) == (14, 10, True)
    page = (tmp_path / "run" / "report.html").read_text()
    for words in (
        "DPO loss on held-out pairs went from 0.693",
        "The chosen answer has the higher reward in ",
        "Training pairs",
    ):
        assert words in page
    assert "<th>chosen</th>" in page and "expected" not in page and 'class="wrong"' not in page
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "| Reward accuracy on held-out pairs | 0.0% →" in card and "method: dpo" in card
    assert {sample["expected"] for sample in result.samples} <= {row["chosen"] for row in pairs(24)}


def bone(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_line_and_a_dry_run(chat_base, files, tmp_path):
    words = ("--method", "dpo", "--base", chat_base, "--data", files[0], "--r", 8, "--steps", 6, "--batch-size", 4)
    done = bone("train", *words, "--dry-run", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "<u>37+1=</s><a>⟦38</s>⟧" in done.output.replace(" ", "")
    assert "pair 2, rejected" in done.output
    tokens = sum(2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) + 8 for r in pairs(24))
    assert f"24 pairs of {tokens} tokens, " in done.output and "6 steps of 4 pairs." in done.output
    assert not (tmp_path / "run").exists()


def test_pairs_that_teach_nothing_are_left_out_and_counted(plain_base, tmp_path):
    alike = {"prompt": "a", "chosen": "b", "rejected": "b"}
    long = {"prompt": 9 * "a", "chosen": "b", "rejected": "c"}
    file = write_rows(tmp_path / "rows.jsonl", [*pairs(4), alike, long])
    words = ("--method", "dpo", "--base", plain_base, "--data", file, "--max-length", 9, "--r", 8)
    done = bone("train", *words, "--dry-run")
    assert done.exit_code == 0, done.output
    for sentence in (
        "2 of 6 training pairs are longer than 9 tokens and are cut",
        "1 of 6 training pairs have nothing left of an answer",
        "1 of 6 training pairs have twice the same answer",
        "4 pairs of ",
    ):
        assert sentence in done.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "dop"], "There is no method 'dop'; choose one of dpo, sft."),
        (["--method", "dpo", "--packing"], "training.packing is a setting of method sft"),
        (["--set", "training.beta=0.2"], "training.beta is a setting of method dpo"),
        (["--method", "dpo", "--fields", "prompt", "chosen"], "fields is not for method dpo"),
        (["--method", "dpo", "--context-chunk", "8"], "context_chunk is not for method dpo"),
        (["--method", "dpo", "--train-on", "last"], "train_on is not for method dpo"),
        (["--method", "dpo", "--strategy", "tp"], "tensor_parallel is not for method dpo"),
        (["--method", "dpo", "--dropout", "0.1"], "adapter.bone_dropout would be switched off"),
        (["--method", "dpo", "--set", "adapter.modules_to_save=[lm_head]"], "adapter.modules_to_save is not for"),
        (["--method", "dpo", "--set", "training.beta=x"], "training.beta must be a number"),
        (
            ["--method", "dpo", "--set", "training.sync_ref_model=true"],
            "`sync_ref_model=True` while using",
        ),
        (["--method", "dpo", "--target-modules", "lm_head"], "`lm_head` is not supported"),
        ([], "with --method dpo; for one of them, name two columns with --fields"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(plain_base, files, tmp_path, words, sentence):
    done = bone("train", "--base", plain_base, "--data", files[0], "--r", 8, "--out", tmp_path / "run", *words)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_rows_without_pairs_say_what_to_type(plain_base, rows_file, tmp_path):
    plan = recipe(plain_base, [rows_file, None], tmp_path / "run")
    with pytest.raises(BoneError, match="no column chosen and no column rejected, it has query, response"):
        train(plan)


def test_the_other_commands_know_the_method(plain_base, files, tmp_path):
    out = tmp_path / "pairs.yaml"
    done = bone("init", "--method", "dpo", "--base", plain_base, "--data", files[0], "--out", out)
    assert done.exit_code == 0, done.output
    begun = Recipe.load(out).checked()
    assert (begun.method, begun.training["beta"], begun.training["learning_rate"]) == ("dpo", 0.1, 1e-6)
    assert "24 rows, pairs of a chosen and a rejected answer, in columns prompt, chosen, rejected." in out.read_text()

    words = ("estimate", "--base", plain_base, "--r", 8, "--length", 32, "--json", "--batch-size")
    of_pairs, of_rows = (json.loads(bone(*words, *more).stdout) for more in ((2, "--method", "dpo"), (4,)))
    assert of_pairs["costs"][0] == of_rows["costs"][0]
