"""The page a run leaves behind: one file, no network."""

import re
from datetime import UTC, datetime
from importlib import resources
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from bone_peft.io.whole import whole_file

from .methods import METHODS, training_method
from .methods.training_method import TrainingMethod
from .plot import FAINT, HELD_OUT, INK, LINE, RAW, plot_loss
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

    method = training_method(recipe.method)
    with whole_file(run.plot) as file:
        plot_loss(result.history, file, axis=method.loss_axis)
    picture = StringIO()
    plot_loss(result.history, picture, "svg", axis=method.loss_axis)
    source = (resources.files("bone_peft.runs.training") / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        title=f"{run.root.name}: {recipe.base}",
        facts=facts_of(result, method),
        scores=scores or {},
        answers=_answers(result, scores),
        samples_are_held_out=result.samples_are_held_out,
        right_answer=method.right_answer,
        is_exact=method.is_exact,
        verdict=verdict(result, scores, method),
        plot=_in_the_page_s_colours(picture.getvalue()),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        recipe=recipe.to_yaml(),
        versions=versions_now(),
    )
    with whole_file(run.report) as file:
        file.write_text(page, encoding="utf-8")


def verdict(
    result: TrainResult, scores: "dict[str, Score] | None" = None, method: TrainingMethod = METHODS["sft"]
) -> str:
    """Whether it helped: by the scores, else by what was measured on held-out rows; nothing where neither was taken."""
    taken = scores or {}
    if "before" in taken and "after" in taken:
        base, adapter = taken["before"], taken["after"]
        return (
            f"Of {adapter.rows} held-out questions the adapter answers {adapter.exact_match:.1%} as expected, the base "
            f"{base.exact_match:.1%}. The loss on them is {adapter.loss:.3f}; it was {base.loss:.3f}."
        )
    said = (_by_loss(result, method.held_out_loss), method.verdict(result.history, result.kept_step))
    return " ".join(filter(None, said))


def _by_loss(result: TrainResult, loss: str) -> str:
    found = [(entry["eval_loss"], entry["step"]) for entry in result.history if "eval_loss" in entry]
    if len(found) < 2:
        return ""
    (first, _), (last, _), (best, step) = found[0], found[-1], min(found)
    kept = {when: value for value, when in found}.get(result.kept_step)
    if kept is not None:
        return (
            f"The {loss} went from {first:.3f} to {kept:.3f} at step {result.kept_step}, whose adapter "
            f"is kept; at the end it was {last:.3f}."
        )
    text = f"The {loss} went from {first:.3f} to {last:.3f}."
    if best < last:
        text += f" It was best after step {step}, with {best:.3f}."
    return text


def _in_the_page_s_colours(svg: str) -> Markup:
    for colour, name in ((INK, "ink"), (FAINT, "faint"), (LINE, "line"), (RAW, "raw"), (HELD_OUT, "held")):
        svg = svg.replace(colour, f"var(--{name})")
    # What a page does not need: what the picture is about, and names of formats.
    svg = re.sub(r"<metadata>.*?</metadata>|\s+xmlns(:\w+)?=\"[^\"]*\"", "", svg[svg.index("<svg") :], flags=re.S)
    return Markup(svg)


def facts_of(result: TrainResult, method: TrainingMethod = METHODS["sft"]) -> dict[str, str]:
    """What a run measured, in words and units."""
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    share = result.trainable_parameters / result.base_parameters
    return {
        "Trainable parameters": f"{result.trainable_parameters:,} ({share:.1%} of the base)",
        "Steps": f"{result.steps:,}",
        f"Training {method.rows}": f"{result.rows:,}" + (f" ({result.rows_cut:,} cut)" if result.rows_cut else ""),
        "Loss, first to last step": f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "not logged",
        **_held_out(result),
        **method.facts(result.history, result.kept_step),
        **({"Training time": f"{result.seconds:,.0f} s"} if result.seconds else {}),
        **({"Tokens per second": f"{result.tokens_per_second:,.0f}"} if result.tokens_per_second else {}),
        "Peak memory": f"{result.peak_memory_bytes / 2**30:.1f} GiB",
        "Device": result.device,
    }


def _held_out(result: TrainResult) -> dict[str, str]:
    found = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    if len(found) < 2:
        return {}
    at = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    if result.kept_step in at:
        kept = f"{found[0]:.3f} → {at[result.kept_step]:.3f} (step {result.kept_step}, which is kept)"
        return {"Held-out loss, first to best": kept}
    better = f", {min(found):.3f} at best" if min(found) < found[-1] else ""
    return {"Held-out loss, first to last": f"{found[0]:.3f} → {found[-1]:.3f}{better}"}


def _answers(result: TrainResult, scores: "dict[str, Score] | None") -> dict[str, Any]:
    """Columns of answers by name, over the same questions."""
    columns = {name: [sample["answer"] for sample in score.samples] for name, score in (scores or {}).items()}
    if not columns and all("base" in sample for sample in result.samples):
        columns["base"] = [sample["base"] for sample in result.samples]
    if not scores:
        columns["adapter"] = [sample["answer"] for sample in result.samples]
    questions = next(iter(scores.values())).samples if scores else result.samples
    return {
        "names": list(columns),
        "rows": [
            {
                "prompt": question["prompt"],
                "expected": question["expected"],
                "answers": [answers[index] for answers in columns.values()],
            }
            for index, question in enumerate(questions)
        ],
    }
