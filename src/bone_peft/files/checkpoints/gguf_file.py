"""A GGUF file, unpacked tensor by tensor into what Transformers would have made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.gguf_header import check_gguf
from bone_peft.io.names import brief
from bone_peft.io.safetensors_file import header_bytes
from bone_peft.method.compat.checkpoint_names import separate_names
from bone_peft.method.compat.gguf import is_converted, read_once, settings_of
from bone_peft.method.tuner.experts.fused import FusedLinear

from ..gguf_path import accepts, path_of
from ..remote_code import not_run
from . import outline
from .bounded import bounded
from .checkpoint import Edit, Held, Progress, Readable
from .experts_edit import ExpertsEdit
from .rewrite import sent_meanwhile, write_pieces
from .ties import parted, with_ties

# Transformers takes its own defaults for them.
_SIZES_OF_EXPERTS = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}

SHARD_BYTES = 5 * 10**9

__all__ = ["GgufCheckpoint", "accepts"]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file, unpacked when it is read.

    Attributes:
        place: if it is the matrix of one expert, out of a tensor that has those of all: the parameter that it is a part
            of, the expert, the part, and of how many.
    """

    path: Path
    source: Any
    processor: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: tuple[str, int, int, int] | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        from gguf import dequantize

        # Not through the reader's memory map, whose pages would count as ours.
        data, nbytes, offset = self.source.data, int(self.source.n_bytes), int(self.source.data_offset)
        shape = data.shape
        if self.place is not None:
            nbytes, shape = nbytes // shape[0], shape[1:]
            offset += self.place[1] * nbytes
        packed = np.fromfile(self.path, np.uint8, nbytes, offset=offset).view(data.dtype).reshape(shape)
        unpacked = dequantize(packed, self.source.tensor_type)
        result = self.processor.process(weights=unpacked, name=self.source.name)
        return torch.from_numpy(result.weights).to(self.dtype).reshape(self.shape).contiguous()

    def read_rows(self, start: int, stop: int) -> Tensor:
        return self.read()[start:stop]


class _Named:
    """As much of a model as Transformers' map of names asks for.

    It asks every submodule again, and each answer takes as long as that of the whole. Only the model inside the model
    ever has names of its own.
    """

    def __init__(self, model: Any, prefix: str | None = None) -> None:
        self.config = model.config
        self.state_dict = model.state_dict
        self.prefix = prefix
        self.inner = getattr(model, prefix, None) if prefix else None

    def named_children(self) -> list[tuple[str | None, _Named]]:
        return [] if self.inner is None else [(self.prefix, _Named(self.inner))]


