"""The results of merging and converting, and how those of version 0.1 are known, which have no manifest."""

from __future__ import annotations

import re
from pathlib import Path

from bone_peft.io.ours import FileOf, FolderOf

TOKENIZER = r"[\w.-]*(token|vocab|merges|spm|spiece|sentencepiece|bpe|template|processor)[\w.-]*"
ADAPTER = FolderOf(
    "adapter_config.json",
    re.compile(rf"adapter_config\.json|adapter_model\.safetensors|README\.md|{TOKENIZER}"),
)
# torch.save puts the names of the tensors first.
ADAPTER_FILE = FileOf(re.compile(rb"\APK\x03\x04[\s\S]{0,1000000}?\.disha"))
MERGED_FILE = FileOf(re.compile(rb"\APK\x03\x04[\s\S]{0,1000000}?emb\.weight"))
_MERGED = (
    r"((generation_)?config|[\w.-]+\.index)\.json|(model|pytorch_model)[\w.-]*\.(safetensors|bin)"
    rf"|README\.md|LICENSE[\w.-]*|NOTICE|\.gitattributes|{TOKENIZER}"
)


def merged(base: str | Path | None = None) -> FolderOf:
    """A merged model; merging copies the small files of its base as well, whatever they are called."""
    copied = [path.name for path in Path(base).iterdir()] if base is not None and Path(base).is_dir() else []
    return FolderOf("config.json", re.compile("|".join((_MERGED, *map(re.escape, copied)))))
