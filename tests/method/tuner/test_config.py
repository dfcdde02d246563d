"""What a user can ask for, and the sentence that answers a mistake."""

import pytest

from bone_peft import BoneConfig, BoneError


@pytest.mark.parametrize(
    ("options", "variant", "size"),
    [
        ({}, "bone", 64),
        ({"r": 8, "init_weights": False}, "bone", 8),
        ({"init_weights": "bat"}, "bat", 64),
        ({"init_weights": "bat", "share": "output"}, "bat", 64),
        ({"init_weights": "bat", "share": "input", "r": 32}, "bat-input", 32),
        ({"bottleneck_size": 32, "bottleneck_alpha": 2.0, "bottleneck_dropout": 0.1}, "bottleneck", 64),
        ({"bottleneck_size": 3, "bottleneck_alpha": 0.5}, "bottleneck", 2),
        ({"bottleneck_size": 128}, "bottleneck", 128),
    ],
)
def test_options_select_the_variant(options, variant, size):
    config = BoneConfig(**options)
    assert config.variant.name == variant
    assert config.layer_size() == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"^r has to be a whole number of at least 1, and it is 0\.$"),
        ({"r": -8}, r"it is -8\.$"),
        ({"r": 2.5}, r"it is 2\.5\.$"),
        ({"r": True}, r"it is True\.$"),
        ({"bottleneck_size": 0}, "^bottleneck_size has to be a whole number of at least 1"),
        ({"bottleneck_size": -1}, "^bottleneck_size has to be"),
        ({"bottleneck_size": 8, "bottleneck_alpha": 0.0}, "^bottleneck_alpha has to be above 0"),
        ({"r": 8, "bottleneck_size": 8}, "^r=8 belongs to bat, bat-input, bone, but .* select bottleneck"),
        ({"bone_dropout": 0.1, "bottleneck_size": 8}, "^bone_dropout=0.1 belongs to"),
        ({"bottleneck_alpha": 2.0}, "^bottleneck_alpha=2.0 belongs to bottleneck"),
        ({"bottleneck_dropout": 0.1, "r": 8}, "^bottleneck_dropout=0.1 belongs to bottleneck"),
        ({"init_weights": "bat", "bottleneck_size": 8}, "ask for two variants at once"),
        ({"share": "input"}, "^share='input' belongs to bat"),
        ({"init_weights": "bta"}, "^init_weights has to be one of True, False, 'bat', and it is 'bta'"),
        ({"init_weights": 1}, "^init_weights has to be one of"),
        ({"share": "both", "init_weights": "bat"}, "^share has to be one of"),
        ({"bias": "lora_only"}, "^bias has to be one of 'none', 'all', 'bone_only'"),
        ({"bone_dropout": 1.0}, "^bone_dropout has to be at least 0 and below 1"),
        ({"rank_pattern": {"q_proj": 0}}, r"^rank_pattern\['q_proj'\] has to be"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "^layers_to_transform cannot be used"),
        ({"target_modules": ".*q", "layers_pattern": "h"}, "^layers_pattern cannot be used"),
    ],
)
def test_mistakes_get_one_sentence(options, message):
    with pytest.raises(BoneError, match=message) as error:
        BoneConfig(**options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_config_survives_saving(tmp_path):
    for options in (
        {"r": 8, "rank_pattern": {"q_proj": 4}, "bone_dropout": 0.1},
        {"init_weights": "bat", "share": "input"},
        {"bottleneck_size": 16, "bottleneck_alpha": 2.0},
    ):
        config = BoneConfig(target_modules=["q_proj"], **options)
        config.save_pretrained(tmp_path)
        assert BoneConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_bottleneck_narrower_than_one_is_refused():
    import torch

    from bone_peft import BoneLinear

    config = BoneConfig(bottleneck_size=1, bottleneck_alpha=0.2)
    with pytest.raises(BoneError, match="at least 1"):
        BoneLinear(torch.nn.Linear(4, 4), "default", config.layer_size(), config=config)
