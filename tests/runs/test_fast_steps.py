"""What makes steps faster on a GPU computes what the model does, and is given up where it would not."""

import random
import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from bone_peft.runs.training import completion_loss as completion_loss_module
from bone_peft.runs.training import fused_parts, graphed_steps, step_trainer, train
from bone_peft.runs.training.completion_loss import SUMS, completion_loss
from bone_peft.runs.training.fused_parts import FusedParts
from bone_peft.runs.training.graphed_steps import GraphedSteps, lengths_that_pay
from bone_peft.runs.training.padding_free import RowsInOneLine, by_rows, in_other_rows
from bone_peft.runs.training.same_step import same_step
from bone_peft.runs.training.step_trainer import StepTrainer

from ..models import config_for, llama, randomize
from .test_train import losses, recipe

LONGEST = 40


def adapted(**settings):
    torch.manual_seed(0)
    config = config_for("bone", target_modules="all-linear", **settings)
    return randomize(get_peft_model(llama(), config), std=0.1)


def rows_of(*lengths, seed=0):
    draw = random.Random(seed)
    rows = [[draw.randrange(3, 60) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in rows]


def step_of(model, batch):
    """Loss and gradients, and the sums for the metrics."""
    batch = {name: value for name, value in batch.items() if name != "row_tokens"}
    with by_rows(model.get_base_model()):
        loss, sums = completion_loss(model, batch, wanted=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)], dict(zip(SUMS, sums.tolist(), strict=True))


def test_metrics_taken_in_pieces_are_those_of_the_whole(monkeypatch):
    logits, targets = torch.randn(11, 30).bfloat16(), torch.randint(0, 30, (11,))
    targets[4:6] = -100
    logits[0, targets[0]] = logits[8, targets[8]] = 9
    learned = targets != -100
    p = logits.double().softmax(-1)
    exact = [-(p * p.log()).sum(-1)[learned].sum(), (p.argmax(-1) == targets).sum(), learned.sum()]
    for bytes_at_once in (2**26, 3 * 4 * 30, 1):
        monkeypatch.setattr(completion_loss_module, "_PIECE", bytes_at_once)
        loss, sums = completion_loss_module.loss_and_sums(logits, targets, wanted=True)
        torch.testing.assert_close(sums.double(), torch.stack(exact).double(), rtol=1e-6, atol=0)
        assert loss.item() == pytest.approx(-p.log()[learned, targets[learned]].sum().item(), rel=1e-6)


class TestFewShapes:
    def test_what_fills_a_line_up_is_not_learned_from(self):
        model, rows = adapted().double(), rows_of(19, 7, 25)
        exact, exact_sums = step_of(model, RowsInOneLine(0, 10**6)(rows))
        batch = RowsInOneLine(0, 10**6, LONGEST)(rows)
        assert batch["input_ids"].shape[1] > 19 + 7 + 25 == batch["row_tokens"]
        found, found_sums = step_of(model, batch)
        for one, other in zip(found, exact, strict=True):
            assert (one - other).norm() <= 1e-6 * other.norm()
        assert found_sums == pytest.approx(exact_sums, rel=1e-6)

    @pytest.mark.parametrize(("lengths", "most"), [(4, 12), (8, 24), (16, 48)])
    def test_shapes_are_few_and_little_is_added(self, lengths, most):
        collate, draw, shapes = RowsInOneLine(0, 10**6, LONGEST, lengths), random.Random(0), set()
        for seed in range(300):
            batch = collate(rows_of(*(draw.randint(10, LONGEST) for _ in range(8)), seed=seed))
            tokens = batch["input_ids"].shape[1]
            assert batch["row_tokens"] <= tokens <= (1 + 1 / lengths) * batch["row_tokens"]
            assert len(batch["targets"]) <= sum(batch["targets"] != -100) + tokens / 4
            assert batch["max_length_q"] == LONGEST and max(batch["cu_seq_lens_q"].diff()) <= LONGEST
            shapes.add((tokens, len(batch["targets"]), len(batch["cu_seq_lens_q"])))
        assert len(shapes) <= most

    def test_more_steps_pay_for_more_lengths(self):
        assert lengths_that_pay(200) < lengths_that_pay(2_000) < lengths_that_pay(20_000)

    def test_other_rows_are_of_the_same_shape(self):
        batch = RowsInOneLine(0, 10**6, LONGEST)(rows_of(19, 7, 25))
        other = in_other_rows(batch)
        for name, value in batch.items():
            if torch.is_tensor(value):
                assert other[name].shape == value.shape and other[name].dtype == value.dtype
        for one in (batch, other):
            starts = one["cu_seq_lens_q"].tolist()
            lengths = [b - a for a, b in pairwise(starts)]
            assert one["position_ids"].tolist() == [[place for n in lengths for place in range(n)]]
        assert not torch.equal(other["position_ids"], batch["position_ids"])


