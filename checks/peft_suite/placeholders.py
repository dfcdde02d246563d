"""What PEFT's tests import and is not installed: a placeholder, so that only the tests that use it cannot run."""

from __future__ import annotations

import ast
from typing import Any


class _Absent(type):
    """Fine to be named, as in ``isinstance``; whatever else is done to it says what is missing."""

    message = ""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        raise ModuleNotFoundError(cls.message)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(cls.message)


def absent(error: ModuleNotFoundError) -> type:
    """A placeholder for what an import did not find. PEFT and Bone are what is tested, and have to be there."""
    if (error.name or "").partition(".")[0] in ("peft", "bone_peft"):
        raise error
    return _Absent("Absent", (), {"message": str(error)})


def with_placeholders(source: str) -> str:
    """Let the imports at the top of a file fall back on placeholders."""
    tree = ast.parse(source)
    tree.body = [_forgiving(statement) for statement in tree.body]
    return ast.unparse(ast.fix_missing_locations(tree))


def _forgiving(statement: ast.stmt) -> ast.stmt:
    if not isinstance(statement, ast.Import | ast.ImportFrom) or getattr(statement, "module", "") == "__future__":
        return statement
    if getattr(statement, "level", 0):
        return statement
    names = [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    text = f"""
try:
    {ast.unparse(statement)}
except ModuleNotFoundError as error:
    from {__name__} import absent
    {" = ".join(names)} = absent(error)
"""
    return ast.parse(text).body[0]
