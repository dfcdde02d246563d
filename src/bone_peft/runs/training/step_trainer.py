"""TRL's trainer, with steps that are computed without padding, without waits, and without what is not needed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from trl import SFTTrainer

from bone_peft.errors import BoneError

from . import checkpointing, compiled_layers
from .completion_loss import SUMS, completion_loss, logits_bytes, most_answers
from .context_chunks import carries_a_state, loss_in_chunks
from .fused_parts import FusedParts
from .graphed_steps import GraphedSteps, lengths_that_pay
from .padding_free import EqualRowsInOneLine, by_rows, fault, lines_for
from .padding_free.row_attention import is_fast
from .trainer import RunTrainer

_LOOKED_AT, _TRIED = 16, 256  # rows and tokens by which a model is tried out


class StepTrainer(RunTrainer, SFTTrainer):
    """How a step is computed: chosen once by :meth:`choose_how`, from the base and the rows.

    Args:
        context_chunk: tokens of the pieces that rows are learned in, one after the other.
    """

    def __init__(self, *, context_chunk: int | None = None, **kwargs: Any) -> None:
        self._context_chunk = context_chunk
        self._may_speed_up = True
        self._graphs: GraphedSteps | None = None
        self._first_step: int | None = None  # of this process, which may go on from a checkpoint
        self._sums: list[Any] = []
        self._judged: list[Any] = []
        self._tokens = 0
        self._in_lines = False
        super().__init__(**kwargs)
        self._padded = self.data_collator
        self._parts = FusedParts(self.plain_model)

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are queued faster than they are computed."""
        return self._graphs is not None

    def choose_how(self) -> None:
        """Look at the base and the rows, and choose how a step is computed."""
        if self._context_chunk is None:
            self._choose_lines()
        else:
            self._check_chunks()
        super().choose_how()

    # The choices

    def _choose_lines(self) -> None:
        """The rows of a step in one line, if the model keeps them apart."""
        args: Any = self.args
        data: Any = self.train_dataset
        rows = [row[:_TRIED] for row in data[:_LOOKED_AT]["input_ids"] if len(row) > 1]
        if self.is_sharded or not rows:
            return
        model, pair = self.base, (rows[0], rows[-1])
        padded = args.pad_to_multiple_of or args.n_gpu > 1
        reason = "" if padded else fault(model, *pair)
        if reason is None:
            self._in_lines = True
            longest = max(map(len, data["input_ids"])) if self._may_record() else None
            self.data_collator = lines_for(model)(
                self._tokenizer.pad_token_id,
                self._most_answers(model),
                longest,
                lengths_that_pay(self._lines(len(data))),
            )
        elif self.padding_free:
            reason = fault(model, *pair, own_attention=True)
            if reason is not None:
                raise BoneError(
                    f"Rows of this base cannot share a line ({reason}): leave packing and padding_free out."
                )
        elif reason:
            self._say(f"The rows of a step are padded to the longest ({reason}).")

    def _check_chunks(self) -> None:
        args: Any = self.args
        if not carries_a_state(self.base):
            raise BoneError("context_chunk is for RWKV, which carries a state from piece to piece: leave it out.")
        if self.is_sharded:
            raise BoneError("context_chunk wants the whole model in each process: take --strategy ddp.")
        if args.packing:
            raise BoneError("context_chunk takes rows one by one: leave packing out.")
        if args.max_length is not None and args.max_length <= (self._context_chunk or 0):
            raise BoneError(
                f"context_chunk is {self._context_chunk}, and rows are cut at {args.max_length} tokens: raise "
                "--max-length, or leave context_chunk out."
            )

    def _lines(self, rows: int) -> int:
        """How many this process computes in the whole run."""
        args: Any = self.args
        if args.max_steps > 0:
            return args.max_steps * args.gradient_accumulation_steps
        return int(args.num_train_epochs * rows / (args.train_batch_size * args.world_size))

    def _most_answers(self, model: Any) -> int:
        args: Any = self.args
        plain = args.loss_type == "nll" and self.compute_loss_func is None and self.label_smoother is None
        return most_answers(model) if plain and not self.aux_loss_enabled else 0

    def bytes_of_a_step(self) -> int:
        """What the longest batch keeps for backward, if nothing is computed again."""
        model, size = self.plain_model, self.args.per_device_train_batch_size
        base = self.base
        data: Any = self.train_dataset
        chunk = self._context_chunk
        lengths = [min(n, chunk or n) for n in sorted(map(len, data["input_ids"]), reverse=True)[:size]]
        if not self._in_lines:
            lengths = lengths[:1] * size
        elif isinstance(self.data_collator, EqualRowsInOneLine):
            packed = "seq_lengths" in data.column_names
            lengths = _equal_lengths(data["seq_lengths"], size) if packed else lengths[:1] * size
        needed = checkpointing.needed(model, max(data[:_LOOKED_AT]["input_ids"], key=len)[:chunk], lengths)
        return needed + logits_bytes(base, min(sum(lengths), self._most_answers(base)))

    def seconds_of_a_batch(self) -> float:
        with by_rows(self.base) if self._in_lines else nullcontext():
            return super().seconds_of_a_batch()

    def _may_record(self) -> bool:
        """Whether steps may be CUDA graphs: of one process, all of it on the GPU."""
        args: Any = self.args
        return (
            is_fast(args.device, self.plain_model.dtype)
            and args.world_size == 1
            and self.accelerator.mixed_precision == "no"
            and not (args.torch_compile or args.activation_offloading or args.gradient_checkpointing)
        )

    def _speed_up(self, inputs: dict[str, Any]) -> None:
        """After the first step, which is looked at from inside (``method.tuner.first_run``)."""
        args, model = self.args, self.plain_model
        if "logits_to_keep" not in inputs or not is_fast(args.device, model.dtype) or args.torch_compile:
            return
        if not args.use_liger_kernel:
            reason = self._parts.apply(lambda: self._computed(inputs))
            if reason is not None:
                self._say(f"Norms and gates are computed in many small kernels: {reason}.")
                if compiled_layers.pays(model, self.state.max_steps - self.state.global_step):
                    self._compile(inputs)
        if self._may_record() and not self._checkpoints:
            self._graphs = GraphedSteps(model)

    def _computed(self, inputs: dict[str, Any]) -> list[Any]:
        """The loss of a batch and its gradients."""
        model = self.plain_model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        devices = [self.args.device] if self.args.device.type != "cpu" else []
        batch = self._prepare_inputs(dict(inputs))
        with torch.random.fork_rng(devices), self.compute_loss_context_manager():
            loss, _ = completion_loss(model, batch, wanted=False)
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
        return [loss.detach(), *(grad for grad in grads if grad is not None)]

    def _compile(self, inputs: dict[str, Any]) -> None:
        self._say("The layers are compiled, which takes a minute or less.")
        reason = compiled_layers.compile_layers(self.plain_model, lambda: self._computed(inputs))
        if reason is not None:
            self._say(f"They are not: {reason}")

    # The steps

    def train(self, *args: Any, **kwargs: Any) -> Any:
        model = self.base
        self._first_step = None
        try:
            with by_rows(model) if self._in_lines else nullcontext():
                return super().train(*args, **kwargs)
        finally:
            self._graphs = None
            self._parts.undo()
            compiled_layers.plain_layers(model)

    def get_train_dataloader(self) -> Any:
        # Batches stay on the host, in pinned memory, until they are queued: nothing waits for what is queued before.
        before = self.accelerator.device_placement
        self.accelerator.device_placement = before and not self._may_record()
        try:
            return super().get_train_dataloader()
        finally:
            self.accelerator.device_placement = before

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        return super()._get_num_items_in_batch(batch_samples, torch.device("cpu") if self._may_record() else device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        if not self._in_lines:
            return super()._prepare_inputs(inputs)
        device = self.args.device
        return {n: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for n, v in inputs.items()}

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        # Padded: its loss is a mean over batches, weighted by their rows.
        train, self.data_collator = self.data_collator, self._padded
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = train

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        answers = (inputs["labels"][:, 1:] != -100).sum() if "labels" in inputs else None
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and answers is not None:
            answers = answers.to(loss.device)
            self._judged.append(torch.stack([(loss * answers).where(answers > 0, 0), answers]).float())
        return (loss, *others)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the Trainer's, but the loss is the mean over the tokens of answers, however they are in batches."""
        self._judged = []
        output: Any = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._judged:
            here = torch.stack(self._judged).cpu().double().sum(0)  # not every device has float64
            if self.accelerator.num_processes > 1:
                here = self.accelerator.reduce(here.to(self.args.device), reduction="sum")
            total, answers = here.tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / answers if answers else float("nan")
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # Its batches are of other shapes, and each would be compiled anew.
        with compiled_layers.set_aside(self.plain_model):
            return super().evaluate(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        self._tokens += inputs.pop("row_tokens", 0)
        if self._first_step is None:
            self._first_step = self.state.global_step
        if self._may_speed_up and self.state.global_step > self._first_step:
            self._may_speed_up = False
            self._speed_up(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._context_chunk is not None:
            loss = self._loss_in_chunks(model, inputs, num_items_in_batch)
            return (loss, {}) if return_outputs else loss
        if "logits_to_keep" not in inputs or return_outputs:
            counted = self._total_train_tokens
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._tokens:  # counted already, without padding
                self._total_train_tokens = counted
            return result
        scale = self._scale(inputs["targets"], num_items_in_batch)
        recorded = self._recorded(inputs, scale, num_items_in_batch)
        if recorded is not None:
            loss, sums = recorded
            self._sums.append(sums)
            return loss.requires_grad_()  # backward is done already
        loss, sums = completion_loss(model, inputs, self._is_logged())
        if sums is not None:
            self._sums.append(sums)
        return loss * scale

    def _recorded(self, inputs: dict[str, Any], scale: Any, num_items_in_batch: Any) -> Any:
        if self._graphs is None:
            return None
        parts = self._parts_of_step(num_items_in_batch)
        done = self._graphs.step(inputs, scale / parts)
        if self._graphs.fault is not None:
            self._say(f"Steps are computed without CUDA graphs: {self._graphs.fault}.")
            self._graphs = None
        return None if done is None else (done[0] * parts, done[1])

    def _loss_in_chunks(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """With backward done already, of a model in training."""
        scale = self._scale(inputs["labels"][:, 1:], num_items_in_batch)
        if not model.training:
            return loss_in_chunks(self.plain_model, inputs, self._context_chunk or 0, False)[0] * scale
        parts = self._parts_of_step(num_items_in_batch)

        def backward(loss_of_piece: Callable[[], Any], is_last: bool) -> Any:
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = loss_of_piece()
                self.accelerator.backward(loss * scale / parts)
            return loss

        wanted = self._is_logged()
        loss, sums = loss_in_chunks(self.plain_model, inputs, self._context_chunk or 0, wanted, backward, shared=model)
        self._tokens += int(inputs["attention_mask"].sum())
        if sums is not None:
            self._sums.append(sums)
        return (loss * scale).requires_grad_()

    def _is_logged(self) -> bool:
        return (self.state.global_step + 1) % max(1, int(self.state.logging_steps or 1)) == 0

    def _parts_of_step(self, num_items_in_batch: Any) -> int:
        """What the Trainer divides the loss by before backward, where nobody counted the batch."""
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return 1 if counted else self.current_gradient_accumulation_steps

    def _scale(self, targets: Any, num_items_in_batch: Any) -> Any:
        """What the sum over answers is multiplied by."""
        if num_items_in_batch is None:
            return 1 / (targets != -100).sum().clamp(min=1)
        # Of all processes, and their gradients are averaged.
        ours = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        items = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return ours / (items.item() if items.device.type == "cpu" else items)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: Any = self.model
        if self._tokens and model.training:
            self._tell_metrics()
        super().log(logs, start_time)

    def _tell_metrics(self) -> None:
        """TRL's metrics of the steps since the last time, over all processes."""
        sums = torch.stack(self._sums).sum(0).cpu() if self._sums else torch.zeros(len(SUMS))
        here = torch.cat([sums.double(), torch.tensor([self._tokens])])
        if self.accelerator.num_processes > 1:
            here = self.accelerator.reduce(here.to(self.args.device), reduction="sum")
        *means, answers, tokens = here.tolist()
        self._sums, self._tokens = [], 0
        self._total_train_tokens += int(tokens)
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if answers:
            metrics.update({name: [mean / answers] for name, mean in zip(SUMS, means, strict=False)})


def _equal_lengths(lines: Any, size: int) -> list[int]:
    """Lengths of the rows of ``size`` packed lines, the worst there are, each row as long as the longest of them."""
    worst = sorted(lines, key=lambda lengths: len(lengths) * max(lengths))[-size:]
    return [max(map(max, worst))] * sum(map(len, worst))
