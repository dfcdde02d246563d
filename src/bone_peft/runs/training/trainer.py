"""TRL's trainer, with rows that are counted, a stop at numbers that are none, and checkpoints that are looked at."""

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from bone_peft.errors import BoneError

from ..evaluation import check_reach
from . import checkpointing, compiled_layers
from .completion_loss import SUMS, completion_loss, most_answers
from .cut_rows import CutRows
from .finite import all_finite, in_words, not_finite, weights_are_finite
from .padding_free import RowsInOneLine, by_rows, fault
from .padding_free.row_attention import is_fast

_LOOKED_AT, _TRIED = 16, 256  # rows and tokens by which a model is tried out
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"


class RunTrainer(SFTTrainer):
    """One run's training loop.

    Args:
        may_checkpoint: compute layers again in backward (gradient checkpointing) if a step does not fit into memory.
        say: takes sentences on how the steps are computed, where a user may wonder.

    Attributes:
        cut: what ``max_length`` cost, by the name of the rows (train, eval).
    """

    def __init__(self, *, may_checkpoint: bool, say: Callable[[str], None], **kwargs: Any) -> None:
        self.cut: dict[str, CutRows] = {}
        self._say = say
        self._may_checkpoint = may_checkpoint
        self._may_compile = True
        self._first_step: int | None = None  # of this process, which may go on from a checkpoint
        self._losses: list[Any] = []
        self._sums: list[Any] = []
        self._tokens = 0
        self._in_lines = False
        super().__init__(**kwargs)
        self._padded = self.data_collator

    @property
    def plain_model(self) -> Any:
        """The adapted model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    # Rows

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, dataset_name: Any
    ) -> Any:
        # First whole, to see what is lost; then cut (and packed) by TRL from its own tokens.
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        tokens = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
        self.cut[dataset_name] = CutRows.of(tokens, args, packing)
        return super()._prepare_dataset(tokens, processing_class, args, packing, None, dataset_name)

    def try_settings(self) -> None:
        """Make the batches, the optimizer and the schedule once: what fails there fails before anything is written."""
        rows: Any = self.train_dataset
        for batch in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
            ids = batch["input_ids"].combine_chunks()
            check_reach(self.plain_model, pc.max(ids.values).as_py(), pc.max(pc.list_value_length(ids)).as_py())
        self._choose_lines()
        self._choose_checkpointing()
        steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self.create_optimizer_and_scheduler(num_training_steps=steps)
            self.optimizer = self.lr_scheduler = None

    # How a step is computed

    def _choose_lines(self) -> None:
        """The rows of a step in one line, if the model keeps them apart."""
        args: Any = self.args
        if args.pad_to_multiple_of or args.n_gpu > 1 or self._is_sharded():
            return
        model = self.plain_model.get_base_model()
        data: Any = self.train_dataset
        rows = [row[:_TRIED] for row in data[:_LOOKED_AT]["input_ids"] if len(row) > 1]
        if not rows:
            return
        first, second = rows[0], rows[-1]
        reason = fault(model, first, second)
        if reason is None:
            self._in_lines = True
            self.data_collator = RowsInOneLine(self._tokenizer.pad_token_id, self._most_answers(model))
        elif self.padding_free and fault(model, first, second, own_attention=True) is not None:
            raise BoneError(f"Rows of this base cannot share a line ({reason}): leave packing and padding_free out.")
        else:
            self._say(f"The rows of a step are padded to the longest ({reason}).")

    def _most_answers(self, model: Any) -> int:
        args: Any = self.args
        plain = args.loss_type == "nll" and self.compute_loss_func is None and self.label_smoother is None
        return most_answers(model) if plain and not self.aux_loss_enabled else 0

    def _choose_checkpointing(self) -> None:
        """Compute layers again in backward where a step would not fit otherwise."""
        if not self._may_checkpoint or self._is_sharded():
            return
        model, size = self.plain_model, self.args.per_device_train_batch_size
        data: Any = self.train_dataset
        lengths = sorted(map(len, data["input_ids"]), reverse=True)[:size]
        if not self._in_lines:
            lengths = lengths[:1] * size
        needed = checkpointing.needed(model, lengths)
        if not checkpointing.fits(needed, self.args.device):
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            self._say(
                f"A step would need {needed / 2**30:.1f} GiB for backward: layers are computed again there "
                "(gradient checkpointing)."
            )

    def _compile(self, inputs: dict[str, Any]) -> None:
        """After the first step, which is looked at from inside (``method.tuner.first_run``)."""
        args, model = self.args, self.plain_model
        steps = self.state.max_steps - self.state.global_step
        if "logits_to_keep" not in inputs or not is_fast(args.device, model.dtype) or args.torch_compile:
            return
        if not compiled_layers.pays(model, steps):
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def try_out() -> None:
            batch = self._prepare_inputs(dict(inputs))
            with torch.random.fork_rng([args.device]), self.compute_loss_context_manager():
                loss, _ = completion_loss(model, batch, wanted=False)
                torch.autograd.grad(loss, trained, allow_unused=True)

        self._say("The layers are compiled, which takes a minute or less.")
        reason = compiled_layers.compile_layers(model, try_out)
        if reason is not None:
            self._say(f"They are not: {reason}")

    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled or self.accelerator.parallelism_config)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        model = self.plain_model.get_base_model()
        self._first_step = None
        try:
            with by_rows(model) if self._in_lines else nullcontext():
                return super().train(*args, **kwargs)
        finally:
            compiled_layers.plain_layers(model)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        # Padded: its loss is a mean over batches, weighted by their rows.
        train, self.data_collator = self.data_collator, self._padded
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = train

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "logits_to_keep" not in inputs or return_outputs:
            counted = self._total_train_tokens
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._tokens:  # counted already, without padding
                self._total_train_tokens = counted
            return result
        scale = self._scale(inputs, num_items_in_batch)
        wanted = (self.state.global_step + 1) % max(1, int(self.state.logging_steps or 1)) == 0
        loss, sums = completion_loss(model, inputs, wanted)
        if sums is not None:
            self._sums.append(sums)
        return loss * scale

    def _scale(self, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        """What the sum over answers is multiplied by."""
        if num_items_in_batch is None:
            return 1 / (inputs["targets"] != -100).sum().clamp(min=1)
        # Of all processes, and their gradients are averaged.
        ours = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return ours / torch.as_tensor(num_items_in_batch, device=inputs["targets"].device).clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._tokens:
            sums = torch.stack(self._sums).sum(0).double() if self._sums else torch.zeros(len(SUMS)).double()
            here = torch.cat([sums, torch.tensor([self._tokens]).to(sums)]).to(self.args.device)
            *means, answers, tokens = self.accelerator.reduce(here, reduction="sum").tolist()
            self._sums, self._tokens = [], 0
            self._total_train_tokens += int(tokens)
            metrics = self._metrics["train"]
            metrics["num_tokens"] = [self._total_train_tokens]
            if answers:
                metrics.update({name: [mean / answers] for name, mean in zip(SUMS, means, strict=False)})
        super().log(logs, start_time)

    # Numbers

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        if self._in_lines:
            self._tokens += inputs["input_ids"].numel()
        if self._first_step is None:
            self._first_step = self.state.global_step
        if self._may_compile and self.state.global_step > self._first_step:
            self._may_compile = False
            self._compile(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The last moment before the weights change.
        norm = counted = super()._get_grad_norm(model, grad_norm=grad_norm)
        losses, self._losses = self._losses, []
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1:
            counted = None  # the loss scaling of fp16 skips infinite gradients until its scale fits
        good = all_finite([*losses, *([] if counted is None else [counted])])
        together = self.accelerator.reduce(good.to(self.args.device).float(), reduction="sum")
        if float(together) != self.accelerator.num_processes:
            self._stop(_which(float(sum(losses)), counted), self.state.global_step + 1)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, trial)

    def check_weights(self) -> None:
        """Raise a BoneError if a step left weights that are no numbers: they are not to be saved."""
        if not weights_are_finite(self.model):
            self._stop("adapter is not finite", self.state.global_step)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super().evaluate(*args, **kwargs)
        loss = metrics.get("eval_loss", 0.0)
        if not bool(all_finite([loss])):
            self._stop(f"loss on the held-out rows is {in_words(loss)}", self.state.global_step)
        return metrics

    def _stop(self, what: str, step: int) -> None:
        folder = str(self.args.output_dir)
        last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        raise not_finite(what, step, self.model, self.args.learning_rate, last)

    # Checkpoints

    def restore(self, folder: Path) -> None:
        """Take the adapter of a finished run instead of training."""
        with _damage_is_explained(folder):
            self._load_from_checkpoint(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _damage_is_explained(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.args.save_only_model:
            raise BoneError(
                f"{checkpoint} holds no optimizer, as training.save_only_model asks, so it cannot be resumed: train "
                "its adapter on with --continue-from, in another --out."
            )
        with _damage_is_explained(checkpoint):
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                for name in (_OPTIMIZER, _SCHEDULER):
                    if not Path(checkpoint, name).is_file():
                        raise FileNotFoundError(f"{name} is missing")
            super()._load_optimizer_and_scheduler(checkpoint)
            self._check_optimizer()

    def _check_optimizer(self) -> None:
        """What loads need not fit: moments have the shape of their parameter, a scheduler counts steps."""
        for parameter, state in getattr(self.optimizer, "state", {}).items():
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if name in state and state[name].shape != parameter.shape:
                    raise ValueError(f"{_OPTIMIZER} is of another model")
        if not isinstance(getattr(self.lr_scheduler, "last_epoch", 0), int):
            raise TypeError(f"{_SCHEDULER} counts no steps")

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _damage_is_explained(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damage_is_explained(checkpoint):
            if checkpoint is not None and not list(Path(checkpoint).glob("rng_state*.pth")):
                raise FileNotFoundError("rng_state.pth is missing")
            super()._load_rng_state(checkpoint)


def _which(loss: float, norm: Any) -> str:
    if not math.isfinite(loss):
        return f"loss is {in_words(loss)}"
    if norm is not None and not math.isfinite(norm):
        return f"norm of the gradient is {in_words(float(norm))}"
    return "loss is no number in another process"


@contextmanager
def _damage_is_explained(checkpoint: str | Path | None) -> Iterator[None]:
    try:
        yield
    except (BoneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what is in the files decides how their readers fail
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(" .:")
        raise BoneError(
            f"The checkpoint {checkpoint} is damaged ({reason}); delete it to continue from the one before it."
        ) from error
