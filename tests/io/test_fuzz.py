"""A hundred damaged files. ``fuzz/`` documents the long runs."""

import pytest
from fuzz.run import attempts


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_files_are_refused_or_sound(tmp_path):
    happened = list(attempts(130, 7, tmp_path))
    assert [fault for _, fault in happened if fault is not None] == []
    outcomes = {outcome for outcome, _ in happened}
    assert outcomes == {"taken", "refused"}
