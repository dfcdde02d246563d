"""The page a run leaves behind: one file, no network."""

import base64
from importlib import resources
from typing import TYPE_CHECKING, Any

from bone_peft.io.whole import whole_file

from .plot import plot_loss
from .recipe import Recipe, versions_now
from .result import TrainResult
from .run_folder import RunFolder

if TYPE_CHECKING:
    from ..evaluation import Score


def write_report(run: RunFolder, recipe: Recipe, result: TrainResult, scores: "dict[str, Score] | None" = None) -> None:
    """Write ``report.html`` and ``loss.png`` into the run's folder.

    Args:
        run: where.
        recipe: what was run.
        result: what was measured.
        scores: held-out scores by name, where they were taken; they add a table and their answers.
    """
    from jinja2 import Environment, StrictUndefined

    with whole_file(run.plot) as file:
        plot_loss(result.history, file)
    source = (resources.files("bone_peft.runs.training") / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        title=f"{run.root.name}: {recipe.base}",
        facts=facts_of(result),
        scores=scores or {},
        answers=_answers(result, scores),
        samples_are_held_out=result.samples_are_held_out,
        plot=base64.b64encode(run.plot.read_bytes()).decode("ascii"),
        recipe=recipe.to_yaml(),
        versions=versions_now(),
    )
    with whole_file(run.report) as file:
        file.write_text(page, encoding="utf-8")


def facts_of(result: TrainResult) -> dict[str, str]:
    """What a run measured, in words and units."""
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    share = result.trainable_parameters / result.base_parameters
    return {
        "Trainable parameters": f"{result.trainable_parameters:,} ({share:.1%} of the base)",
        "Steps": f"{result.steps:,}",
        "Training rows": f"{result.rows:,}" + (f" ({result.rows_cut:,} cut)" if result.rows_cut else ""),
        "Loss, first to last step": f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "not logged",
        **_held_out(result),
        "Training time": f"{result.seconds:,.0f} s",
        "Tokens per second": f"{result.tokens_per_second:,.0f}",
        "Peak memory": f"{result.peak_memory_bytes / 2**30:.1f} GiB",
        "Device": result.device,
    }


def _held_out(result: TrainResult) -> dict[str, str]:
    found = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    if len(found) < 2:
        return {}
    better = f", {min(found):.3f} at best" if min(found) < found[-1] else ""
    return {"Held-out loss, first to last": f"{found[0]:.3f} → {found[-1]:.3f}{better}"}


def _answers(result: TrainResult, scores: "dict[str, Score] | None") -> dict[str, Any]:
    """Columns of answers by name, over the same questions."""
    columns = {name: score.samples for name, score in (scores or {}).items()} or {"answer": result.samples}
    questions = next(iter(columns.values()))
    return {
        "names": list(columns),
        "rows": [
            {
                "prompt": question["prompt"],
                "expected": question["expected"],
                "answers": [samples[index]["answer"] for samples in columns.values()],
            }
            for index, question in enumerate(questions)
        ],
    }
