"""YAML of strangers."""

import time

import pytest

from bone_peft import BoneError
from bone_peft.io.yaml_file import MAX_YAML_BYTES, parse_yaml, read_yaml
from bone_peft.runs.data.options import split
from bone_peft.runs.training.recipe import Recipe, parse_value

# Each line stands for ten of the line before.
LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
MERGED = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
)
HOSTILE = {
    "aliases": LAUGHS,
    "merged aliases": MERGED,
    "aliases as a base": LAUGHS + "\nbase: *a11\n",
    "itself": "base: &a [*a]",
    "deep": "[" * 100_000,
    "deep and closed": "[" * 400 + "]" * 400,
    "deep keys": "? " * 100_000,
    "indented": "".join(" " * i + "a:\n" for i in range(1000)),
    "many digits": "seed: " + "9" * 5000,
    "of base 60": "seed: 1" + ":1" * 100_000,
    "no date": "base: 2001-99-99",
    "no hour": "base: 2001-01-01 99:99:99",
    "a list as a key": "{[1]: 2}",
    "not ended": "{a: ",
    "tags": "!!python/object/apply:os.system [echo]",
    "many": "a: [" + "1," * 200_000 + "]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_recipes(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(BoneError) as caught:
        Recipe.load(file)
    assert time.process_time() - start < 8
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises(BoneError):
        parse_value(text)


def test_bytes_that_are_none(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"base: \xff")
    with pytest.raises(BoneError, match="not YAML"):
        read_yaml(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(BoneError, match="longer than"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(BoneError, match="cannot be read"):
        read_yaml(tmp_path)


def test_honest_yaml():
    assert parse_yaml("lr: 2e-5\nn: 1e3\nt: 1.5e+2", "here") == {"lr": 2e-5, "n": 1000.0, "t": 150.0}
    text = "common: &c {a: 1, b: [1, 2]}\none: {<<: *c, a: 2}\ntwo: *c"
    assert parse_yaml(text, "here")["one"] == {"a": 2, "b": [1, 2]}
    assert split("gym:x?n=2&b=true&s=1e-3") == ("gym:x", {"n": 2, "b": True, "s": 1e-3})
    with pytest.raises(BoneError, match="n in gym:x is not YAML"):
        split("gym:x?n=2001-99-99")
