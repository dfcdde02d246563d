"""``BoneModel``: puts Bone layers into a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists, onload_layer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, _get_submodules
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from bone_peft.errors import BoneError, naming

from ..compat.own_bone import converted
from ..compat.quantization import get_quantization_kwargs
from ..compat.state_dicts import trained_biases
from ..compat.tuner_base import Tuner
from . import attention
from .config import BoneConfig
from .experts.experts_layer import BoneExperts
from .experts.fused import FusedLinear, check_held
from .experts.left_out import left_out
from .experts.loading import fit, joined
from .experts.named import is_parameter, named_by_part
from .experts.unfolding import fold, is_unfolded, layers_of, unfold_all
from .first_run import watch_first_run
from .layer import BoneLayer, BoneLinear
from .mixed_rows import BASE, check_rows
from .offload import execution_device
from .patterns import check_patterns, pattern_key
from .saved import check_saved
from .sharded import part
from .siblings import watch
from .split import split_of
from .targets import also_excluded, trained_whole, use_of, why_not, why_not_in
from .tensors import check_complete, file_keys, remove_adapter_name
from .tied_weights import check_ties, input_embedding_name, is_named, mark_shared, note_untied
from .weighted import add_weighted_adapter


class BoneModel(Tuner):
    """A model whose target layers carry Bone adapters.

    Usually made by ``get_peft_model(model, BoneConfig(...))``; ``BoneModel(model, config, "default")`` works as well.

    Args:
        model: the pretrained model; it is changed in place.
        peft_config: a :class:`BoneConfig`.
        adapter_name: name of the first adapter.
        low_cpu_mem_usage: create the adapter on the meta device, to be filled by a checkpoint.

    Raises:
        BoneError: if a target is not a linear layer, or cannot be adapted as asked; the model is then as it was.
    """

    prefix = "bone_"
    tuner_layer_cls = BoneLayer
    _skipped: dict[str, str]
    _passed_by: dict[str, str]
    target_module_mapping: dict[str, Any] = dict(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    add_weighted_adapter = add_weighted_adapter

    @classmethod
    def register_targets(cls, model_type: str, names: Sequence[str]) -> None:
        """Say what ``target_modules`` is when it is left out, for a type of model that is not in PEFT's list."""
        cls.target_module_mapping[model_type] = list(names)

    def merge_bone_layers(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters into the weights, for inference at the base model's speed.

        The 'Bottleneck Network' guide's word for PEFT's ``merge_adapter()``; ``unmerge_adapter()`` takes it back.
        """
        self.merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's, but all layers are looked at before the first is written.

        Active adapters that are not merged keep running, on top of the merged ones.

        Raises:
            BoneError: an adapter that there is not, a layer that cannot be merged into, or, with ``safe_merge``, NaN.
        """
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names)

    def unmerge_adapter(self) -> None:
        """Put every weight back, bit for bit."""
        if not any(module.merged for module in self.model.modules() if isinstance(module, BoneLayer)):
            super().unmerge_adapter()
            return
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer) and module.merged:
                with onload_layer(module):
                    module.unmerge()

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_merge(adapter_names, safe_merge)
            check_ties(self.model, self._adapted(adapter_names))
        model: Any = super()._unload_and_optionally_merge(merge, progressbar, adapter_names=adapter_names)
        watch(model)
        if merge:
            note_untied(model)
        return model

    def _adapted(self, adapter_names: list[str] | None) -> dict[str, BoneLayer]:
        """The layers that have one of these adapters (``None``: an active one), by name."""
        layers = {name: module for name, module in self.model.named_modules() if isinstance(module, BoneLayer)}
        wanted = set(self.active_adapters if adapter_names is None else adapter_names)
        return {name: layer for name, layer in layers.items() if wanted & set(layer.bone_variant)}

    def _check_merge(self, adapter_names: list[str] | None, finite: bool) -> None:
        mark_shared(self.model)
        unknown = [name for name in adapter_names or [] if name not in self.peft_config]
        if unknown:
            raise BoneError(f"There is no adapter {', '.join(unknown)}: the model has {', '.join(self.peft_config)}.")
        for name, module in self._adapted(adapter_names).items():
            with naming(name), onload_layer(module):
                module.check_merge(adapter_names, finite)

    def _tell_skipped(self, config: Any) -> None:
        """Warn of the layers that were passed by, and keep them out of the config that is saved."""
        skipped, self._skipped = self._skipped, {}
        if skipped:
            self.targeted_module_names = [name for name in self.targeted_module_names if name not in skipped]
            if not self.targeted_module_names:
                raise BoneError(f"No layer of this model can be adapted so: {next(iter(skipped.values()))}")
            config.exclude_modules = also_excluded(config.exclude_modules, skipped)
        skipped |= self._passed_by
        if not skipped:
            return
        reasons: dict[str, dict[str, None]] = {}
        for name, error in skipped.items():
            # Layers that differ in a number only are named once.
            reason = error.removeprefix(name).removeprefix(":").strip()
            reasons.setdefault(reason, {})[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] = None
        told = "; ".join(f"{', '.join(names)} ({reason.rstrip('.')})" for reason, names in reasons.items())
        warnings.warn(f"Bone leaves out {len(skipped)} layers of this model: {told}.", stacklevel=2)

    # Files

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        # PEFT asks for them when it saves, and speech models have none.
        return partial(_or_none, value) if name == "get_input_embeddings" else value

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Any],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Any]:
        # PEFT has taken out what looks like another adapter's, and an adapter may be called "layers". What is read
        # after this, modules_to_save say, needs it too.
        state_dict |= {key: value for key, value in model.state_dict().items() if key not in state_dict}
        own = {key: state_dict[key] for key in file_keys(model, adapter_name)}
        check_saved(model, adapter_name, own)
        return own | trained_biases(model, state_dict, config.bias)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return remove_adapter_name(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        keys = file_keys(model, adapter_name)
        state_dict = joined(model, config, keys, state_dict)
        fit(model, adapter_name, state_dict)
        known = model.state_dict()
        check_complete(keys, state_dict, known, adapter_name)
        prefix = "base_model.model."
        places = {key.removeprefix(prefix): place for place, key in keys.items()}
        placed = {places.get(key.removeprefix(prefix), key): value for key, value in state_dict.items()}
        return {place: part(value, known.get(place)) for place, value in placed.items()}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if not adapter_name or "." in adapter_name or adapter_name == "training":
            # Modules have names like these, and PyTorch wants them without dots and free of its own flag.
            del self.peft_config[adapter_name]
            raise BoneError(f"An adapter cannot be called {adapter_name!r}: choose another name, without dots.")
        config = self.peft_config[adapter_name] = converted(self.peft_config[adapter_name], BoneConfig)
        self._chosen_for_the_user = config.target_modules is None or config.target_modules == "all-linear"
        self._skipped = {}
        try:
            check_patterns(vars(config), (name for name, _ in model.named_modules()))
            self._passed_by = {
                name: why
                for name, why in left_out(model).items()
                if config.target_modules == "all-linear"
                or is_parameter(name, config.target_parameters or ())
                or (config.target_modules is not None and check_target_module_exists(config, name))
            }
            for name, why in self._passed_by.items():
                if is_parameter(name, config.target_parameters or ()):
                    raise BoneError(f"{name} {why}.")
            with _experts_as_layers(model):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._tell_skipped(self.peft_config[adapter_name])
        except Exception as error:
            _take_out(model, adapter_name)
            if isinstance(error, ValueError) and "not found in the base model" in str(error):
                raise type(error)(f"{error} {_what_it_has(model)}") from None
            raise
        watch(model)
        mark_shared(model)
        watch_first_run(model)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if peft_config.target_modules is None and peft_config.target_parameters:
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        found = check_target_module_exists(peft_config, key)
        if found or not isinstance(found, (bool, type(None))):
            return found
        if is_parameter(f"{key}.weight", peft_config.target_parameters or ()):
            return True
        projection = _projection(self.model, key)
        if projection is None:
            return found
        if is_parameter(key, peft_config.target_parameters or ()):
            return True
        named = named_by_part(key, projection.parts, lambda name: check_target_module_exists(peft_config, name))
        if named and len(named) < len(projection.parts):
            self._skipped[key] = f"is {' and '.join(projection.parts)} in one, and only {named[0]} is named"
        return len(named) == len(projection.parts)

    def _inject_parameters(self, peft_config: Any, model: Any, *args: Any, **kwargs: Any) -> list[str]:
        """PEFT's way to parameters. Here they are layers, and adapted by now: say which."""
        names = [name for name, module in model.named_modules() if isinstance(module, BoneLayer)]
        wanted = peft_config.target_parameters
        return [name for name in names if is_parameter(name, wanted) or is_parameter(f"{name}.weight", wanted)]

    def _create_and_replace(self, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        try:
            self._adapt(peft_config, adapter_name, *args, **kwargs)
        except BoneError as error:
            if not self._chosen_for_the_user:
                raise
            self._skipped[kwargs["current_key"]] = str(error)

    def _adapt(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        r = peft_config.layer_size(self._ranked(peft_config.rank_pattern, current_key))
        if attention.has_in_projection(target):
            adapt = partial(self._adapt, peft_config, adapter_name, parent=target)
            for name, layer in attention.projections(target).items():
                adapt(target=layer, target_name=name, current_key=f"{current_key}.{name}")
            return
        if isinstance(target, BoneLayer):
            with naming(current_key):
                target.update_layer(adapter_name, r, config=peft_config)
            return
        is_fused = isinstance(target, FusedLinear)
        refusal = None if is_fused else why_not(target) or why_not_in(self.model, current_key)
        refusal = refusal or trained_whole(peft_config, current_key)
        if refusal is not None:
            raise BoneError(f"{current_key} {refusal}.")
        split = split_of(self.model, current_key, target)
        if isinstance(target, FusedLinear):
            check_held(current_key, target.weight, parent)
            with naming(current_key):
                experts = BoneExperts(target, adapter_name, r, config=peft_config)
            if adapter_name not in self.active_adapters:
                experts.requires_grad_(False)
            self._replace_module(parent, target_name, experts, target)
            return
        with naming(current_key):
            use = use_of(parent, target_name)
            if not use.learns:
                raise BoneError(
                    "this model computes it without autograd (torch.no_grad), so an adapter there learns nothing: name "
                    "it in exclude_modules"
                )
            layer = BoneLinear(
                target, adapter_name, r, config=peft_config, use=use, split=split, **get_quantization_kwargs(self)
            )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _ranked(self, rank_pattern: dict[str, int], key: str) -> int | None:
        """What ``rank_pattern`` has for the layer ``key``, or for each part of it."""
        found = rank_pattern.get(pattern_key(rank_pattern, key))
        projection = None if found is not None or not rank_pattern else _projection(self.model, key)
        if projection is None:
            return found
        container = key.rpartition(".")[0]
        sizes = {part: rank_pattern.get(pattern_key(rank_pattern, f"{container}.{part}")) for part in projection.parts}
        if len(set(sizes.values())) > 1:
            named = ", ".join(f"{part} {size}" for part, size in sizes.items())
            raise BoneError(f"{key} has one r, and rank_pattern has for its parts: {named}. Give them the same.")
        return next(iter(sizes.values()))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, BoneLayer) and execution_device(new_module.get_base_layer()) is not None:
            setattr(parent, child_name, new_module)  # It has found its place; PEFT would put it beside the weight.
        elif isinstance(new_module, BoneLayer):
            super()._replace_module(parent, child_name, new_module, child)
        elif isinstance(new_module, attention.InProjection):
            attention.put_back(parent, new_module)
        elif isinstance(new_module, FusedLinear):
            setattr(parent, child_name, new_module)
            _fold(parent)
        else:
            # What is put back has all its parts; PEFT would ask it for a weight, and a head may have none.
            setattr(parent, child_name, new_module)

    def _add_modules_to_save_to_tie(self, peft_config: Any, tied_weight_keys: Any) -> None:
        embedding, tied = input_embedding_name(self.model), set(tied_weight_keys)
        saved = [name for name in peft_config.modules_to_save if not any(is_named(key, name) for key in tied)]
        peft_config.modules_to_save = [
            *saved,
            *([] if any(is_named(embedding, name) for name in saved) else [embedding]),
        ]
        peft_config.modules_to_tie = tied

    def _add_targets_to_tie(self, peft_config: Any, tied_weight_keys: Any) -> None:
        raise BoneError(
            f"{', '.join(tied_weight_keys)}: Bone adapts linear layers, and ensure_weight_tying asks for the embedding "
            "as well: name them in modules_to_save, or leave ensure_weight_tying out."
        )

    def _check_merge_allowed(self) -> None:
        # PEFT's own warning is about tied embeddings, which stay whole here: a merged layer gets a weight of its own.
        for name, module in self.model.named_modules():
            backend = getattr(module, "quantization_backend", None)
            if isinstance(module, BoneLayer) and backend is not None and not backend.supports_merge:
                raise BoneError(f"{name} is quantized by {backend.backend_name}, which cannot be merged into.")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """While a call with ``adapter_names`` runs, every adapted layer is told each row's adapter."""
        row_adapters = kwargs.get("adapter_names")
        if row_adapters is None:
            yield
            return
        # The beginnings are LoRA's words, which programs look for.
        if self.training:
            raise BoneError(
                "Cannot pass `adapter_names` when the model is in training mode: they are for inference, call "
                "model.eval() first."
            )
        if any(isinstance(module, BoneLayer) and not module.use.called for module in self.modules()):
            name = next(n for n, m in self.named_modules() if isinstance(m, BoneLayer) and not m.use.called)
            raise BoneError(
                f"{name}: this model reads the weight of the layer and never calls it, and one weight cannot be each "
                "row's own: leave adapter_names out, or name the layer in exclude_modules."
            )
        known = {name for module in self.modules() if isinstance(module, BoneLayer) for name in module.bone_variant}
        unknown = sorted(set(row_adapters) - known - {BASE})
        if unknown:
            raise BoneError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}, and the model has "
                f"{', '.join(sorted(known))}."
            )
        rows = next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if rows is not None:
            check_rows(rows, row_adapters)
        hook = partial(_pass_adapter_names, names=row_adapters, repeats=_repeats(self.model, kwargs))
        watched = [module for module in self.modules() if isinstance(module, (BoneLayer, AuxiliaryTrainingWrapper))]
        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _repeats(model: Any, options: dict[str, Any]) -> set[int]:
    """How often generation may repeat each row: for its beams, or for several answers."""
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    names = ("num_beams", "num_return_sequences")
    return {options.get(name) or getattr(config, name, None) or 1 for name in names}


