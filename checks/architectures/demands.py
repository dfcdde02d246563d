"""What is asked of an adapted model, one demand a function: it yields what is wrong, and leans on those before."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.func import functional_call

from .adapted import Adapted
from .bare import apart, loss_of, run

SAME, ROUNDED = 1e-5, 1e-4


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        what: which demand is not met.
        layer: where, if it is about one layer.
        detail: what else there is to say.
        difference: how far off numbers are, if that is what is wrong: more or fewer digits may tell another story.
    """

    what: str
    layer: str = ""
    detail: str = ""
    difference: float | None = None


Findings = Iterator[Finding]


def no_layer_is_left_out_silently(tried: Adapted) -> Findings:
    """A layer that is not adapted is the model's head, is trained whole, or was skipped by name."""
    whole = [f".{name}." for name in tried.config.modules_to_save or ()]
    head = tried.base.get_output_embeddings()
    heads = {name for name, module in tried.base.named_modules() if module is head}
    for name in sorted(tried.usage.all - set(tried.layers) - heads):
        if any(part in f".{name}." for part in whole):
            continue
        if name not in skipped(tried):
            yield Finding("left out silently", name)
        elif reason(tried, name) is None:
            yield Finding("skipped without a warning that names it", name)


def skipped(tried: Adapted) -> set[str]:
    """The names of the layers that were left out, as the config has them, and of parameters, as a warning has them."""
    names = set(tried.model.peft_config["default"].exclude_modules or ()) & tried.usage.all
    return names | {name for name in tried.usage.stacks - set(tried.layers) if reason(tried, name) is not None}


def reason(tried: Adapted, name: str) -> str | None:
    """Why a layer was skipped: what stands in parentheses after its name, or after one with stars for its numbers."""
    named = r"\.".join(rf"(?:{part}|\*)" if part.isdigit() else re.escape(part) for part in name.split("."))
    for said in tried.warnings:
        if found := re.search(rf"(?<![\w.*]){named}(?![\w.*])[^(]*\((.*?)\)(?=; |\.$)", said):
            return found[1]
    return None


@torch.no_grad()
def starts_as_nothing(tried: Adapted) -> Findings:
    if not (difference := apart(tried.start, tried.before)) <= SAME:
        yield Finding("the start differs from the bare model", difference=difference)


@torch.no_grad()
def every_layer_has_an_effect(tried: Adapted) -> Findings:
    for name in tried.used():
        tried.fill(name, std=0.3)
        if torch.equal(tried.run(), tried.start):
            called = "called" if name in tried.usage.called else "never called, its weight is read"
            yield Finding("no effect", name, called, difference=0.0)


def every_layer_gets_a_gradient(tried: Adapted) -> Findings:
    """Both in training and not: some models compute in another way then, past the linear layers themselves."""
    tried.fill(std=0.05)
    for mode in ("training", "evaluation"):
        with tried.training() if mode == "training" else nullcontext():
            tried.model.zero_grad()
            output = tried.run()
            if output.requires_grad:
                loss_of(output).backward()
            for name in tried.used():
                gradients = [tensor.grad for tensor in tried.tensors[name]]
                learned = all(g is not None and g.any() and g.isfinite().all() for g in gradients)
                if not learned and _matters(tried, name):
                    yield Finding("no gradient", name, f"in {mode}")


@torch.no_grad()
def _matters(tried: Adapted, name: str) -> bool:
    """Whether the adapter has an effect beside the others. No token may come to an expert, once they route them."""
    values, output = tried.values(), tried.run()
    tried.put(values | {name: [torch.zeros_like(tensor) for tensor in values[name]]})
    without = tried.run()
    tried.put(values)
    return not torch.equal(without, output)


def the_gradient_is_that_of_the_weight(tried: Adapted) -> Findings:
    """The definition of the method: a bare model whose weights are ``W + dW``."""
    tried.fill(std=0.05)
    tried.model.zero_grad()
    loss_of(tried.run()).backward()
    expected = _gradients_of_the_weights(tried)
    for name in tried.used():
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tried.tensors[name]]
        difference = max(apart(g, e) for g, e in zip(gradients, expected[name], strict=True))
        if not difference <= ROUNDED:
            yield Finding("the gradient differs from that of the weight W + dW", name, difference=difference)


def _gradients_of_the_weights(tried: Adapted) -> dict[str, list[torch.Tensor]]:
    weights = {
        tried.usage.weights[name]: layer.get_base_layer().weight.detach() + layer.get_delta_weight("default")
        for name, layer in tried.layers.items()
    }
    base = copy.deepcopy(tried.base).requires_grad_(False)
    loss = loss_of(run(lambda **inputs: functional_call(base, weights, (), inputs, tie_weights=False), tried.inputs))
    tensors = [tensor for own in tried.tensors.values() for tensor in own]
    gradients = iter(torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True))
    return {name: [next(gradients) for _ in own] for name, own in tried.tensors.items()}


@torch.no_grad()
def training_computes_the_same(tried: Adapted) -> Findings:
    """If it does in the bare model."""
    if not apart(run(copy.deepcopy(tried.base).train(), tried.inputs), tried.before) <= SAME:
        return
    tried.fill(std=0.05)
    evaluated = tried.run()
    with tried.training():
        difference = apart(tried.run(), evaluated)
    if not difference <= ROUNDED:
        yield Finding("training computes something else", difference=difference)


@torch.no_grad()
def merges_to_what_it_computed(tried: Adapted) -> Findings:
    """And unmerges bit for bit."""
    tried.fill(std=0.05)
    difference = _apart_once_merged(tried)
    found = False
    if not difference <= ROUNDED:
        for name in tried.used():
            tried.fill(name, std=0.05)
            if not (alone := _apart_once_merged(tried)) <= ROUNDED:
                found = True
                yield Finding("merges to something else", name, difference=alone)
        if not found:
            yield Finding("merges to something else", difference=difference)
    for name, parameter in tried.model.named_parameters():
        if name in tried.frozen and not torch.equal(parameter, tried.frozen[name]):
            layer = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield Finding("unmerges to another weight", layer)


def _apart_once_merged(tried: Adapted) -> float:
    unmerged = tried.run()
    tried.model.merge_adapter()
    merged = tried.run()
    tried.model.unmerge_adapter()
    return apart(merged, unmerged)


@torch.no_grad()
def survives_saving(tried: Adapted) -> Findings:
    tried.fill(std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        tried.model.save_pretrained(folder)
        again = PeftModel.from_pretrained(copy.deepcopy(tried.base), folder).train(tried.base.training)
    if not (difference := apart(run(again, tried.inputs), tried.run())) <= ROUNDED:
        yield Finding("differs once saved and loaded", difference=difference)


DEMANDS: tuple[Callable[[Adapted], Findings], ...] = (
    no_layer_is_left_out_silently,
    starts_as_nothing,
    every_layer_has_an_effect,
    every_layer_gets_a_gradient,
    the_gradient_is_that_of_the_weight,
    training_computes_the_same,
    merges_to_what_it_computed,
    survives_saving,
)
