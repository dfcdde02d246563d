"""A model folder as Transformers saves it: safetensors or ``.bin``, one file or many, with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io import SafetensorsFile, StoredTensor, TorchFile, read_json, read_safetensors, read_torch
from bone_peft.io.names import brief

from . import outline
from .checkpoint import Edit, Progress
from .rewrite import rewrite_safetensors, rewrite_torch

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


class FolderCheckpoint:
    """A model folder. See :class:`~bone_peft.files.checkpoints.Checkpoint`."""

    def __init__(self, path: Path, task_type: str | None = None) -> None:
        self.path = path
        self.name = str(path)
        self.task_type = task_type
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
        stored = sum(len(file.tensors) for file in self.files)
        outline.check_sizes(self.settings, stored, self.path / "config.json")
        return outline.load_config(self.path)

    @cached_property
    def model(self) -> Any:
        """The outline of the model; ``None`` if Transformers does not know it, and names are taken as they are."""
        return None if self.config is None else outline.outline(self.config, self.task_type)

    @cached_property
    def names(self) -> outline.Names:
        stored = [name for file in self.files for name in file.tensors]
        if self.model is None:
            return outline.Names({name: name for name in stored})
        return outline.parameter_names(self.model, stored)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        names = self.names.parameters
        found = {names[n]: stored for file in self.files for n, stored in file.tensors.items() if n in names}
        for target, source in self.ties.items():
            if source in found:
                found.setdefault(target, found[source])
        return found

    @cached_property
    def ties(self) -> dict[str, str]:
        return {} if self.model is None else outline.ties(self.model)

    def shape_of(self, module: str) -> tuple[int, int]:
        if self.model is not None:
            shape = outline.linear_shape(self.model, module)
        else:
            stored = self.tensors.get(f"{module}.weight")
            shape = (stored.shape[0], stored.shape[1]) if stored and len(stored.shape) == 2 else None
        if shape is None:
            raise BoneError(f"{self.name} has no linear layer {module}: the adapter is for another base.")
        return shape

    def transposed(self, module: str) -> bool:
        return self.model is not None and outline.is_transposed(self.model, module)

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        in_files, added, untied = self._placed(edits)
        new_bytes = sum(tensor.nbytes for tensor in added.values())
        if new_bytes and isinstance(self.files[-1], TorchFile):
            raise BoneError(
                f"{self.path} is in .bin files, which cannot take {next(iter(added))} as well: save the base as "
                "safetensors first, with save_pretrained()."
            )
        total, done = self.nbytes + new_bytes, 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for file in self.files:
            target, last = out / file.path.name, file is self.files[-1]
            if isinstance(file, SafetensorsFile):
                rewrite_safetensors(file, target, in_files, added if last else {}, wrote)
            else:
                rewrite_torch(file, target, in_files, wrote)
        self._copy_rest(out)
        self._write_index(out, added)
        # Last, so that what a kill leaves has no config and looks like no model.
        self._write_config(out, edits, untied)

    def _placed(self, edits: Mapping[str, Edit]) -> tuple[dict[str, Edit], dict[str, Tensor], bool]:
        """Edits by name in the files, tensors that the files do not have yet, and whether a tie is cut for them."""
        places = {parameter: name for name, parameter in self.names.parameters.items()}
        in_files = {places[name]: edit for name, edit in edits.items() if name in places}
        added: dict[str, Tensor] = {}
        untied = False
        for name, edit in edits.items():
            if name in self.names.converted:
                raise BoneError(
                    f"Transformers computes {name} out of other tensors when it loads {self.path}: save the base again "
                    "with save_pretrained(), and merge into that."
                )
            if name in places or name in self.ties:
                continue
            parameter = None if self.model is None else dict(self.model.named_parameters()).get(name)
            if parameter is None or edit.replacement is None:
                raise BoneError(f"{self.name} has no parameter {name}: the adapter is for another base.")
            if parameter.shape[1:] != edit.replacement.shape[1:]:
                raise BoneError(f"{name} has another shape in the adapter than in the base: they do not fit.")
            added[name] = edit.replacement.to(parameter.dtype).contiguous()
        for target, source in self.ties.items():
            if target in places or source not in places or edits.get(target) == edits.get(source):
                continue
            # Only one of the two changes, so they are one no longer.
            untied = True
            pieces = edits.get(target, Edit()).pieces(self.tensors[source])
            added[target] = torch.cat(list(pieces))
        return in_files, added, untied

    def _copy_rest(self, out: Path) -> None:
        for file in sorted(self.path.iterdir()):
            if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name != "config.json":
                shutil.copyfile(file, out / file.name)

    def _write_index(self, out: Path, added: Mapping[str, Tensor]) -> None:
        if self.index is None:
            return
        index = read_json(self.path / self.index)
        for name in added:
            index["weight_map"][name] = self.files[-1].path.name
        metadata = index.setdefault("metadata", {})
        if "total_size" in metadata:
            metadata["total_size"] += sum(tensor.nbytes for tensor in added.values())
        (out / self.index).write_text(json.dumps(index, indent=2) + "\n")

    def _write_config(self, out: Path, edits: Mapping[str, Edit], untied: bool) -> None:
        settings = dict(self.settings)
        if untied:
            settings["tie_word_embeddings"] = False
            for part in settings.values():
                if isinstance(part, dict) and "tie_word_embeddings" in part:
                    part["tie_word_embeddings"] = False
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
