"""A run's trainer: memory that is looked after, a stop at numbers that are none, checkpoints that are looked at."""

import itertools
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from bone_peft.errors import BoneError
from bone_peft.method.tuner.saved import gathered
from bone_peft.method.tuner.sharded import is_spread

from ..evaluation import check_reach
from ..free_memory import fits
from .finite import all_finite, in_words, not_finite, weights_are_finite

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"
_AHEAD = 10  # steps that may be queued before their numbers are looked at


class RunTrainer(Trainer, ABC):
    """One run's training loop, whatever is learned: a mixin before one of TRL's trainers.

    Attributes:
        is_asked_to_stop: whether somebody asked this process to.
        planned_steps: of the optimizer, in the whole run; as :meth:`try_settings` finds it.

    Args:
        may_checkpoint: compute layers again in backward (gradient checkpointing) if a step does not fit into memory.
        say: takes sentences on how the steps are computed, where a user may wonder.
    """

    row: str = "row"
    parts: tuple[str, ...] = ("",)
    """What a row of the data is called, and what each of its sequences of tokens adds to that name."""

    cut: dict[str, Any]
    """What ``max_length`` cost, by the name of the rows (train, eval)."""

    def __init__(self, *, may_checkpoint: bool, say: Callable[[str], None], **kwargs: Any) -> None:
        self._say = say
        self._may_checkpoint = may_checkpoint
        self._checkpoints = False
        self.cut = {}
        self._losses: list[Any] = []
        self._unchecked: list[tuple[int, list[Any], Any, Any]] = []
        self.is_asked_to_stop = False
        self.planned_steps = 0
        self._another_is = False
        before = {name: parameter.detach() for name, parameter in _trained(kwargs["model"]).items()}
        super().__init__(**kwargs)
        if getattr(self.base, "is_quantized", False):
            # TRL rounds what is trained to bfloat16 there, and small steps would be lost in it.
            for name, parameter in _trained(self.model).items():
                parameter.data = before.get(name, parameter).float()

    # What there is

    @property
    def plain_model(self) -> Any:
        """The adapted model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def base(self) -> Any:
        """The model that is adapted; it is trained itself if nothing is."""
        model = self.plain_model
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def count_parameters(self) -> tuple[int, int]:
        """How many are trained, and how many there are; those that are packed in few bits, and shards, as they are."""
        model = self.plain_model
        if isinstance(model, PeftModel):
            trained, whole = model.get_nb_trainable_parameters()
            return int(trained), int(whole)
        count = sum(parameter.numel() for parameter in model.parameters())
        return count, count

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are queued faster than they are computed."""
        return False

    @property
    def is_sharded(self) -> bool:
        """Whether a process has parts of the model only."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled or self.accelerator.parallelism_config)

    @property
    def seen(self) -> Any:
        """The training rows as the model meets them: ``input_ids`` and ``labels``, -100 where nothing is learned."""
        return self.train_dataset

    def titles(self) -> Iterator[str]:
        """Names of the rows of :attr:`seen`, one after the other."""
        for index in itertools.count(1):
            yield from (f"{self.row} {index}{part}" for part in self.parts)

    @abstractmethod
    def bytes_of_a_step(self) -> int:
        """What the longest batch keeps for backward, if nothing is computed again."""

    def seconds_of_a_batch(self) -> float:
        """Of forward and backward, by trying two; nothing is learned."""
        model: Any = self.model
        model.train()
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        seconds = 0.0
        for inputs in itertools.islice(itertools.cycle(self.get_train_dataloader()), 2):
            start = time.perf_counter()
            self.training_step(model, inputs).item()  # waits for the device
            seconds = time.perf_counter() - start
        model.zero_grad()
        return seconds

    # Before the first step

    def try_settings(self) -> None:
        """Make the batches, the optimizer and the schedule once: what fails there fails before anything is written."""
        for batch in self.seen.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
            ids = batch["input_ids"].combine_chunks()
            check_reach(self.plain_model, pc.max(ids.values).as_py(), pc.max(pc.list_value_length(ids)).as_py())
        self._check_sharding()
        self.choose_how()
        steps = self.planned_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self.create_optimizer_and_scheduler(num_training_steps=steps)
            self.optimizer = self.lr_scheduler = None

    def choose_how(self) -> None:
        """Look at the base and the rows, and choose how a step is computed."""
        self._choose_checkpointing()

    def _choose_checkpointing(self) -> None:
        """Compute layers again in backward where a step would not fit otherwise."""
        if not self._may_checkpoint or self.is_sharded:
            return
        needed = self.bytes_of_a_step()
        if not fits(needed, self.args.device):
            self._checkpoints = True
            model = self.plain_model
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            self._say(
                f"A step would need {needed / 2**30:.1f} GiB for backward: layers are computed again there "
                "(gradient checkpointing)."
            )

    def _check_sharding(self) -> None:
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and getattr(self.plain_model, "is_quantized", False):
            raise BoneError(
                "Accelerate does not shard a quantized base rightly by FSDP: take --strategy ddp, where each GPU holds "
                "all of it, or zero3, or leave out quantize."
            )
        kinds = {parameter.dtype for parameter in self.plain_model.parameters() if parameter.is_floating_point()}
        if getattr(plugin, "fsdp_version", 2) == 1 and len(kinds) > 1:
            raise BoneError(
                "FSDP1 wants all parameters of one dtype, and the adapter is float32 on another base: use FSDP2, with "
                "fsdp_version: 2 and fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP in Accelerate's config."
            )

    # Numbers

    @property
    def stops(self) -> bool:
        """Whether somebody asked one of all processes to stop. All of them see it at the same step."""
        return self.is_asked_to_stop if self.accelerator.num_processes == 1 else self._another_is

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
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
        here = good.to(self.args.device).float()[None]
        if self.accelerator.num_processes > 1:
            here = torch.cat([here, torch.full_like(here, self.is_asked_to_stop)])
        together = self.accelerator.reduce(here, reduction="sum")
        self._unchecked.append((self.state.global_step + 1, losses, counted, together))
        if not self.runs_ahead or len(self._unchecked) == _AHEAD:
            self._check_numbers()
        return norm

    def _check_numbers(self) -> None:
        """Stop at the first step whose numbers are none. This waits for the device."""
        unchecked, self._unchecked = self._unchecked, []
        for step, losses, norm, together in unchecked:
            good, *asked = together.tolist()
            self._another_is = self._another_is or any(asked)
            if good != self.accelerator.num_processes:
                self._stop(_which(float(sum(losses)), norm), step)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Here the device is waited for anyway, or what it computed is kept.
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._check_numbers()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        self._check_numbers()
        return result

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer, but of shards the adapter alone is put together, whatever else a checkpoint holds."""
        model = self.plain_model
        if not is_spread(model):
            super().save_model(output_dir, _internal_call)
            return
        tensors = gathered(model)
        if self.args.should_save:
            self._save(output_dir, state_dict=tensors)

    def check_weights(self) -> None:
        """Raise a BoneError if a step left weights that are no numbers: they are not to be saved."""
        bad = torch.tensor([not weights_are_finite(self.model)], device=self.args.device).float()
        if self.accelerator.reduce(bad, reduction="sum").any():
            self._stop("adapter is not finite", self.state.global_step)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super().evaluate(*args, **kwargs)
        loss = metrics.get("eval_loss", 0.0)
        if not bool(all_finite([loss])):
            self._stop(f"loss on the held-out rows is {in_words(loss)}", self.state.global_step)
        return metrics

    def _stop(self, what: str, step: int) -> None:
        raise not_finite(what, step, self.model, self.args.learning_rate, self._last_checkpoint())

    def _last_checkpoint(self) -> str | None:
        folder = str(self.args.output_dir)
        return get_last_checkpoint(folder) if os.path.isdir(folder) else None

    def without_another(self, sign: str = "it does not answer") -> str:
        """The sentence for a run in which another process is gone, and by what ``sign`` this one knows."""
        last = self._last_checkpoint()
        left = f"{last} is whole, and --resume goes on from it" if last else "there is no checkpoint yet"
        return (
            f"Another process of this run is gone after step {self.state.global_step} ({sign}), so this one ends too; "
            f"what was wrong there stands above, or in the log of its machine. {left[0].upper()}{left[1:]}."
        )

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


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name; none where there is no adapter yet."""
    named = model.named_parameters() if isinstance(model, PeftModel) else ()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


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
