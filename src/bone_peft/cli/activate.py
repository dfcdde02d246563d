"""``bone activate`` and ``bone deactivate``: Bone in every program of an environment."""

import sysconfig
from pathlib import Path

import typer

_HELP = """Have [bold]from peft import BoneConfig[/] work in every program of this environment, without an import line.

[bold]Examples[/]

  bone activate

  bone activate --status

  bone deactivate

Writes one file, bone_peft.pth, beside the installed packages. Python reads it when it starts; once a program has
imported PEFT, Bone is made a method of it. Programs that never import PEFT are left as they are.
"""
# One line, as Python runs such files line by line. Without bone-peft it does nothing.
_LINE = r'import sys; exec("try:\n    import bone_peft_hook; bone_peft_hook.install()\nexcept ImportError: pass")' "\n"


def add_to(app: typer.Typer) -> None:
    app.command(name="activate", help=_HELP)(activate)
    app.command(name="deactivate", help="Take back what [bold]bone activate[/] did to this environment.")(deactivate)


def activate(
    *, status: bool = typer.Option(False, "--status", help="Only say whether Bone is active in this environment.")
) -> None:
    from bone_peft.io.whole import whole_file

    path = _path()
    if status:
        typer.echo(f"Bone is active in this environment, by {path}." if path.exists() else f"Not active: no {path}.")
        return
    with whole_file(path) as staging:
        staging.write_text(_LINE, encoding="utf-8")
    typer.echo(f"Wrote {path}: programs of this environment find Bone in PEFT. bone deactivate takes it back.")


def deactivate() -> None:
    path = _path()
    if path.exists():
        path.unlink()
        typer.echo(f"Removed {path}.")
    else:
        typer.echo(f"Bone was not active in this environment: no {path}.")


def _path() -> Path:
    return Path(sysconfig.get_path("purelib")) / "bone_peft.pth"
