"""Blocks of ``math`` as MathML, which browsers draw without a script."""

from typing import Any

from latex2mathml.converter import convert


def _formula(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def on_config(config: Any) -> Any:
    fence = {"name": "math", "class": "formula", "format": _formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config
