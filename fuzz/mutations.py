"""Ways to damage a file. Each takes bytes and a random generator, and gives bytes."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

_ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**70, 1.5, -0.0, 1e308, "", "x", "../../etc", "F32", "I64", [], {}, [0],
    [[]], {"a": 1}, [2**40, 2**40], ["q_proj", 3], "(" * 50, "\u0000", "é" * 9, float("nan"), float("inf"),
]  # fmt: skip
_EVIL_NAMES = [
    "../../../tmp/x", "base_model.model..q", "base_model.model.__class__.bone_block", "/etc/passwd", "", ".",
    "base_model.model.a/b.bone_block", "base_model.model." + "a." * 4000 + "bone_block", "a\nb",
    "base_model.model.\u202e.x",
    "base_model.model.model.layers.0.self_attn.q_proj.__dict__",
    "base_model.model.model.layers.99.self_attn.q_proj.bone_block",
]  # fmt: skip


class _Evil:
    """Writes a file where it is unpickled."""

    path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def flip_start(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 4])):
        changed[rng.randrange(min(len(changed), 400))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed)


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 1000]))


def repeat_part(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:b] + data[a:b] + data[b:]


def cut_part(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:a] + data[b:]


def header_length(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1, len(data), len(data) - 8])) + data[8:]


def header_field(data: bytes, rng: random.Random) -> bytes:
    """One value of a safetensors header becomes something else."""
    header, rest = _header(data)
    name = rng.choice(list(header))
    entry = header[name]
    action = rng.randrange(6)
    if action == 0 and isinstance(entry, dict) and "shape" in entry:
        field = rng.choice(["dtype", "shape", "data_offsets"])
        entry[field] = rng.choice([*_ODD, [4, 8], [0, 2**60], [-4, 4], "F16", "BF16", "F64"])
    elif action == 1:
        header[rng.choice(_EVIL_NAMES)] = header.pop(name)
    elif action == 2:
        header[name] = rng.choice(_ODD)
    elif action == 3:
        del header[name]
    elif action == 4 and isinstance(entry, dict) and "data_offsets" in entry:
        entry["data_offsets"] = [offset + rng.choice([-8, -1, 1, 8, 2**50]) for offset in entry["data_offsets"]]
    elif isinstance(entry, dict) and "shape" in entry:
        entry["shape"] = entry["shape"][::-1] if rng.random() < 0.5 else [*entry["shape"], 1]
    return _with_header(header, rest)


def header_double(data: bytes, rng: random.Random) -> bytes:
    """The same name twice."""
    header, rest = _header(data)
    name = rng.choice(list(header))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}" + "}"
    return struct.pack("<Q", len(text)) + text.encode() + rest


def header_deep(data: bytes, rng: random.Random) -> bytes:
    text = ("[" if rng.random() < 0.5 else '{"a":') * rng.choice([10, 2000, 200000])
    return struct.pack("<Q", len(text)) + text.encode() + data[8:]


def not_finite(data: bytes, rng: random.Random) -> bytes:
    """NaN or infinity among the last bytes, where tensors are."""
    changed = bytearray(data)
    at = len(changed) - 4 * rng.randrange(1, 9)
    changed[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), float("-inf")]))
    return bytes(changed)


def json_value(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON object becomes something else."""
    found = json.loads(data)
    name = rng.choice(list(found))
    if rng.random() < 0.15:
        del found[name]
    else:
        found[name] = rng.choice([*_ODD, "BONE", "MISS", "LORA", "bat", "mini", 3, 8, 64])
    return json.dumps(found).encode()


def json_double(data: bytes, rng: random.Random) -> bytes:
    found = json.loads(data)
    name = rng.choice(list(found))
    return json.dumps(found)[:-1].encode() + f", {json.dumps(name)}: 1}}".encode()


def json_deep(data: bytes, rng: random.Random) -> bytes:
    return b'{"peft_type":' * rng.choice([10, 5000]) + data


def zip_entry(data: bytes, rng: random.Random) -> bytes:
    """A zip whose entries are lost, doubled, compressed, emptied or swollen."""
    entries = _entries(data)
    index = rng.randrange(len(entries))
    name, content = entries[index]
    action = rng.randrange(5)
    if action == 0:
        del entries[index]
    elif action == 1:
        entries.append((name, content))
    elif action == 2:
        entries[index] = (name, content[: rng.randrange(len(content) + 1)])
    elif action == 3:
        entries[index] = (rng.choice(_EVIL_NAMES) or "x", content)
    bomb = action == 4
    if bomb:
        entries[index] = (name, content + bytes(2**24))
    return _zip(entries, zipfile.ZIP_DEFLATED if bomb or rng.random() < 0.1 else zipfile.ZIP_STORED)


def zip_pickle(data: bytes, rng: random.Random) -> bytes:
    """The pickle inside is damaged."""
    entries = _entries(data)
    damage = rng.choice([truncate, flip, cut_part, repeat_part])
    return _zip([(name, damage(c, rng) if name.endswith("data.pkl") else c) for name, c in entries], zipfile.ZIP_STORED)


