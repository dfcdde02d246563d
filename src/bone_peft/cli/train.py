"""``bone train``."""

from typing import Annotated, Any

import typer

from bone_peft.errors import BoneError
from bone_peft.runs import recipes

from .console import TRUST, console
from .devices import chosen, processes, start
from .recipe_flags import laid_over

_HELP = f"""Fine-tune a base model with Bone, Bat or Bottleneck.

[bold]Examples[/]

  bone train recipe.yaml --dry-run                          [dim]# rows as the model sees them, memory, time[/]

  bone train demo                                           [dim]# a shipped recipe[/]

  bone train recipe.yaml --lr 1e-4 --out runs/second        [dim]# your recipe; flags override it[/]

  bone train --base ./llama --data sums.jsonl --fields question answer --out runs/sums --steps 200

  bone train --base HuggingFaceTB/SmolLM2-135M-Instruct --data "gym:chain_sum?min_terms=2" --init-weights bat

  bone train --method dpo --base ./llama --data pairs.jsonl [dim]# prompt, chosen, rejected[/]

  bone train --resume --out runs/sums                       [dim]# continue after a stop or a kill[/]

  bone train recipe.yaml --devices 2 --strategy fsdp2       [dim]# default: all GPUs of the machine[/]

  torchrun --nproc_per_node 2 -m bone_peft train recipe.yaml --set adapter.r=16   [dim]# --r is torchrun's own[/]

[bold]Shipped recipes[/]: {", ".join(recipes.names())}

[bold]Data[/]: a .jsonl, .json, .parquet, .csv or .tsv file, a `datasets` name (owner/name?split=train), or a generated
task (gym:TASK?key=value); several by repeating --data, or by a pattern in quotes (--data "rows/*.jsonl").
[bold]Result[/]: OUT/adapter, OUT/recipe.yaml, OUT/report.html. Every tenth of the steps is saved.
"""

_MODEL, _ADAPTER, _TRAINING, _RUN = "Model and data", "Adapter", "Training", "Run"


def add_to(app: typer.Typer) -> None:
    app.command(name="train", help=_HELP)(train)


