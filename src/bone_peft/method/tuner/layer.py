"""``BoneLinear``: a frozen linear layer with Bone adapters. Plumbing; the maths is in ``bone_peft.method.variants``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bone_peft.errors import BoneError

from ..compat.quantization import quantization_extra_repr, resolve_quantization_backend
from ..compat.tuner_base import TunerLayer
from ..variants import Additive, Below, Params, Variant, parameter_names
from . import mixed_rows
from .base_weight import Snapshot, check_readable, check_replaceable, check_sharding, replace_weight
from .config import CONFIG_FIELDS, BoneConfig
from .offload import execution_device, onloaded
from .quantized import dequantized
from .sharded import is_managed, is_sharded, reshard, whole
from .split import Split
from .stack import Adapted, Frozen
from .targets import Use
from .tensors import AdapterTensors


class BoneLayer(TunerLayer):
    """The adapters of one frozen layer.

    Attributes:
        bone_block, bone_down, bone_up: parameters by adapter name; which of them an adapter uses, and in what shape, is
            its variant's business.
        bone_r: ``dict``, size of each adapter's tensors: ``r``, or the width of the bottleneck.
        bone_variant: ``dict``, the variant of each adapter.
        bone_scaling: ``dict``, factor on each adapter's ``dW``; 1 unless set.
        bone_dropout: ``nn.ModuleDict``; adapters without dropout are not in it.
    """

    adapter_layer_names = parameter_names()
    training: bool  # of the module that this is mixed into
    modules: Callable[[], Iterator[nn.Module]]  # likewise
    in_features: int
    out_features: int

    on_read: Callable[[BoneLayer], Any] | None = None
    """Told when the model reads the weight as if there were no adapter."""

    shares_weight = False
    """Whether other modules have the base layer's weight too, as tied embeddings have. Said by the model."""

    split: Split | None = None
    """How tensor parallel has spread the base layer over processes."""

    other_param_names: tuple[str, ...] = ("bone_r", "bone_variant", "bone_scaling", "bone_dropout")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, AdapterTensors())
        self.bone_r: dict[str, int] = {}
        self.bone_variant: dict[str, type[Variant]] = {}
        self.bone_scaling: dict[str, float] = {}
        self.bone_dropout = nn.ModuleDict()
        self.merged_adapters = []
        self._disable_adapters = False
        self._unmerged_base: Snapshot | None = None
        self.cast_input_dtype_enabled = True

        self.use: Use = kwargs.get("use", Use(read=False, called=True))
        self.split = kwargs.get("split")

        base = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(
            base, get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.fan_in_fan_out = isinstance(base, Conv1D)
        # PEFT gives the sides of what this process has.
        sharded: Any = base if is_sharded(getattr(base, "weight", None)) else None
        shape: Any = (sharded.in_features, sharded.out_features) if sharded else _get_in_out_features(base)
        self.in_features, self.out_features = shape

    # Adapters

    def update_layer(
        self,
        adapter_name: str,
        r: int = 0,
        init_weights: bool | Literal["bat"] = True,
        inference_mode: bool = False,
        *,
        config: BoneConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Add an adapter to this layer, or replace the one of that name.

        Args:
            adapter_name: its name.
            r: size of its tensors: block size, or width of the bottleneck.
            init_weights: as in ``BoneConfig``; used only if there is no ``config``.
            inference_mode: whether its tensors are frozen.
            config: all other options.

        Raises:
            BoneError: if the layer cannot be adapted with this variant and ``r``.
        """
        if config is None:
            options = {key: value for key, value in kwargs.items() if key in CONFIG_FIELDS}
            config = BoneConfig(r=r, init_weights=init_weights, **options)
        variant = config.variant
        refusal = self._refusal(variant, r)
        if refusal:
            raise BoneError(refusal)
        if variant.reads_weight:
            check_readable(self.get_base_layer())

        probability = getattr(config, variant.dropout_field)
        if probability > 0 and not self.use.called:
            raise BoneError(
                "the model reads the weight of this layer and never calls it, so there is no input to drop: set "
                f"{variant.dropout_field} to 0, or name the layer in exclude_modules"
            )

        self.bone_r[adapter_name] = r
        self.bone_variant[adapter_name] = variant
        self.bone_scaling[adapter_name] = 1.0
        if probability > 0:
            self.bone_dropout[adapter_name] = nn.Dropout(probability)
        for name, shape in self._shapes(adapter_name, variant, r).items():
            getattr(self, name)[adapter_name] = nn.Parameter(torch.empty(shape))
        self._initialize(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if self.split is not None:
            self.split.same_everywhere(self._parameters_of(adapter_name))
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _refusal(self, variant: type[Variant], r: int) -> str | None:
        refusal = variant.refusal(self.in_features, self.out_features, r)
        if refusal is None and self.split is not None:
            if self.use.read:
                return "tensor parallel has split this layer, and the model multiplies by its weight without calling it"
            refusal = self.split.refusal(variant, self.in_features, self.out_features, r)
        return refusal

    def _shapes(self, adapter_name: str, variant: type[Variant], r: int) -> dict[str, tuple[int, ...]]:
        return variant.shapes(self.in_features, self.out_features, r)

    def _initialize(self, adapter_name: str, init_weights: bool | str) -> None:
        self.bone_variant[adapter_name].initialize(self._parameters_of(adapter_name), init_weights)

    def combined(self, adapter_names: Sequence[str], weights: Sequence[float]) -> Params:
        """The tensors of the adapter whose ``dW`` is ``sum_k weights[k] * dW_k``, scales included."""
        params = [self._scaled(name) for name in adapter_names]
        return self.bone_variant[adapter_names[0]].combined(params, weights)

    def fit(self, adapter_name: str, params: Params) -> None:
        """Make room for tensors that are there in another form than the adapter was made with, if the layer has one."""

    @property
    def sums_blocks(self) -> bool:
        """Whether an adapter of this layer sums the blocks of its input."""
        return any(variant.sums_blocks for variant in self.bone_variant.values())

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To where the base layer is, or runs."""
        runs_on = execution_device(self.get_base_layer()) if device is None else device
        super()._move_adapter_to_device_of_base_layer(adapter_name, runs_on)

    def _parameters_of(self, adapter_name: str) -> Params:
        return {name: getattr(self, name)[adapter_name] for name in self.bone_variant[adapter_name].parameters}

    def _present(self, adapter_names: Sequence[str]) -> list[str]:
        return [name for name in adapter_names if name in self.bone_variant]

    # Scale

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the factor on the ``dW`` of ``adapter``. It starts at 1."""
        if adapter in self.bone_scaling:
            self.bone_scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the factor on the ``dW`` of every active adapter."""
        for name in self._present(self.active_adapters):
            self.bone_scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide that factor, or, with ``None``, set it back to 1."""
        for name in self._present(self.active_adapters):
            self.bone_scaling[name] = 1.0 if scale is None else self.bone_scaling[name] / scale

    def _scaled(self, adapter_name: str) -> Params:
        variant, scale = self.bone_variant[adapter_name], self.bone_scaling[adapter_name]
        with onloaded(*(getattr(self, name).holder(adapter_name) for name in variant.parameters)):
            params = {key: whole(tensor) for key, tensor in self._parameters_of(adapter_name).items()}
        return params if scale == 1 else variant.scaled(params, scale)

    # Weight

    def _base_weight(self) -> Tensor:
        """The frozen weight as ``(out, in)``, dequantized if need be."""
        base = self.get_base_layer()
        with onloaded(base):
            if self.quantization_backend is None:
                # With its gradient, if it is trained, or follows from parameters that are.
                weight: Any = base.weight
            else:
                weight = dequantized(self.quantization_backend, base)
        return weight.T if self.fan_in_fan_out else weight

    @property
    def weight(self) -> Any:
        """The weight that a model sees which reads it: the adapted one, where the model multiplies by it itself."""
        if not self.use.read:
            if self.on_read is not None and not torch.compiler.is_compiling():
                self.on_read(self)
            return BaseTunerLayer.weight.fget(self)  # type: ignore[attr-defined]
        base = self.get_base_layer()
        if self.disable_adapters:
            self._run_without_adapters()
        names = [] if self.disable_adapters else self._unmerged(self.active_adapters)
        if not names:
            return base.weight
        weight = self._base_weight()
        frozen = Frozen(call=base, read_weight=lambda: weight, read_bias=lambda: None)
        adapted = self._stack(names, frozen).weight(weight.dtype)
        return adapted.T if self.fan_in_fan_out else adapted

    def _unmerged(self, adapter_names: Sequence[str]) -> list[str]:
        return [name for name in self._present(adapter_names) if name not in self.merged_adapters]

    def _base_bias(self) -> Tensor | None:
        return getattr(self.get_base_layer(), "bias", None)

    def _stack(self, adapter_names: Sequence[str], below: Below, split: Split | None = None) -> Below:
        """Put adapters on top of ``below``, in their order; of each, the part that ``split`` gives this process."""
        dropouts: Any = self.bone_dropout if self.training else ()
        for name in adapter_names:
            variant = self.bone_variant.get(name)
            if variant is not None:
                dropout = dropouts[name] if name in dropouts else None  # noqa: SIM401 - ModuleDict has no get
                params = self._scaled(name)
                params = params if split is None else split.of_process(variant, params)
                below = Adapted(below, variant, params, dropout)
        return below

    def get_delta_weight(self, adapter: str, orig_weight: Tensor | None = None) -> Tensor:
        """``dW`` of one adapter, oriented like the base layer's weight. Under FSDP2 every process has to ask for it.

        Args:
            adapter: its name.
            orig_weight: the weight to compute it for; by default the base layer's.

        Returns:
            ``(out, in)`` (``(in, out)`` for ``Conv1D``), in at least float32.
        """
        reshard(self)
        weight = self._base_weight() if orig_weight is None else (orig_weight.T if self.fan_in_fan_out else orig_weight)
        weight = whole(weight)
        weight = weight.to(merge_dtype(weight.dtype))
        params = {key: tensor.to(weight.dtype) for key, tensor in self._scaled(adapter).items()}
        delta = self.bone_variant[adapter].delta_weight(params, weight)
        return delta.T if self.fan_in_fan_out else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    # Merge

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters into the base weight. Computed in float32 and rounded once.

        The unmerged weight is kept, so that :meth:`unmerge` returns it bit for bit. Under FSDP2 every process has to
        merge, and each keeps its part.

        Args:
            safe_merge: refuse a merged weight that holds NaN or infinity, and leave the layer as it was.
            adapter_names: which; by default the active ones.

        Raises:
            BoneError: if ``safe_merge`` finds NaN or infinity, or the layer's weight cannot be merged into.
        """
        names = self._present(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        self.check_merge(names, finite=safe_merge)
        if self.merged:
            # Round once: start over from the unmerged weight, with the old adapters and the new ones.
            names = [*self.merged_adapters, *names]
            self.unmerge()
        names = self._in_order(names)
        base = self.get_base_layer()
        merged = self._merged_weight(names)
        self._unmerged_base = Snapshot(base)
        if self.quantization_backend is None:
            replace_weight(base, merged, self.shares_weight)
        else:
            self.set_base_weight(merged)
        self.merged_adapters = names

    def check_merge(self, adapter_names: Sequence[str] | None = None, finite: bool = True) -> None:
        """Raise ``BoneError`` if these adapters (``None``: the active ones) cannot be merged.

        Args:
            adapter_names: which.
            finite: whether to compute the merged weight and look for NaN and infinity.
        """
        names = self._present(self.active_adapters if adapter_names is None else adapter_names)
        names = [name for name in names if name not in self.merged_adapters]
        if not names:
            return
        if self.quantization_backend is None:
            check_replaceable(self.get_base_layer())
        reshard(self)
        check_sharding(self.get_base_layer(), self.shares_weight, self.quantization_backend is not None)
        together = self._in_order([*self.merged_adapters, *names])
        self._check_order(together)
        if finite and not torch.isfinite(self._merged_weight(together)).all():
            # The second half is PEFT's own sentence, which programs look for.
            raise BoneError(
                f"merging {', '.join(names)} gives NaN or infinity, so nothing was merged: NaNs detected in the merged "
                f"weights. The adapter {names[-1]} seems to be broken"
            )

    def _in_order(self, adapter_names: Sequence[str]) -> list[str]:
        """The active adapters in the order in which they run, then the others."""
        active = [name for name in self.active_adapters if name in adapter_names]
        return active + [name for name in adapter_names if name not in active]

    def _check_order(self, merged: Sequence[str]) -> None:
        """Adapters that stay unmerged run on top of the merged ones: refuse where that would be another order."""
        active = self._present(self.active_adapters)
        order = sorted(active, key=lambda name: name not in merged)
        turned = [name for name in active if not issubclass(self.bone_variant[name], Additive)]
        if order != active and turned:
            raise BoneError(
                f"{turned[0]} multiplies the weight, so the order of {', '.join(active)} counts: merge them from the "
                f"first on, or all of them, not {', '.join(merged)} alone"
            )

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        if not enabled and self.merged and is_managed(self):
            self.unmerge()

    def _run_without_adapters(self) -> None:
        """Have the base layer be itself while it runs."""
        if not self.merged:
            return
        if is_managed(self):
            raise BoneError("FSDP's weights were merged while adapters were disabled: call unmerge_adapter() first.")
        self.unmerge()

    def unmerge(self) -> None:
        """Put the unmerged base weight back, bit for bit."""
        if self._unmerged_base is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        reshard(self)
        self.base_layer = self._unmerged_base.restore()
        self._unmerged_base = None
        self.merged_adapters = []

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, with the adapters merged into it or not. Keeps no copy of the unmerged weight."""
        reshard(self)
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        self._unmerged_base = None
        return self.get_base_layer()

    @torch.no_grad()
    def _merged_weight(self, adapter_names: Sequence[str]) -> Tensor:
        """The unmerged weight with adapters, rounded to its dtype and oriented as it is stored."""
        weight = self._base_weight().detach()
        if self._unmerged_base is not None and self.quantization_backend is None:
            stored = self._unmerged_base.weight
            weight = stored.T if self.fan_in_fan_out else stored
        weight = whole(weight)
        dtype = merge_dtype(weight.dtype)
        frozen = Frozen(call=self.base_layer, read_weight=lambda: weight, read_bias=lambda: None)
        merged = self._stack(adapter_names, frozen).weight(dtype).to(weight.dtype)
        return merged.T.contiguous() if self.fan_in_fan_out else merged


class BoneLinear(nn.Module, BoneLayer):
    """A frozen linear layer with Bone adapters.

    Works on ``nn.Linear``, Transformers' ``Conv1D``, and linear layers quantized by any of PEFT's backends.

    Args:
        base_layer: the pretrained layer; it stays a black box for all variants but Bat.
        adapter_name: name of the first adapter.
        r: size of its tensors.
        init_weights: as in ``BoneConfig``.
        kwargs: ``config`` or single options of ``BoneConfig``; what PEFT's quantization backends want.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        r: int = 0,
        init_weights: bool | Literal["bat"] = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        BoneLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, init_weights, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x (..., in)`` to ``(..., out)``.

        ``adapter_names``, a list with one name for each row of the batch, gives each row an adapter of its own.
        """
        row_adapters = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            self._run_without_adapters()
            return self.base_layer(x, *args, **kwargs)
        if row_adapters is not None:
            return self._forward_by_row(x, row_adapters, *args, **kwargs)
        names: Sequence[str] = self.active_adapters
        if self.merged:
            names = self._unmerged(names)
            if not names:
                return self.base_layer(x, *args, **kwargs)
        return self._forward_with(names, x, *args, **kwargs)

    def _forward_with(self, adapter_names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.split is not None:
            return self._forward_split(self.split, adapter_names, x)

        def call(z: Tensor) -> Tensor:
            y = self.base_layer(z, *args, **kwargs)
            return y if self.quantization_backend is None else self.quantization_backend.maybe_clone_base_result(y)

        frozen = Frozen(call, self._base_weight, self._base_bias, None if args or kwargs else self.base_layer)
        return self._stack(adapter_names, frozen).output(x)

    def _forward_split(self, split: Split, adapter_names: Sequence[str], x: Tensor) -> Tensor:
        base = self.get_base_layer()
        part = self._stack(adapter_names, split.part_of(base), split)
        return split.end(part.output(split.begin(x)), split.bias_after(base))

    def _forward_by_row(self, x: Tensor, row_adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        mixed_rows.check_rows(len(x), row_adapters)
        if self.merged:
            raise BoneError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        names = list(dict.fromkeys(row_adapters))
        if len(names) == 1:
            return self._forward_with(names, x, *args, **kwargs)
        adapted = [name for name in names if name in self.bone_variant]
        if self.split is not None or not all(self._only_adds(name) for name in adapted):
            return mixed_rows.in_turns(
                x, row_adapters, lambda name, part: self._forward_with([name], part, *args, **kwargs)
            )
        # The frozen layer runs once for all rows.
        y = self._forward_with([], x, *args, **kwargs)
        adapters: Any = {name: (self.bone_variant[name], self._scaled(name)) for name in adapted}
        return mixed_rows.add(y, x, row_adapters, adapters)

    def _only_adds(self, adapter_name: str) -> bool:
        drops = self.training and adapter_name in self.bone_dropout
        return issubclass(self.bone_variant[adapter_name], Additive) and not drops

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return "bone." + super().__repr__()


def merge_dtype(dtype: torch.dtype) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(dtype, torch.float32)
