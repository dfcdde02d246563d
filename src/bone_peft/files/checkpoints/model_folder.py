"""A model folder as Transformers saves it: safetensors or ``.bin``, one file or many, with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.json_file import read_json
from bone_peft.io.names import brief
from bone_peft.io.safetensors_file import SafetensorsFile, read_safetensors
from bone_peft.io.stored import StoredTensor
from bone_peft.io.torch_file import TorchFile, read_torch
from bone_peft.method.tuner.experts.fused import FusedLinear

from . import outline
from .checkpoint import Edit, Progress
from .experts_edit import ExpertsEdit
from .rewrite import rewrite_safetensors, rewrite_torch, write_torch
from .ties import parted, untied, with_ties

# In the order in which Transformers looks for them.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json", ".partial")


def download(name: str) -> Path:
    """The folder of a model of the hub, from the cache if it is there."""
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja", "*.py"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise BoneError(
            f"There is no base model at {name!r}, neither as a folder nor on the hub ({brief(error)})."
        ) from error


def check_loadable(path: Path) -> None:
    """Look whether a model folder asks for more than its weights hold, before Transformers makes a model of it.

    Raises:
        BoneError: it does, or it is unsound in another way.
    """
    where = path / "config.json"
    settings = read_json(where)
    if not settings.get("quantization_config"):
        checkpoint = FolderCheckpoint(path, "CAUSAL_LM")
        _ = checkpoint.names
        model, numbers = (
            checkpoint.model,
            sum(prod(t.shape) for file in checkpoint.files for t in file.tensors.values()),
        )
    else:
        # Packed as somebody else knows; two bits are the least for a number.
        config = outline.load_config(settings, where, "CAUSAL_LM")
        model = None if config is None else outline.outline(config, "CAUSAL_LM", where=where)
        numbers = 4 * sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
    if model is not None:
        outline.check_size(model, numbers, where)


class FolderCheckpoint:
    """A model folder. See :class:`~bone_peft.files.checkpoints.Checkpoint`."""

    def __init__(self, path: Path, task_type: str | None = None, trust_remote_code: bool = False) -> None:
        self.path = path
        self.name = str(path)
        self.task_type = task_type
        self.trust_remote_code = trust_remote_code
        if not (path / "config.json").is_file():
            raise BoneError(f"{str(path)!r} is not a model folder, it has no config.json.")
        self.settings = read_json(path / "config.json")
        if self.settings.get("quantization_config"):
            raise BoneError(
                f"{path} is quantized: merge into the model that it was quantized from, then quantize again."
            )
        self.index: str | None = None
        self.files = self._open()
        self.nbytes = sum(file.path.stat().st_size for file in self.files)

    def _open(self) -> list[SafetensorsFile | TorchFile]:
        found = next((name for name in _WEIGHTS if (self.path / name).is_file()), None)
        if found is None:
            raise BoneError(f"{self.path} holds no weights: bone reads safetensors and .bin files of Transformers.")
        if not found.endswith(".index.json"):
            return [_read(self.path / found)]
        self.index = found
        weight_map = read_json(self.path / found).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise BoneError(f"{self.path / found} has no weight_map: take another copy of it.")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if Path(shard).name != shard or not shard.endswith((".safetensors", ".bin")):
                raise BoneError(f"{self.path / found} names the shard {shard!r}, which is no file of this folder.")
        files = [_read(self.path / shard) for shard in shards]
        stored = {name: file.path.name for file in files for name in file.tensors}
        lost = next((name for name, shard in weight_map.items() if stored.get(name) != shard), None)
        if lost is not None:
            raise BoneError(f"{self.path} lacks {lost}, which its index says is in {weight_map[lost]}.")
        return files

    @cached_property
    def config(self) -> Any:
        if self.trust_remote_code and "auto_map" in self.settings:
            return outline.own_config(self.path)
        return outline.load_config(self.settings, self.path / "config.json", self.task_type, self._parts)

    @cached_property
    def model(self) -> Any:
        """The outline of the model; ``None`` if Transformers does not know it, and names are taken as they are."""
        if self.config is None:
            return None
        where = self.path / "config.json"
        return outline.outline(self.config, self.task_type, self._parts, where, self.trust_remote_code)

    @property
    def _parts(self) -> int:
        return outline.parts(sum(len(file.tensors) for file in self.files))

    @cached_property
    def names(self) -> outline.Names:
        shapes = {name: stored.shape for file in self.files for name, stored in file.tensors.items()}
        if self.model is None:
            return outline.Names({name: name for name in shapes})
        names = outline.parameter_names(self.model, shapes)
        outline.check_stored(self.model, names, shapes, self.path / "config.json")
        return names

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        names = self.names.parameters
        found = {names[n]: stored for file in self.files for n, stored in file.tensors.items() if n in names}
        return with_ties(found, self.ties)

    @cached_property
    def ties(self) -> dict[str, str]:
        return {} if self.model is None else outline.ties(self.model)

    def fused(self, module: str) -> FusedLinear | None:
        return None if self.model is None else outline.fused(self.model, module)

    def apart(self, fused: str) -> dict[tuple[int, int], StoredTensor]:
        stored = {name: tensor for file in self.files for name, tensor in file.tensors.items()}
        return {(e, p): stored[name] for name, (owner, e, p, _) in self.names.experts.items() if owner == fused}

    def shape_of(self, module: str) -> tuple[int, ...]:
        shape: tuple[int, ...] | None
        if self.model is not None:
            shape = outline.shape(self.model, module)
        else:
            stored = self.tensors.get(f"{module}.weight")
            shape = (stored.shape[0], stored.shape[1]) if stored and len(stored.shape) == 2 else None
        if shape is None:
            raise BoneError(f"{self.name} has no linear layer {module}: the adapter is for another base.")
        return shape

    def transposed(self, module: str) -> bool:
        return self.model is not None and outline.is_transposed(self.model, module)

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        in_files, added, apart = self._placed(edits)
        names = {file.path: file.path.name for file in self.files}
        last = self.files[-1].path
        # A .bin file is a pickle, which takes no more tensors: they go into a file beside it.
        beside = bool(added) and last.suffix == ".bin"
        if beside and self.index is None:
            names[last] = "pytorch_model-00001-of-00002.bin"
        count = len(names) + 1
        home = f"pytorch_model-{count:05}-of-{count:05}.bin" if beside else last.name
        total, done = self.nbytes + sum(tensor.nbytes for tensor in added.values()), 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for file in self.files:
            target = out / names[file.path]
            if isinstance(file, SafetensorsFile):
                rewrite_safetensors(file, target, in_files, added if file.path == last else {}, wrote)
            else:
                rewrite_torch(file, target, in_files, wrote)
        if beside:
            write_torch(out / home, added, wrote)
        self._copy_rest(out)
        if self.index is not None or beside:
            stored = {name: names[file.path] for file in self.files for name in file.tensors}
            self._write_index(out, stored | dict.fromkeys(added, home), added)
        # Last, so that what a kill leaves has no config and looks like no model.
        self._write_config(out, edits, apart)

    def _placed(self, edits: Mapping[str, Edit]) -> tuple[dict[str, Edit], dict[str, Tensor], bool]:
        """Edits by name in the files, tensors that the files do not have yet, and whether ties are cut for them."""
        places = {parameter: name for name, parameter in self.names.parameters.items()}
        in_files = {places[name]: edit for name, edit in edits.items() if name in places}
        for stored, (fused, *place) in self.names.experts.items():
            if isinstance(edit := edits.get(fused), ExpertsEdit):
                in_files[stored] = edit.of(*place)
        separate = {fused for fused, *_ in self.names.experts.values()}
        added: dict[str, Tensor] = {}
        for name, edit in edits.items():
            if name in separate:
                continue
            if name in self.names.converted:
                raise BoneError(
                    f"Transformers computes {name} out of other tensors when it loads {self.path}: save the base again "
                    "with save_pretrained(), and merge into that."
                )
            if name in self.tensors:
                continue
            parameter = None if self.model is None else dict(self.model.named_parameters()).get(name)
            if parameter is None or edit.replacement is None:
                raise BoneError(f"{self.name} has no parameter {name}: the adapter is for another base.")
            if parameter.shape[1:] != edit.replacement.shape[1:]:
                raise BoneError(f"{name} has another shape in the adapter than in the base: they do not fit.")
            added[name] = edit.replacement.to(parameter.dtype).contiguous()
        apart = parted(self.ties, self.tensors, edits)
        return in_files, added | {name: tensor for name, tensor in apart.items() if name not in places}, bool(apart)

    def _copy_rest(self, out: Path) -> None:
        for file in sorted(self.path.iterdir()):
            if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name != "config.json":
                shutil.copyfile(file, out / file.name)

    def _write_index(self, out: Path, weight_map: dict[str, str], added: Mapping[str, Tensor]) -> None:
        index = {} if self.index is None else read_json(self.path / self.index)
        index["weight_map"] = index.get("weight_map", {}) | weight_map
        metadata = index.setdefault("metadata", {})
        if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
            metadata["total_size"] += sum(tensor.nbytes for tensor in added.values())
        (out / (self.index or "pytorch_model.bin.index.json")).write_text(json.dumps(index, indent=2) + "\n")

    def _write_config(self, out: Path, edits: Mapping[str, Edit], apart: bool) -> None:
        settings = untied(self.settings, self.config) if apart else dict(self.settings)
        if self.task_type is not None and self.model is not None:
            settings["architectures"] = [type(self.model).__name__]
        head = next((edits[name] for name in ("score.weight", "classifier.weight") if name in edits), None)
        if head is not None and head.replacement is not None and len(head.replacement) != self.config.num_labels:
            settings["id2label"] = {str(i): f"LABEL_{i}" for i in range(len(head.replacement))}
            settings["label2id"] = {label: int(i) for i, label in settings["id2label"].items()}
        if settings == self.settings:
            shutil.copyfile(self.path / "config.json", out / "config.json")
        else:
            (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _read(path: Path) -> SafetensorsFile | TorchFile:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
