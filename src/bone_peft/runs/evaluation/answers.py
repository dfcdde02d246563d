"""Answers: greedy in batches for scoring, streamed for people."""

from collections.abc import Callable
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.files.bases import ONE_ANSWER, check_chat_template
from bone_peft.io.names import printable

from .reach import check_length, check_reach, positions_of
from .tokens import encode_prompt, encode_prompts, expected_text, prompt_text


def answer_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    on_token: Callable[[], None] = lambda: None,
) -> list[str]:
    """Greedy answers to one batch of tokenized prompts; stripped text, empty where none fits."""
    answers = greedy_tokens(model, tokenizer, prompts, max_new_tokens, on_token)
    return [answer.strip() for answer in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def greedy_tokens(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    on_token: Callable[[], None] = lambda: None,
    is_enough: Callable[[int, list[int]], bool] = lambda index, tokens: False,
) -> list[list[int]]:
    """Greedy answers to one batch of tokenized prompts, padded on the left: their tokens, none where none fits.

    ``is_enough`` is called with the index of a prompt and its answer as it is so far: whether no more of it is wanted.
    """
    import torch

    # Documents start with nothing where a tokenizer has no end token; padding is as good a start as any.
    prompts = [prompt or [tokenizer.pad_token_id or 0] for prompt in prompts]
    width = max(map(len, prompts))
    positions = positions_of(model)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - width)
        if max_new_tokens < 1:
            return [[] for _ in prompts]
    done = [False] * len(prompts)

    def is_done(ids: Any, scores: Any, **kwargs: Any) -> Any:
        on_token()
        for index, tokens in enumerate(ids[:, width:].tolist()):
            done[index] = done[index] or is_enough(index, tokens)
        return torch.tensor(done, device=ids.device)

    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        out = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            **ONE_ANSWER,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=[is_done],
        )
    answers: list[list[int]] = out[:, width:].tolist()
    return answers


def answer_samples(
    model: Any,
    tokenizer: Any,
    rows: Any,
    *,
    count: int = 6,
    max_new_tokens: int = 64,
    on_token: Callable[[], None] = lambda: None,
) -> list[dict[str, str]]:
    """Answers to the first ``count`` rows, beside what was expected; ``on_token`` is called for each token of them."""
    rows = rows.select(range(min(count, len(rows))))
    training = model.training
    model.eval()
    prompts = encode_prompts(rows, tokenizer)
    answers = answer_batch(model, tokenizer, prompts, max_new_tokens, on_token)
    model.train(training)
    return [
        {"prompt": prompt_text(row["prompt"]), "expected": expected_text(row["completion"]), "answer": answer}
        for row, answer in zip(rows, answers, strict=True)
    ]


def stream_answer(
    model: Any,
    tokenizer: Any,
    prompt: str | list[dict[str, Any]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    chat: bool | None = None,
    seed: int | None = None,
    echo: bool = True,
) -> str:
    """Answer one prompt, printing the text as it comes.

    Args:
        prompt: plain text; it becomes a user message if ``chat``, or if that is None and the tokenizer has a
            chat template. Or the messages of a chat so far.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 for the most likely token each time, else the sampling temperature.
        seed: of the sampling.
        echo: print the answer to standard output while it is made.

    Returns:
        The whole answer.
    """
    import torch
    from transformers import set_seed

    as_chat = not isinstance(prompt, str) or (bool(tokenizer.chat_template) if chat is None else chat)
    if as_chat:
        if not tokenizer.chat_template:
            raise BoneError("chat is set, but this base's tokenizer has no chat template; leave chat out.")
        check_chat_template(tokenizer)
    said = [prompt] if isinstance(prompt, str) else [message["content"] or "" for message in prompt]
    check_length(model, ["".join(said)])
    if isinstance(prompt, str) and as_chat:
        prompt = [{"role": "user", "content": prompt}]
    ids = encode_prompt(prompt, tokenizer)
    if not ids:
        raise BoneError("The prompt is no token at all for this base; write more than that.")
    check_reach(model, max(ids), len(ids) + 1)
    if (positions := positions_of(model)) is not None:
        max_new_tokens = min(max_new_tokens, positions - len(ids))
    if seed is not None:
        set_seed(seed)
    inputs = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            streamer=_streamer(tokenizer) if echo else None,
            **sampling,
            **ONE_ANSWER,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def _streamer(tokenizer: Any) -> Any:
    """Prints what a model says. Its words may be anybody's, so none of them moves the cursor."""
    from transformers import TextStreamer

    class Printable(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    return Printable(tokenizer, skip_prompt=True, skip_special_tokens=True)
