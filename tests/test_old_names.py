"""Names that scripts written for version 0.1 import."""

import bone_peft
from bone_peft import merging, training


def test_they_are_the_same():
    assert training.train is bone_peft.train and training.Recipe is bone_peft.Recipe
    assert merging.merge is bone_peft.merge