class GgufCheckpoint:
    """A GGUF file. See :class:`~bone_peft.files.checkpoints.Checkpoint`."""

    def __init__(self, base: str, dtype: str = "bfloat16") -> None:
        self.name = base
        self.path = path_of(base)
        self.numbers = check_gguf(self.path)
        # "auto" is what Transformers makes of a GGUF file when it is not told.
        self.dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self._where = {"pretrained_model_name_or_path": str(self.path.parent), "gguf_file": self.path.name}

    @cached_property
    def config(self) -> Any:
        with read_once():
            return self._config()

    def _config(self) -> Any:
        try:
            # Transformers reads the whole vocabulary on its way. How long that is has been looked at.
            settings = bounded(lambda: settings_of(**self._where), self.path, seconds=60)
        except Exception as error:
            raise BoneError(f"{self.path} cannot be read as a GGUF model ({brief(error)}).") from error
        for key, field in self._reader.fields.items():
            name = _SIZES_OF_EXPERTS.get(key.partition(".")[2])
            if name is not None:
                settings.setdefault(name, int(field.parts[field.data[0]][0]))
        config = outline.load_config(settings, self.path, "CAUSAL_LM", self._parts)
        if config is None:
            raise BoneError(f"Transformers does not know the kind of model in {self.path}.")
        config.dtype = self.dtype
        return config

    @cached_property
    def model(self) -> Any:
        model = outline.outline(self.config, "CAUSAL_LM", self._parts, self.path)
        outline.check_size(model, self.numbers, self.path)
        return model

    @cached_property
    def _reader(self) -> Any:
        from gguf import GGUFReader

        try:
            return GGUFReader(str(self.path))  # as Transformers calls it: one that is there is taken
        except Exception as error:
            raise BoneError(f"{self.path} is damaged, or no GGUF file ({brief(error)}): take another copy.") from error

    @property
    def _parts(self) -> int:
        return outline.parts(len(self._reader.tensors))

    @cached_property
    def ties(self) -> dict[str, str]:
        return outline.ties(self.model)

    @cached_property
    def tensors(self) -> dict[str, GgufTensor]:
        return with_ties(self._stored, self.ties)

    @cached_property
    def _stored(self) -> dict[str, GgufTensor]:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
            read_field,
        )

        architecture = read_field(self._reader, "general.architecture")[0]
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=self.config.to_dict())
        with read_once():
            names = get_gguf_hf_weights_map(_Named(self.model, self.model.base_model_prefix), processor)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        found: dict[str, GgufTensor] = {}
        for source in self._reader.tensors:
            # Parameters of experts have no ending of their own.
            name = names.get(source.name) or names.get(source.name.removesuffix(".weight"))
            if name not in shapes:
                continue
            whole = GgufTensor(self.path, source, processor, shapes[name], self.dtype)
            fused = self.fused(name)
            made = {name: whole} if fused is None else _by_expert(whole, name, fused, self.model)
            if made and source.n_elements != sum(prod(tensor.shape) for tensor in made.values()):
                raise BoneError(
                    f"{self.path} asks for {name} of shape {shapes[name]}, and its {source.name} is another: take "
                    "another copy of it."
                )
            found |= made
        held = {name if tensor.place is None else tensor.place[0] for name, tensor in found.items()}
        lost = set(dict(self.model.named_parameters())) - held - set(self.ties)
        if lost or is_converted(architecture):
            raise BoneError(
                f"{self.path} ({architecture}) cannot be unpacked tensor by tensor: load it with Transformers, save it "
                "with save_pretrained(), and take that folder as the base."
            )
        return found

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._stored.values())

    def fused(self, module: str) -> FusedLinear | None:
        return outline.fused(self.model, module)

    def apart(self, fused: str) -> dict[tuple[int, int], GgufTensor]:
        placed = ((tensor.place, tensor) for tensor in self._stored.values() if tensor.place is not None)
        return {(expert, part): tensor for (owner, expert, part, _), tensor in placed if owner == fused}

    def shape_of(self, module: str) -> tuple[int, ...]:
        shape = outline.shape(self.model, module)
        if shape is None:
            raise BoneError(f"{self.name} has no linear layer {module}: the adapter is for another base.")
        return shape

    def transposed(self, module: str) -> bool:
        return outline.is_transposed(self.model, module)

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        by_expert = {name: tensor.place for name, tensor in self._stored.items() if tensor.place is not None}
        edits = dict(edits)
        for name, (fused, *place) in by_expert.items():
            if isinstance(edit := edits.get(fused), ExpertsEdit):
                edits[name] = edit.of(*place)
        for fused in {fused for fused, *_ in by_expert.values()}:
            if isinstance(edits.get(fused), ExpertsEdit):
                del edits[fused]
        lost = next((name for name in edits if name not in self.tensors), None)
        if lost is not None:
            raise BoneError(f"{self.name} has no parameter {lost}: the adapter is for another base.")
        apart = parted(self.ties, self.tensors, edits)
        added = {name: Held(tensor) for name, tensor in apart.items() if name not in self._stored}
        tensors: dict[str, Readable] = {**self._stored, **added}
        total, done = sum(tensor.nbytes for tensor in tensors.values()), 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        shards = _shards(tensors)
        for file, names in shards.items():
            with open(out / file, "wb") as target, sent_meanwhile(target, wrote) as sent:
                entries = {name: (self.dtype, tensors[name].shape) for name in names}
                target.write(header_bytes(entries, {"format": "pt"}))
                for name in names:
                    unchanged = Edit(name=name)
                    edit = unchanged if name in added else edits.get(name, unchanged)
                    held = Held(tensors[name].read())
                    write_pieces(target, edit.pieces(held), held.nbytes, sent)
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        if apart:
            self.config.tie_word_embeddings = False
        self._write_rest(out)

    def _write_rest(self, out: Path) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        with not_run(self.name):
            tokenizer = AutoTokenizer.from_pretrained(**self._where, trust_remote_code=False)
        tokenizer.save_pretrained(out)
        GenerationConfig.from_model_config(self.config).save_pretrained(out)
        self.config.architectures = [type(self.model).__name__]
        self.config.save_pretrained(out)


def _by_expert(tensor: GgufTensor, name: str, fused: FusedLinear, model: Any) -> dict[str, GgufTensor]:
    """The matrices in a tensor of all experts, by the names that checkpoints of the model have for each.

    Empty where the model keeps its experts in another way than GGUF.
    """
    parts = [f"ffn_{part.removesuffix('_proj')}_exps" for part in fused.parts]
    found = [part in tensor.source.name for part in parts]
    if not any(found) or fused.is_transposed or fused.is_interleaved or fused.bias is not None:
        return {}
    part, shape = found.index(True), (fused.out_features // len(parts), fused.in_features)
    own = separate_names(model, name, fused.parts)[part]
    return {
        f"{own.format(expert)}.weight": replace(tensor, shape=shape, place=(name, expert, part, len(parts)))
        for expert in range(fused.experts)
    }


def _shards(tensors: Mapping[str, Readable]) -> dict[str, list[str]]:
    """Names of tensors by file."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}
