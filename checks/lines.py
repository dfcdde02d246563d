"""Every causal language model of Transformers: are rows in one line computed as they are alone?

    python -m checks.lines

Each architecture, tiny and with random weights, is tried as ``bone train`` tries it. Where that gives it lines, loss
and gradients of a line are compared with those of the rows one by one, in float32 and in training mode. Exits with 1 if
one differs. Half a minute on one core.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bone_peft.runs.training.completion_loss import completion_loss, most_answers
from bone_peft.runs.training.padding_free import RowsInOneLine, by_rows, fault

from .architectures.isolated import isolated
from .architectures.kinds import KINDS
from .architectures.models import tiny_model

KIND = "causal-lm"
RIGHT, DIFFERENT = "in lines, as it is alone", "IN LINES, AND DIFFERENT"
_LENGTHS = (21, 5, 12)
_SECONDS = 60


def tried(name: str) -> Iterator[str]:
    """What comes of one architecture, in words."""
    torch.manual_seed(0)
    model: Any = tiny_model(KIND, name).float()
    words = min(50, model.get_input_embeddings().weight.shape[0] - 1)
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, words, (length,), generator=random).tolist() for length in _LENGTHS]
    reason = fault(model, rows[0], rows[-1])
    if reason is not None:
        yield f"padded ({reason})"
    elif not most_answers(model):
        yield "in lines, with TRL's head"
    else:
        _without_dropout(model.train())
        loss = _alone(model, rows)
        with by_rows(model):
            together, _ = completion_loss(model, RowsInOneLine(0, 10**6)([{"input_ids": r} for r in rows]), wanted=True)
        apart = max(abs(float(together - loss) / float(loss)), _apart(model, loss, together))
        yield RIGHT if apart < 1e-3 else f"{DIFFERENT} (by {apart:.1e})"


def _alone(model: Any, rows: list[list[int]]) -> Tensor:
    logits = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1] for row in rows]
    targets = [torch.tensor(row[1:]) for row in rows]
    return cross_entropy(torch.cat(logits).float(), torch.cat(targets), reduction="sum")


def _apart(model: nn.Module, one: Tensor, other: Tensor) -> float:
    """How far the gradients of two losses are apart, over the length of the first."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pairs = zip(*(torch.autograd.grad(loss, weights, allow_unused=True) for loss in (one, other)), strict=True)
    grads = [(a.flatten(), b.flatten()) for a, b in pairs if a is not None and b is not None]
    first, second = (torch.cat(side) for side in zip(*grads, strict=True))
    return float((first - second).norm() / first.norm())


def _without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "attn_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def main() -> int:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    for name in KINDS[KIND]:
        said, failed = isolated(partial(tried, name), _SECONDS)
        outcome = said[0] if said else f"not tried ({failed})"
        print(f"{name}: {outcome}", flush=True)
        found[outcome.partition(" (")[0]] += 1
    print()
    for outcome, count in found.most_common():
        print(f"{count:4} {outcome}")
    return int(any(DIFFERENT in outcome for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