def _pass_adapter_names(
    module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str], repeats: set[int]
) -> tuple[Any, Any]:
    if isinstance(module, BoneExperts):
        return args, {**kwargs, "adapter_names": names}
    x = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
    # An encoder runs before the rows are repeated.
    times = len(x) // len(names) if len(x) in {len(names) * times for times in repeats} else 1
    return args, {**kwargs, "adapter_names": [name for name in names for _ in range(times)]}


@contextmanager
def _experts_as_layers(model: nn.Module) -> Iterator[None]:
    """While PEFT looks for targets, parameters of experts are layers. Those that get no adapter do not stay so."""
    unfold_all(model)
    try:
        yield
    finally:
        for module in list(model.modules()):
            _fold(module)


def _fold(module: nn.Module) -> None:
    """Make the parameters of experts parameters again, once none of them has an adapter."""
    if is_unfolded(module) and not any(isinstance(layer, BoneLayer) for layer in layers_of(module)):
        fold(module)


def _projection(model: nn.Module, key: str) -> FusedLinear | None:
    """The projection of experts that is called ``key``, under its adapters."""
    try:
        module: Any = model.get_submodule(key)
    except AttributeError:
        return None
    layer = module.get_base_layer() if isinstance(module, BoneLayer) else module
    return layer if isinstance(layer, FusedLinear) else None


def _or_none(get: Any) -> Any:
    try:
        return get()
    except NotImplementedError:
        return None


def _what_it_has(model: nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if name and why_not(module) is None}
    return f"It has {', '.join(sorted(names))}." if names else "It has no linear layer."


def _take_out(model: nn.Module, adapter_name: str) -> None:
    """Undo an injection that failed half way."""
    layers = [(key, module) for key, module in model.named_modules() if isinstance(module, BoneLayer)]
    for key, layer in layers:
        for attribute in layer.adapter_layer_names + layer.other_param_names:
            if adapter_name in getattr(layer, attribute):
                del getattr(layer, attribute)[adapter_name]
        if not layer.bone_variant:
            parent, _, name = _get_submodules(model, key)
            if isinstance(layer.base_layer, attention.InProjection):
                attention.put_back(parent, layer.base_layer)
            elif isinstance(layer.base_layer, FusedLinear):
                setattr(parent, name, layer.base_layer)
                _fold(parent)
            else:
                setattr(parent, name, layer.base_layer)
