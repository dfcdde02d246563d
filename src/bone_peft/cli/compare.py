"""``bone compare``."""

from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from bone_peft.runs.comparison import Line

_HELP = """Which method learns your task best: methods x learning rates x seeds, at equal parameter counts.

STUDY is a YAML file, or the name of one that ships with the package: sums (minutes on two cores), and for a GPU
gsm-symbolic, gsm8k and letter-jumble.
Methods: bone, bat, bat-input, bottleneck, and of PEFT lora, rslora, dora, pissa, miss, lily, hira; full trains the
whole model. Each is trained as `bone train` trains. The learning rates of the study are tried first, then further
ones while the best is at an end, then the best with other seeds. Runs that are done are kept: start it again to go on.

[bold]Examples[/]

  bone compare sums

  bone compare mine.yaml --out studies/mine --jobs 2

[bold]mine.yaml[/]

  base: HuggingFaceTB/SmolLM2-135M
  data: train.jsonl
  eval_data: test.jsonl
  methods:
    bat: [0.0005, 0.001]
    lora: [0.0005, 0.001]
  training: {num_train_epochs: 1, per_device_train_batch_size: 16}
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="compare", help=_HELP)(compare)


def compare(
    study: str = typer.Argument(metavar="STUDY", help="YAML file, or a shipped study's name."),
    *,
    out: str = typer.Option(None, help="Folder of the study; default: as it says."),
    base: str = typer.Option(None, help="Another base than the study's."),
    data: str = typer.Option(None, help="Other training rows than the study's."),
    eval_data: str = typer.Option(None, help="Other test rows than the study's."),
    seeds: int = typer.Option(None, min=1, help="Runs at the best learning rate of a method."),
    jobs: int = typer.Option(None, min=1, help="Runs at once; default: by the memory of the GPU, one on a CPU."),
) -> None:
    from bone_peft.runs.comparison import Study
    from bone_peft.runs.comparison import compare as run

    from .console import console

    given = {"out": out, "base": base, "data": data, "eval_data": eval_data, "seeds": seeds}
    chosen = Study.load(study, {key: value for key, value in given.items() if value is not None})
    screen = console()

    def say(sentence: str) -> None:
        screen.print(sentence, markup=False, highlight=False)

    lines = run(chosen, jobs=jobs, say=say)
    screen.print(_table(lines))
    if any(line.at_an_end for line in lines):
        say("* The least or the greatest learning rate that was tried: give the study more, or raise widen.")
    for line in lines:
        if line.why:
            say(f"{line.method}: {line.why}")
    say(f"Runs, summary.json and charts: {chosen.out}")


def _table(lines: "list[Line]") -> Table:
    measures = [key for key in ("loss", "exact_match", "final_answer") if any(key in line.means for line in lines)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for name in (
        *("r", "trained\n(M)", "lr"),
        *(key.replace("_", "\n") for key in measures),
        *("runs", "ms a\nstep", "GiB"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.method,
            _or_dash(line.size, "d"),
            _or_dash(line.parameters and line.parameters / 1e6, ".2f"),
            _or_dash(line.rate, ".2e").replace("e-0", "e-") + ("*" if line.at_an_end else ""),
            *(_measure(line, key) for key in measures),
            str(line.runs),
            _or_dash(line.step_ms, ",.0f"),
            _or_dash(line.peak_bytes and line.peak_bytes / 2**30, ".1f"),
        )
    return table


def _measure(line: "Line", key: str) -> str:
    """The mean, and under it its standard error if there are several runs."""
    form = ".4f" if key == "loss" else ".1%"
    if key not in line.means:
        return "-"
    error = line.errors.get(key)
    return f"{line.means[key]:{form}}" + (f"\n±{error:{form}}" if error is not None else "")


def _or_dash(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