def evil_pickle(path: str) -> Mutation:
    """A pickle that would make a file at ``path``, with and without a zip around it."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        evil = _Evil()
        evil.path = path
        protocol = rng.choice([0, 2, 4])
        content: Any = rng.choice([evil, {"a.disha": evil}, [evil]])
        pickled = pickle.dumps(content, protocol=protocol)
        if rng.random() < 0.3:
            return pickled
        return _zip([(n, pickled if n.endswith("data.pkl") else c) for n, c in _entries(data)], zipfile.ZIP_STORED)

    return mutate


def greedy_pickle(data: bytes, rng: random.Random) -> bytes:
    """A pickle that asks for memory, by names that torch allows."""
    size = rng.choice([2**33, 2**40])
    names = [b"builtins\nbytearray", b"torch\nTensor", b"torch._utils\n_rebuild_sparse_tensor"]
    called = b"c" + rng.choice(names) + b"\n"
    pickled = (
        b"\x80\x02}q\x00X\x07\x00\x00\x00a.dishaq\x01" + called + b"\x8a\x08" + struct.pack("<q", size) + b"\x85Rs."
    )
    return _zip([(n, pickled if n.endswith("data.pkl") else c) for n, c in _entries(data)], zipfile.ZIP_STORED)


FOR_EVER = "([a-z_.0-9]+)+X"
_DRAWING = "\x1b[2J\x1b]0;x\x07\r\x9b31m\u202e[/] [bold red]x[/red]"
_TEXTS = [FOR_EVER, "(", "(?i)(", "all-linear", _DRAWING, "[/]", "x" * 100_000, "\ud800"]
_TEMPLATES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}", "{% if",
    "{{ messages.a.b }}", "{{ raise_exception('no') }}", "{{" + "(" * 10_000, _DRAWING, "{{ 9**9**9 }}",
]  # fmt: skip


def drawing_values(data: bytes, rng: random.Random) -> bytes:
    """Escape sequences, markup and patterns in place of one value of a JSON object."""
    found = json.loads(data)
    name = rng.choice(
        [*found, "target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "modules_to_save"]
    )
    text = rng.choice(_TEXTS)
    found[name] = rng.choice([text, [text], {text: 8}])
    return json.dumps(found).encode()


def absurd_number(data: bytes, rng: random.Random) -> bytes:
    """One number of a config becomes one that nothing has."""
    found = json.loads(data)
    numbers = [name for name, value in found.items() if isinstance(value, int) and not isinstance(value, bool)]
    found[rng.choice(numbers)] = rng.choice(
        [2**31, 2**63, 2**70, 2**20, 5000, 0, -1, -(2**31), 1e300, "1", None, [1] * 9]
    )
    if rng.random() < 0.2:
        found["model_type"] = rng.choice(["jamba", "bamba", "gpt2", "gemma3_text", "t5", "mixtral", "vit", "rwkv", ""])
    return json.dumps(found).encode()


def own_code(path: str) -> Mutation:
    """A config that asks for code which makes a file at ``path``."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        found = json.loads(data)
        auto = rng.choice(["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModel"])
        code = Path(path).parent / "given" / "code.py"
        code.write_text(f"open({path!r}, 'w')\nclass Own: pass\n")
        found["auto_map"] = rng.choice([{auto: "code.Own"}, {auto: ["code.Own", "code.Own"]}, "code.Own", [auto]])
        found["model_type"] = rng.choice(["llama", "own", "vit"])
        return json.dumps(found).encode()

    return mutate


def chat_template(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(json.loads(data) | {"chat_template": rng.choice(_TEMPLATES)}).encode()


def very_deep(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"[", b'{"a":', b'{"a":[']) * rng.choice([900, 100_000])


_ROWS = [
    b"[" * 100_000, b'{"query": "' + b"x" * 10**7 + b'", "response": "y"}', b"\xff\xfe", b"{}", b"null", b"\x00",
    b'{"query": 1, "response": 2}', b'{"query": null, "response": []}', b'{"query": "", "response": ""}',
    b'{"query": "\\u001b[2J[/]", "response": "\\ud800"}', b'{"query": NaN, "response": 1e999}', b'{"query": "a"',
    b'{"query": {"a": {}}, "response": "x"}', b'{"messages": [{"role": "user"}]}',
]  # fmt: skip


def row(data: bytes, rng: random.Random) -> bytes:
    """One line of rows becomes another."""
    lines = data.splitlines()
    lines[rng.randrange(len(lines))] = rng.choice(_ROWS)
    return b"\n".join(lines)


def laughs(data: bytes, rng: random.Random) -> bytes:
    """Aliases in YAML that stand for ten times the line before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([*lines, f"{rng.choice(['base', 'fields', 'adapter', 'seed'])}: *a9\n"]).encode() + data


_VALUES = [
    "2001-99-99", "9" * 5000, "[1, 2", "!!python/name:os.system", "{[1]: 2}", "&a [*a]", "~", ".nan", "1:1:1", "-1",
    "[]", "{}", "'[/]'", '"\\e[2J"', "[" * 1000, FOR_EVER, "1e999", "true",
]  # fmt: skip


def yaml_value(data: bytes, rng: random.Random) -> bytes:
    """One line of a recipe says something else."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(_VALUES)
    return "\n".join(lines).encode()


BYTES: list[Mutation] = [truncate, flip, flip_start, append, repeat_part, cut_part]
SAFETENSORS: list[Mutation] = [*BYTES, header_length, *[header_field] * 3, header_double, header_deep,
                               not_finite]  # fmt: skip
JSON: list[Mutation] = [*BYTES, json_value, json_value, json_value, json_double, json_deep, drawing_values, very_deep]
CONFIG: list[Mutation] = [*JSON, *[absurd_number] * 4]
TOKENIZER: list[Mutation] = [*JSON, chat_template, chat_template]
ROWS: list[Mutation] = [*BYTES, *[row] * 6]
YAML: list[Mutation] = [*BYTES, laughs, *[yaml_value] * 4]
TORCH: list[Mutation] = [*BYTES, zip_entry, zip_entry, zip_pickle, zip_pickle, greedy_pickle]


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: dict[str, Any], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _zip(entries: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()
