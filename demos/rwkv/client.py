"""A merged ``.pth`` file in the ``rwkv`` package: a client that shares no code with this project."""

import os
from pathlib import Path

import torch


def open_client(path: Path, vocabulary: Path, version: str):
    """The model in float32 on the CPU, and its tokenizer. One process opens models of one ``version`` only."""
    os.environ["RWKV_V7_ON"] = "1" if version == "x070" else "0"
    from rwkv.model import RWKV
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    return RWKV(model=str(path.with_suffix("")), strategy="cpu fp32"), TRIE_TOKENIZER(str(vocabulary))


def logits(client, ids: list[int]) -> torch.Tensor:
    """``(tokens, vocabulary)`` for one row of token ids."""
    return client.forward(list(ids), None, full_output=True)[0]


def completion_loss(client, rows: list[tuple[list[int], list[int]]]) -> float:
    """Mean negative log-likelihood (nats) of the tokens of the completions; rows of prompt ids and completion ids."""
    total, tokens = 0.0, 0
    for prompt, completion in rows:
        predicted = logits(client, prompt + completion)[len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(predicted, torch.tensor(completion), reduction="sum"))
        tokens += len(completion)
    return total / tokens


def generate(client, tokenizer, prompt: str, max_new_tokens: int = 16) -> str:
    """The greedy answer, up to the end of the document."""
    ids: list[int] = []
    predicted, state = client.forward(tokenizer.encode(prompt), None)
    while len(ids) < max_new_tokens and (token := int(predicted.argmax())) != 0:
        ids.append(token)
        predicted, state = client.forward([token], state)
    return tokenizer.decodeBytes(ids).decode(errors="replace").strip()
