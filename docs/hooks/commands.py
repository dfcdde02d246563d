"""A page for each command of ``bone``, from the words of its ``--help``."""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from rich.text import Text

from bone_peft.cli.main import app

FOLDER = "commands"


def on_files(files: Files, config: Any) -> Files:
    bone = typer.main.get_command(app)
    commands = {name: command for name, command in bone.commands.items() if not command.hidden}
    rows = [f"| [`bone {name}`]({name}.md) | {_first_line(command)} |" for name, command in commands.items()]
    overview = ["# Commands", _help(bone), "\n".join(["| command | |", "| --- | --- |", *rows]), *_options(bone, "##")]
    pages = {"index": overview, **{name: _page(command, f"bone {name}", "#") for name, command in commands.items()}}
    for name, parts in pages.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content="\n\n".join(parts) + "\n"))
    return files


def _page(command: Any, name: str, level: str) -> list[str]:
    """A command with its options, or a group with its commands, each under a heading of its own."""
    parts = [f"{level} {name}", _help(command)]
    if hasattr(command, "commands"):
        for inner, below in command.commands.items():
            parts += _page(below, f"{name} {inner}", level + "#")
        return parts
    usage = " ".join([name, *command.collect_usage_pieces(typer.Context(command))])
    return [*parts, f"```text\n{usage}\n```", *_options(command, level + "#")]


def _options(command: Any, level: str) -> list[str]:
    """A table for each panel of ``--help``."""
    panels: dict[str, list[str]] = {}
    for param in command.params:
        record = param.get_help_record(typer.Context(command))
        if record is None or "completion" in param.name:
            continue
        panel = param.rich_help_panel or ("Arguments" if param.param_type_name == "argument" else "Options")
        says = param.help or ""
        more = record[1].removeprefix(says).strip().removeprefix("[").removesuffix("]")
        row = f"| `{record[0]}` | {_prose(says)}{' (' + _escaped(more) + ')' if more else ''} |"
        panels.setdefault(panel, []).append(row)
    return [f"{level} {panel}\n\n| | |\n| --- | --- |\n" + "\n".join(rows) for panel, rows in panels.items()]


def _first_line(command: Any) -> str:
    return _prose((command.help or "").strip().splitlines()[0])


def _help(command: Any) -> str:
    """Paragraphs, and what is indented as a block of shell."""
    parts: list[tuple[bool, str]] = []
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip("\n").rstrip()):
        is_code = paragraph.startswith("  ")
        if is_code and parts and parts[-1][0]:
            parts[-1] = True, f"{parts[-1][1]}\n{_plain(paragraph)}"
        else:
            parts.append((is_code, _plain(paragraph) if is_code else _prose(paragraph)))
    return "\n\n".join(f"```bash\n{text}\n```" if is_code else text for is_code, text in parts)


def _plain(markup: str) -> str:
    lines = Text.from_markup(markup).plain.splitlines()
    return "\n".join(line.removeprefix("  ") for line in lines)


def _prose(markup: str) -> str:
    """Rich's markup as Markdown's."""
    bold = re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", "\1\\1\2", markup, flags=re.DOTALL)
    pieces = re.split(r"(`[^`]*`)", Text.from_markup(bold).plain)
    text = "".join(piece if piece.startswith("`") else _escaped(piece) for piece in pieces)
    return text.replace("\1", "**").replace("\2", "**")


def _escaped(text: str) -> str:
    return re.sub(r"([*_<>|\[\]#])", r"\\\1", text)
