"""Bases and rows, made once for all tests of this folder."""

import pytest

from .tiny import make_base, sums, write_rows


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("bases") / "chat", chat=True))


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("bases") / "plain", chat=False))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    return str(write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", sums(24)))
