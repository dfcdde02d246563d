"""Bases in Transformers' own format: a folder, or a name on the hub."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.json_file import read_json

from ..checkpoints.model_folder import check_loadable
from ..remote_code import not_run

_MOST_TOKENS = 2**24


def accepts(base: str) -> bool:
    return True


def load(base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    with not_run(base):
        model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=trust_remote_code, **kwargs)
    return model, tokenizer


def load_tokenizer(base: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    folder = Path(base)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = " (it holds an adapter: name the base, and give it as --adapter)"
        raise BoneError(
            f"{base!r} is not a model folder, it has no config.json"
            f"{hint if (folder / 'adapter_config.json').is_file() else ''}."
        )
    if not folder.exists() and (folder.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1):
        raise BoneError(f"There is no base model at {base!r}; give a model folder, a .gguf file or a hub name.")
    if folder.is_dir() and not trust_remote_code:
        check_loadable(folder)
    if folder.is_dir():
        _check_counts(folder / "tokenizer_config.json")
    try:
        with not_run(base):
            return AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    except BoneError:
        raise
    except Exception as error:
        if folder.is_dir() and not list(folder.glob("*token*")):
            raise BoneError(
                f"{base!r} holds no tokenizer: save one there, with the tokenizer's save_pretrained()."
            ) from error
        raise


def _check_counts(file: Path) -> None:
    """Tokenizers make as many tokens as some settings say."""
    for name, value in read_json(file).items() if file.is_file() else ():
        if isinstance(value, int) and value > _MOST_TOKENS and "length" not in name:
            raise BoneError(f"{file} asks for {name} {value:,}: no tokenizer is as large; take another copy.")
