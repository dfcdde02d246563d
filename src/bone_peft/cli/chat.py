"""``bone chat``."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from importlib import import_module
from typing import Any

import typer

from bone_peft.errors import BoneError

from .console import TRUST, console

_HELP = """A conversation in the terminal: answers are streamed, and what was said before is known.

[bold]Examples[/]

  bone chat --adapter runs/demo                  [dim]# a run; the base that it names[/]

  bone chat --base HuggingFaceTB/SmolLM2-135M-Instruct --system "Answer in one word."

[bold]In it[/]: /base answers without the adapter from then on, /adapter with it; /again has the last question answered
once more, by whichever is on; /clear forgets what was said; /quit, or Ctrl-D, ends. Ctrl-C ends an answer.
"""
_WORDS = "/base, /adapter, /again, /clear, /quit"


def add_to(app: typer.Typer) -> None:
    app.command(name="chat", help=_HELP)(chat)


def chat(
    *,
    base: str = typer.Option(
        None, help="Model folder, hub name, .gguf file, or package:NAME; default: the one that the adapter names."
    ),
    adapter: str = typer.Option(None, help="Adapter folder, or that of a run, put on top of the base."),
    system: str = typer.Option(None, help="What the model is told before all else."),
    max_new_tokens: int = typer.Option(512, min=1, help="Longest answer."),
    temperature: float = typer.Option(0.0, min=0.0, max=1000.0, help="0 takes the most likely token each time."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    bf16: bool = typer.Option(True, "--bf16/--no-bf16", help="Weights in bf16 or fp32."),
) -> None:
    if base is None and adapter is None:
        raise BoneError("There is nobody to talk to; give --base, --adapter, or both.")

    from bone_peft.costs.measure import best_device
    from bone_peft.files.adapters import base_of
    from bone_peft.files.bases import load_adapter, load_base, take_template
    from bone_peft.runs.as_trained import as_trained

    model, tokenizer = load_base(
        base or base_of(adapter),
        dtype="bfloat16" if bf16 else "float32",
        device=best_device(),
        trust_remote_code=trust_remote_code,
    )
    take_template(tokenizer, adapter)
    if not tokenizer.chat_template:
        raise BoneError("This base's tokenizer has no chat template, so it knows no conversations: use bone generate.")
    if adapter is not None:
        model = load_adapter(model, adapter)
        if as_trained(adapter).chat is False:
            console().print("It was trained on plain text, not on chats: bone generate asks it as it was trained.")
    talk = Talk(model, tokenizer, adapter is not None, system, max_new_tokens, temperature)
    console().print(f"Say something, or one of {_WORDS}.", highlight=False)
    with suppress(ImportError):
        import_module("readline")  # input() then edits the line, and earlier ones come back
    try:
        while talk.take(input(f"[{talk.name}] > ")):
            pass
    except EOFError:
        typer.echo()


class Talk:
    """A conversation with one model.

    Args:
        has_adapter: whether ``model`` has one, which can be switched off and on.
        system: a message before all others.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        has_adapter: bool,
        system: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._has_adapter = self._adapted = has_adapter
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._told: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        self.messages: list[dict[str, str]] = []

    @property
    def name(self) -> str:
        """Who answers."""
        return "adapter" if self._adapted else "base"

    def take(self, line: str) -> bool:
        """Answer a line, or do what it says. False if the conversation is over."""
        line = line.strip()
        if line == "/quit":
            return False
        if line in ("/base", "/adapter"):
            self._switch(line == "/adapter")
        elif line == "/clear":
            self.messages = []
        elif line == "/again":
            self._again()
        elif line.startswith("/") and line.count("/") == 1 and " " not in line:
            typer.echo(f"There is no {line} here; there are {_WORDS}.")
        elif line:
            self._answer(line)
        return True

    def _switch(self, adapted: bool) -> None:
        if self._has_adapter:
            self._adapted = adapted
        elif adapted:
            typer.echo("There is no adapter; start with --adapter.")

    def _again(self) -> None:
        questions = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not questions:
            typer.echo("Nothing was asked yet.")
            return
        question = self.messages[questions[-1]]["content"]
        self.messages = self.messages[: questions[-1]]
        self._answer(question)

    def _answer(self, question: str) -> None:
        from bone_peft.runs.evaluation import stream_answer

        try:
            question.encode()
        except UnicodeError:
            typer.echo("That holds bytes that are not UTF-8; write it as UTF-8.")
            return
        asked = [*self.messages, {"role": "user", "content": question}]
        plain = self._has_adapter and not self._adapted
        try:
            with self.model.disable_adapter() if plain else nullcontext():
                answer = stream_answer(self.model, self.tokenizer, [*self._system, *asked], **self._told)
        except BoneError as error:  # too long by now, or not what the template takes
            typer.echo(f"{error} (/clear forgets what was said.)")
        except KeyboardInterrupt:
            typer.echo(" (stopped; the question is forgotten)")
        else:
            self.messages = [*asked, {"role": "assistant", "content": answer}]