class TestSameStep:
    def test_rounding_is_forgiven_and_nothing_else(self):
        exact = [torch.tensor(3.0), torch.ones(50), torch.full((9,), 2.0)]
        assert same_step([tensor * 1.005 for tensor in exact], exact)
        for changed in range(3):
            assert not same_step([t * (1.5 if index == changed else 1) for index, t in enumerate(exact)], exact)
            broken = [torch.full_like(t, float("nan")) if index == changed else t for index, t in enumerate(exact)]
            assert not same_step(broken, exact)


class TestFusedParts:
    """Liger itself needs a GPU: here its place is taken by something that patches a model as it does."""

    @pytest.fixture
    def parts(self, monkeypatch):
        model = adapted()
        layer = model.get_base_model().model.layers[0]
        code = sys.modules[type(layer).__module__]
        rotary, norm = code.apply_rotary_pos_emb, layer.input_layernorm

        def patched(factor):
            def apply(model, _):
                forward = norm.forward
                norm.forward = lambda x: forward(x) * factor
                norm.in_place = True
                code.apply_rotary_pos_emb = partial(rotary)

            monkeypatch.setattr(fused_parts, "apply_liger_kernel", apply)
            return FusedParts(model), lambda: step_of(model, RowsInOneLine(0, 10**6)(rows_of(9, 5)))[0]

        def is_patched():
            found = ["forward" in vars(norm), hasattr(norm, "in_place"), code.apply_rotary_pos_emb is not rotary]
            assert len(set(found)) == 1
            return found[0]

        monkeypatch.setattr(fused_parts, "is_liger_kernel_available", lambda: True)
        yield patched, is_patched
        assert not is_patched()

    def test_they_stay_until_they_are_taken_back(self, parts):
        patched, is_patched = parts
        fused, compute = patched(1.0)
        assert fused.apply(compute) is None
        assert is_patched()
        fused.undo()

    def test_what_computes_something_else_is_not_taken(self, parts):
        fused, compute = parts[0](1.5)
        assert "something else" in fused.apply(compute)

    def test_a_model_that_liger_does_not_know(self, parts, monkeypatch):
        fused, compute = parts[0](1.0)
        monkeypatch.setattr(fused_parts, "apply_liger_kernel", lambda *_: None)
        assert "no such model" in fused.apply(compute)

    def test_what_fails_is_not_taken(self, parts):
        fused, compute = parts[0](1.0)
        calls = []

        def fails_with_them():
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("no such kernel")
            return compute()

        assert fused.apply(fails_with_them) == "no such kernel"


class StandIn(GraphedSteps):
    """For where there is no GPU: what a graph would replay is computed, from the same tensors into the same tensors."""

    def _recorded(self, inputs, scale, first):
        loss, sums = torch.zeros(()), torch.zeros(len(SUMS))

        def replay():
            found, found_sums, grads = self._loss_and_gradients(inputs, scale)
            torch._foreach_add_(self._grads, grads)
            loss.copy_(found)
            sums.copy_(found_sums)

        return graphed_steps._Graph(SimpleNamespace(replay=replay), inputs, scale, loss, sums)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Steps = GraphedSteps if DEVICE == "cuda" else StandIn


