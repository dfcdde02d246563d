"""lm-evaluation-harness with ``peft=`` a Bone adapter: the score is that of the merged model.

    python -m checks.programs.lm_eval

Run after ``bone activate`` (which is undone), on a CPU.
"""

import json
import sys
import tempfile
from pathlib import Path

from bone_peft import merge

from .environment import activated, arguments, python_of, run
from .tiny import make_adapter, make_base, versions, write_rows

_NEEDS = ("lm-eval==0.4.13", "transformers==5.5.4", "peft==0.21.2")
_TASK = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}]
"""
_LIMIT = 40  # rows


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "lm_eval", *_NEEDS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        make_adapter(base, work / "adapter", r=16, init_weights="bat")
        merge(str(base), str(work / "adapter"), work / "merged")
        rows = write_rows(work / "rows.jsonl", "question", "answer")
        (work / "tasks").mkdir()
        (work / "tasks/sums.yaml").write_text(_TASK.format(rows=rows))
        with activated(python):
            scores = {
                name: _score(python, work, arguments)
                for name, arguments in {
                    "base": f"pretrained={base}",
                    "peft=": f"pretrained={base},peft={work / 'adapter'}",
                    "merged": f"pretrained={work / 'merged'}",
                }.items()
            }
    print(versions(python, "lm_eval", "transformers", "peft", "torch"))
    print("perplexity:", ", ".join(f"{name} {score:.9e}" for name, score in scores.items()))
    apart = abs(scores["peft="] - scores["merged"]) / scores["merged"]
    return int(apart > 1e-4 or scores["base"] == scores["peft="])


def _score(python: str, work: Path, arguments: str) -> float:
    command = [python, "-m", "lm_eval", "--model", "hf", "--model_args", f"{arguments},dtype=float32"]
    command += ["--tasks", "sums", "--include_path", str(work / "tasks"), "--device", "cpu", "--limit", str(_LIMIT)]
    command += ["--batch_size", "8", "--output_path", str(work / "scores")]
    run(command, work)
    newest = max((work / "scores").rglob("*.json"), key=lambda path: path.stat().st_mtime)
    return float(json.loads(newest.read_text())["results"]["sums"]["perplexity,none"])


if __name__ == "__main__":
    sys.exit(main())
