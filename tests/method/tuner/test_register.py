"""Importing the package makes Bone a PEFT method, in memory and once."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import peft
from peft.utils import PeftType

import bone_peft
from bone_peft.method.tuner.register import register

from ...versions import needs


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_type_is_a_proper_member_of_the_enum():
    assert PeftType("BONE") is PeftType.BONE is PeftType["BONE"]
    assert PeftType.BONE == "BONE" and PeftType.BONE.value == PeftType.BONE.name == "BONE"
    assert PeftType.BONE in list(PeftType)
    assert pickle.loads(pickle.dumps(PeftType.BONE)) is PeftType.BONE
    assert isinstance(peft.get_peft_config({"peft_type": "BONE", "r": 8}), bone_peft.BoneConfig)


def test_old_import_paths():
    from peft import BoneConfig, BoneModel
    from peft.tuners import BoneConfig as FromTuners
    from peft.tuners.bone import BoneConfig as FromBone
    from peft.tuners.bone import BoneLayer, BoneLinear
    from peft.tuners.bone.config import BoneConfig as FromConfig
    from peft.tuners.bone.layer import BoneLinear as FromLayer
    from peft.tuners.bone.model import BoneModel as FromModel

    assert BoneConfig is FromTuners is FromBone is FromConfig is bone_peft.BoneConfig
    assert BoneModel is FromModel is bone_peft.BoneModel
    assert BoneLinear is FromLayer is bone_peft.BoneLinear
    assert issubclass(BoneLinear, BoneLayer)


def test_registering_twice_is_harmless():
    before = dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register()
    assert before == peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING


def test_no_installed_file_is_touched():
    def digest():
        files = sorted(Path(peft.__file__).parent.rglob("*.py"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    before = digest()
    assert run("import bone_peft").returncode == 0
    assert digest() == before


@needs("peft", "0.19")
def test_without_the_import_peft_has_no_bone():
    result = run("from peft import BoneConfig")
    assert "cannot import name 'BoneConfig'" in result.stderr


def test_the_import_is_light():
    """The library works where the command line's and the trainer's packages are not installed."""
    result = run(
        "import sys, bone_peft\n"
        "heavy = {'trl', 'datasets', 'typer', 'matplotlib', 'tensorboard', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert result.returncode == 0, result.stderr
