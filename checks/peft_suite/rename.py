"""MiSS's names, and Bone's for the same things."""

from __future__ import annotations

import ast
import re

_RENAMED = [
    (re.compile(r"MiSS_only"), "bone_only"),
    (re.compile(r"MiSS"), "Bone"),
    (re.compile(r"Miss(?=[A-Z]|$)"), "Bone"),
    (re.compile(r"(?<![A-Za-z])MISS(?![A-Za-z])"), "BONE"),
    (re.compile(r"(?<![A-Za-z])miss(?![A-Za-z])"), "bone"),
]
_MINI = re.compile(r"(?<![A-Za-z])mini(?![A-Za-z])")
_NAMED = ("id", "attr", "arg", "name", "module")


def bone_name(text: str) -> str:
    for pattern, name in _RENAMED:
        text = pattern.sub(name, text)
    return text


def is_miss(node: ast.AST) -> bool:
    """Whether this node alone names MiSS: a class of its, or the word itself."""
    if isinstance(node, ast.Constant):
        return node.value in ("miss", "miss_", "MISS")
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return (name.startswith("Miss") and bone_name(name) != name) or name == "MISS"


def is_mini(node: ast.AST) -> bool:
    """Whether something in ``node`` is of MiSS's "mini" form, which Bone does not have."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and part.value in ("mini", "mini_r"):
            return True
        if any(isinstance(name := getattr(part, field, None), str) and _MINI.search(_words(name)) for field in _NAMED):
            return True
    return False


def _words(name: str) -> str:
    return name.replace("_", " ")


class ToBone(ast.NodeTransformer):
    """Renames all that has MiSS's name, and what ``others`` says."""

    def __init__(self, others: dict[str, str] | None = None) -> None:
        self._others = others or {}

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        for field in _NAMED:
            name = getattr(node, field, None)
            if isinstance(name, str):
                setattr(node, field, self._others.get(name) or bone_name(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = bone_name(node.value)
        return node


class WithoutMini(ast.NodeTransformer):
    """Takes MiSS's "mini" form out of a function or class."""

    def visit_List(self, node: ast.List) -> ast.List:
        node.elts = [part for part in node.elts if not is_mini(part)]
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        node.args = [argument for argument in node.args if not is_mini(argument)]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        if _MINI.search(_words(node.name)):
            return None
        self.generic_visit(node)
        node.body = [statement for statement in node.body if not is_mini(statement)]
        return node if node.body else None