def train(
    recipe: str = typer.Argument(None, metavar="[RECIPE]", help="A YAML file, or the name of a shipped recipe."),
    *,
    base: str = typer.Option(
        None, help="Model folder, hub name, .gguf file, RWKV .pth file, or package:NAME.", rich_help_panel=_MODEL
    ),
    method: str = typer.Option(
        None, help="sft [dim](default)[/], or dpo for pairs of answers.", rich_help_panel=_MODEL
    ),
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Training rows; repeat it for more.", rich_help_panel=_MODEL),
    ] = None,
    data_weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="NUMBER", help="How often rows of each --data are taken, in its order.", rich_help_panel=_MODEL
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Held-out rows; left out of training.", rich_help_panel=_MODEL),
    ] = None,
    eval_split: bool = typer.Option(
        None, "--eval-split", help="Hold out a fiftieth of the rows (10 to 200).", rich_help_panel=_MODEL
    ),
    fields: tuple[str, str] = typer.Option(
        None, metavar="PROMPT COMPLETION", help="Names of the two columns.", rich_help_panel=_MODEL
    ),
    chat: bool = typer.Option(
        None,
        "--chat/--no-chat",
        help="Chat messages or plain text [dim](default: as the base)[/].",
        rich_help_panel=_MODEL,
    ),
    template: str = typer.Option(
        None, help="Plain text around prompt and answer: {prompt} and {completion}.", rich_help_panel=_MODEL
    ),
    chat_template: str = typer.Option(
        None, help="For a base without one: chatml, llama3, or a file.", rich_help_panel=_MODEL
    ),
    train_on: str = typer.Option(
        None, help="Of chats: all answers [dim](default)[/], or the last of each.", rich_help_panel=_MODEL
    ),
    bf16: bool = typer.Option(None, "--bf16/--no-bf16", help="Base in bf16 or fp32.", rich_help_panel=_MODEL),
    quantize: str = typer.Option(None, help="Base in 8bit or 4bit (bitsandbytes).", rich_help_panel=_MODEL),
    trust_remote_code: bool = typer.Option(None, "--trust-remote-code", help=TRUST, rich_help_panel=_MODEL),
    continue_from: str = typer.Option(
        None, help="A trained adapter to go on from, with its own options.", rich_help_panel=_ADAPTER
    ),
    r: int = typer.Option(None, help="Block size [dim](default: 64)[/].", rich_help_panel=_ADAPTER),
    init_weights: str = typer.Option(None, help="true (Bone), false, or bat (Bat).", rich_help_panel=_ADAPTER),
    share: str = typer.Option(None, help="Bat's blocks by output or input.", rich_help_panel=_ADAPTER),
    bottleneck_size: int = typer.Option(None, help="Bottleneck instead of Bone.", rich_help_panel=_ADAPTER),
    bottleneck_alpha: float = typer.Option(None, help="Width = size * alpha.", rich_help_panel=_ADAPTER),
    bottleneck_dropout: float = typer.Option(None, help="Dropout of the bottleneck.", rich_help_panel=_ADAPTER),
    dropout: float = typer.Option(None, help="Dropout of Bone and Bat.", rich_help_panel=_ADAPTER),
    target_modules: str = typer.Option(
        None,
        help="Names (q_proj,v_proj), a regular expression, or all-linear [dim](default)[/].",
        rich_help_panel=_ADAPTER,
    ),
    lr: float = typer.Option(None, help="Peak learning rate [dim](default: by variant)[/].", rich_help_panel=_TRAINING),
    steps: int = typer.Option(None, help="Optimizer steps (overrides epochs).", rich_help_panel=_TRAINING),
    epochs: float = typer.Option(None, help="Passes over the data [dim](default: 3)[/].", rich_help_panel=_TRAINING),
    batch_size: int = typer.Option(
        None, help="Rows (packed: lines) a step and process [dim](default: 16)[/].", rich_help_panel=_TRAINING
    ),
    grad_accum: int = typer.Option(None, help="Batches an optimizer step.", rich_help_panel=_TRAINING),
    max_length: int = typer.Option(None, help="Longest row in tokens.", rich_help_panel=_TRAINING),
    packing: bool = typer.Option(
        None, "--packing/--no-packing", help="Rows in lines of MAX_LENGTH tokens.", rich_help_panel=_TRAINING
    ),
    context_chunk: int = typer.Option(
        None, help="RWKV: whole rows, in pieces of so many tokens with the state carried on.", rich_help_panel=_TRAINING
    ),
    keep: str = typer.Option(
        None, help="The last adapter [dim](default)[/], or the best on held-out rows.", rich_help_panel=_TRAINING
    ),
    early_stopping: int = typer.Option(
        None,
        metavar="LOOKS",
        help="End after so many looks at the held-out loss, one each tenth, without a better one; keep the best.",
        rich_help_panel=_TRAINING,
    ),
    seed: int = typer.Option(None, help="Of initial values, order and dropout.", rich_help_panel=_TRAINING),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Anything else: adapter.KEY=VALUE, training.KEY=VALUE, or KEY=VALUE.",
        ),
    ] = None,
    out: str = typer.Option(None, help="Folder of the run.", rich_help_panel=_RUN),
    resume: bool = typer.Option(False, "--resume", help="Continue from the last checkpoint.", rich_help_panel=_RUN),
    force: bool = typer.Option(False, "--force", help="Replace the run that OUT holds.", rich_help_panel=_RUN),
    only_look: bool = typer.Option(
        False, "--dry-run", help="Show rows, lengths, memory and time, and stop.", rich_help_panel=_RUN
    ),
    log: Annotated[
        list[str] | None,
        typer.Option(help="Losses go there besides TensorBoard: wandb, mlflow, ...", rich_help_panel=_RUN),
    ] = None,
    push_to_hub: str = typer.Option(
        None, metavar="OWNER/NAME", help="Upload the adapter to the Hugging Face Hub.", rich_help_panel=_RUN
    ),
    devices: str = typer.Option("auto", help="How many GPUs; auto: all of them.", rich_help_panel=_RUN),
    strategy: str = typer.Option("auto", help="On several GPUs: ddp, fsdp2, zero3 or tp.", rich_help_panel=_RUN),
) -> None:
    given = dict(locals())

    screen = console()
    screen.print("Starting: PyTorch, Transformers and TRL take some seconds to load.")  # before they do

    from bone_peft.runs.training import dry_run
    from bone_peft.runs.training import train as run

    complete = laid_over(_recipe(recipe, out, resume), given)
    if only_look:
        dry_run(complete, console=screen)
        return
    if (number := processes(devices, _processes_before(complete.out) if resume else None)) > 1:
        way = chosen(strategy, complete)
        screen.print(f"Starting a process for each of {number} devices ({way}).")
        start(number, way)
    result = run(complete, resume=resume, force=force, console=screen)
    screen.print(f"Adapter: {result.adapter}", f"Report:  {complete.out}/report.html", sep="\n", markup=False)


def _recipe(name: str | None, out: str | None, resume: bool) -> Any:
    """The recipe named, else the one of the run to resume, else an empty one."""
    from bone_peft.runs.data.sources import SUFFIXES
    from bone_peft.runs.training.recipe import Recipe
    from bone_peft.runs.training.run_folder import RunFolder

    if name is not None:
        if name.endswith(SUFFIXES):
            raise BoneError(f"{name} is no recipe; give rows by --data, repeated, or a pattern in quotes.")
        return Recipe.load(name)
    if resume and out is not None:
        run = RunFolder(out)
        run.recover()
        if run.recipe.is_file():
            return Recipe.load(run.recipe)
    return Recipe()


def _processes_before(out: str) -> int | None:
    """How many wrote the last checkpoint of a run, if it has one."""
    from bone_peft.runs.training.run_folder import RunFolder
    from bone_peft.runs.training.saved_state import SavedState

    checkpoint = RunFolder(out).last_checkpoint()
    return None if checkpoint is None else SavedState.of(checkpoint).processes