class TestGraphedSteps:
    @pytest.fixture(params=[{}, {"init_weights": "bat"}, {"init_weights": "bat", "share": "input"}])
    def model(self, request):
        model = adapted(**request.param).to(DEVICE, torch.bfloat16)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        with by_rows(model.get_base_model()):
            yield model

    @staticmethod
    def batches(*seeds, lengths=(19, 7, 25)):
        made = (RowsInOneLine(0, 10**6, LONGEST)(rows_of(*lengths, seed=seed)) for seed in seeds)
        for batch in made:
            del batch["row_tokens"]
            yield {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in batch.items()}

    @staticmethod
    def taken(model, loss):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        grads = [parameter.grad.clone() for parameter in trained]
        for parameter in trained:
            parameter.grad = None
        return [loss, *grads]

    def test_each_is_what_the_model_computes(self, model):
        steps = Steps(model)
        for batch in self.batches(*range(4)):
            loss, sums = steps.step(batch, 1.0)
            found = self.taken(model, loss)
            exact, exact_sums = step_of(model, batch)
            assert same_step(found, exact)
            assert dict(zip(SUMS, sums.tolist(), strict=True)) == pytest.approx(exact_sums, rel=1e-2)
        assert steps.fault is None and len(steps._graphs) == 1

    def test_gradients_add_up_with_what_is_there(self, model):
        steps = Steps(model)
        one, two, three = self.batches(0, 1, 2)
        for batch in (one, two):
            steps.step(batch, 1.0)
        self.taken(model, torch.zeros(()))
        completion_loss(model, three, wanted=False)[0].backward()  # by somebody else
        loss = sum(steps.step(batch, 1.0)[0] for batch in (one, two))
        want = [sum(parts) for parts in zip(*(step_of(model, b)[0] for b in (one, two, three)), strict=True)]
        assert same_step(self.taken(model, loss), [want[0] - step_of(model, three)[0][0], *want[1:]])

    def test_weights_that_moved_are_seen(self, model):
        steps = Steps(model)
        for batch in self.batches(0, 1):
            assert steps.step(batch, 1.0) is not None
        parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        parameter.data = parameter.data.clone()
        assert steps.step(batch, 1.0) is None
        assert "moves the weights" in steps.fault

    def test_what_a_recording_does_not_compute_is_seen(self, model, monkeypatch):
        """Here: layers that are run in another order each time, as if drawn at random."""
        norm, calls = model.get_base_model().model.norm, []
        forward = norm.forward
        monkeypatch.setattr(norm, "forward", lambda x: forward(x) * (calls.append(1) or len(calls)))
        steps = Steps(model)
        first, second = self.batches(0, 1)
        assert steps.step(first, 1.0) is not None
        self.taken(model, torch.ones(()))
        assert steps.step(second, 1.0) is None
        assert "not what the model computes" in steps.fault

    def test_what_waits_for_the_gpu_cannot_be_recorded(self, model, monkeypatch):
        if DEVICE == "cpu":  # nothing waits here: the refusal is made

            def refuse(*_):
                raise RuntimeError("operation not permitted when stream is capturing")

            monkeypatch.setattr(StandIn, "_recorded", refuse)
        norm = model.get_base_model().model.norm
        forward = norm.forward
        monkeypatch.setattr(norm, "forward", lambda x: forward(x) * float(x.sum() != 12345.0))
        steps = Steps(model)
        first, second = self.batches(0, 1)
        assert steps.step(first, 1.0) is not None
        before = self.taken(model, torch.ones(()))
        assert steps.step(second, 1.0) is None
        assert "captur" in steps.fault
        assert all(parameter.grad is None for parameter in model.parameters())
        assert same_step([torch.ones(()), *step_of(model, first)[0][1:]], before)  # the device is as it was


@pytest.mark.parametrize("accumulation, counts", [(1, True), (3, True), (3, False)])
def test_a_run_of_recorded_steps_learns_the_same(plain_base, rows_file, tmp_path, monkeypatch, accumulation, counts):
    """All of a run around the graphs: filled lines, batches that stay on the host, sums and numbers looked at later."""
    made = []

    class Counted(Steps):
        def __init__(self, model):
            super().__init__(model)
            made.append(self)

    if not counts:  # as for models that take no num_items_in_batch
        prepare = StepTrainer.choose_how
        monkeypatch.setattr(
            StepTrainer, "choose_how", lambda self: setattr(self, "model_accepts_loss_kwargs", False) or prepare(self)
        )
    settings = {"training__max_steps": 8, "training__gradient_accumulation_steps": accumulation}
    plain = train(recipe(plain_base, rows_file, tmp_path / "plain", **settings))
    monkeypatch.setattr(StepTrainer, "_may_record", lambda self: True)
    monkeypatch.setattr(step_trainer, "is_fast", lambda *_: True)
    monkeypatch.setattr(step_trainer, "GraphedSteps", Counted)
    graphed = train(recipe(plain_base, rows_file, tmp_path / "graphed", **settings))
    assert made[0].fault is None and made[0]._graphs
    assert losses(graphed) == pytest.approx(losses(plain), rel=1e-4)
    norms = [[entry["grad_norm"] for entry in run.history] for run in (graphed, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert [entry["num_tokens"] for entry in graphed.history] == [entry["num_tokens"] for entry in plain.history]
