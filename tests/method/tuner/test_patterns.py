"""Regular expressions that a config brings along."""

import json

import pytest
from peft import PeftModel, get_peft_model
from peft.utils.other import get_pattern_key

from bone_peft import BoneConfig, BoneError, inspect_adapter
from bone_peft.method.tuner import patterns
from bone_peft.method.tuner.patterns import check_patterns, pattern_key

from ...models import config_for, llama

FOR_EVER = r"([a-z_.0-9]+)+X"


@pytest.fixture
def brief(monkeypatch):
    """A shorter limit, so that the tests do not wait."""
    monkeypatch.setattr(patterns, "SECONDS", 0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": FOR_EVER},
        {"exclude_modules": FOR_EVER},
        {"rank_pattern": {FOR_EVER: 4}},
        {"modules_to_save": [FOR_EVER]},
        {"layers_pattern": [FOR_EVER], "layers_to_transform": [0]},
        {"target_modules": r"(?i)" + r"[\x00-\U0010ffff]" * 3000},
    ],
)
def test_matching_that_does_not_end(brief, options):
    model = llama()
    before = set(model.state_dict())
    with pytest.raises(BoneError, match=f"in {next(iter(options))}, and matching it"):
        get_peft_model(model, BoneConfig(**{"target_modules": ["q_proj"], **options}))
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern"])
@pytest.mark.parametrize("pattern", ["(", "*a", "a{2,1}", "(" * 50_000, "[z-a]", r"(?P<a>x)(?P<a>y)"])
def test_what_is_no_expression(field, pattern):
    options = {"target_modules": ["q_proj"], field: {pattern: 4} if field == "rank_pattern" else pattern}
    if field == "layers_pattern":
        options["layers_to_transform"] = [0]
    with pytest.raises(BoneError, match="no regular expression") as caught:
        get_peft_model(llama(), BoneConfig(**options))
    assert "\n" not in str(caught.value) and field in str(caught.value)


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (r".*\.(q|v)_proj", 4),
        (r"(?i).*Q_PROJ", 2),
        (r"(\w+\.)*up_proj", 2),
        (r".*layers\.1\..*(q|k)_proj$", 2),
    ],
)
def test_expressions_that_end_are_taken(target, layers):
    model = get_peft_model(llama(), BoneConfig(r=8, target_modules=target))
    assert len(model.base_model.targeted_module_names) == layers


@pytest.mark.parametrize(
    ("field", "value"),
    [("target_modules", FOR_EVER), ("rank_pattern", {FOR_EVER: 8}), ("layers_pattern", ["("]), ("alpha_pattern", "(")],
)
def test_in_a_file(brief, tmp_path, field, value):
    get_peft_model(llama(), config_for("bone", target_modules=["q_proj"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value, "layers_to_transform": None}))
    with pytest.raises(BoneError, match=field) as caught:
        inspect_adapter(tmp_path)
    assert str(file) in str(caught.value)
    if field != "alpha_pattern":  # Bone has none, and takes it for nothing
        with pytest.raises(BoneError, match=field):
            PeftModel.from_pretrained(llama(), str(tmp_path))


def test_too_many_of_them():
    with pytest.raises(BoneError, match="more or longer"):
        check_patterns({"rank_pattern": dict.fromkeys(map(str, range(10_001)), 1)}, [])


def test_the_first_that_matches_as_peft_finds_it():
    keys = ["nothing", "q_proj", r".*\.0\..*", "layers.1.self_attn.k_proj", "k.proj"]
    for name in ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up", "a.k_proj", "layers.1.self_attn.k_proj"]:
        assert pattern_key(keys, name) == get_pattern_key(keys, name)
