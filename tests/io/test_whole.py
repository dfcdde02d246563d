"""What is written appears whole, and a failure leaves nothing."""

import pytest

from bone_peft import BoneError
from bone_peft.io.whole import whole_file, whole_folder


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_failure_takes_the_new_parents_away_too(tmp_path, whole):
    with pytest.raises(RuntimeError), whole(tmp_path / "new" / "newer" / "out"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "new" / "newer" / "out") as staging:
        staging.mkdir(exist_ok=True) if whole is whole_folder else staging.touch()
    assert [path.name for path in (tmp_path / "new" / "newer").iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".", "/", ""])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_name_is_needed(whole, name):
    with pytest.raises(BoneError, match="no name"), whole(name):
        pass


def test_files_and_folders_do_not_replace_each_other(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BoneError, match="is a file"), whole_folder(tmp_path / "file", replace=True):
        pass
    with pytest.raises(BoneError, match="is a folder"), whole_file(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
