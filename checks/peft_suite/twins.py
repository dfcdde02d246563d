"""Bone's test cases, made out of MiSS's: the two are the same maths."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from .forms import other_form
from .rename import ToBone, WithoutMini, bone_name, is_mini, is_miss

_Def = ast.FunctionDef | ast.ClassDef
_EQUAL = {ast.Eq: ast.In, ast.Is: ast.In, ast.NotEq: ast.NotIn, ast.IsNot: ast.NotIn}

# What Bone can do and MiSS cannot: functions that skip MiSS, and functions that skip all methods but those they name.
_SKIPS_MISS = {"_skip_if_not_conv1d_supported"}
_ADMITS = {
    "_skip_if_conv1d_not_supported",
    "test_mixed_adapter_batches",
    "test_generate_with_mixed_adapter_batches",
    "_test_mixed_adapter_batches",
    "_test_generate_with_mixed_adapter_batches_and_beam_search",
}


@dataclass
class Twinned:
    """A file of PEFT's tests with Bone in it.

    Attributes:
        text: the file.
        cases: how many entries, functions and classes of MiSS's got a twin.
        left_out: what of MiSS has no twin, as ``line: text``.
    """

    text: str
    cases: int
    left_out: list[str] = field(default_factory=list)


def with_bone(source: str) -> Twinned:
    """Give everything that names MiSS a twin that names Bone."""
    tree = ast.parse(source)
    twins = _Twins()
    twins.visit(tree)
    left = [*twins.left_out, *((node.lineno, ast.unparse(node)) for node in ast.walk(tree) if _is_alone(node))]
    lines = [f"{number}: {text}" for number, text in sorted(left)]
    return Twinned(ast.unparse(ast.fix_missing_locations(tree)), twins.cases, lines)


class _Twins(ast.NodeTransformer):
    """Goes from the inside out, so that the smallest thing that can have a twin gets it."""

    def __init__(self) -> None:
        self.cases = 0
        self.left_out: list[tuple[int, str]] = []

    # Imports

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.module and bone_name(node.module) != node.module:
            return [node, ToBone().visit(deepcopy(node))]
        twins = [ToBone().visit(deepcopy(name)) for name in node.names if bone_name(name.name) != name.name]
        node.names += twins
        return node

    # Entries

    def visit_List(self, node: ast.List) -> ast.List:
        self.generic_visit(node)
        node.elts = self._with_twins(node.elts)
        return node

    def visit_Set(self, node: ast.Set) -> ast.Set:
        self.generic_visit(node)
        node.elts = self._with_twins(node.elts)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        self.generic_visit(node)
        for key, value in list(zip(node.keys, node.values, strict=True)):
            pair = ast.Tuple([key, value], ast.Load(), lineno=getattr(key, "lineno", 0))
            if key is not None and _has_other_name(key) and any(map(_is_alone, ast.walk(pair))):
                pair = self._twin(pair)
                if pair is not None:
                    node.keys.append(pair.elts[0])
                    node.values.append(pair.elts[1])
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        self._alternatives(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if called in ("isinstance", "issubclass", "parametrize") and len(node.args) > 1:
            node.args[1] = self._either(node.args[1])
        elif called in ("startswith", "endswith") and node.args:
            node.args[0] = self._either(node.args[0])
        return node

    # Special cases

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) != 1:
            return node
        operator, right = node.ops[0], node.comparators[0]
        if type(operator) in _EQUAL and _is_alone(right):
            node.ops, node.comparators = [_EQUAL[type(operator)]()], [self._either(right)]
        elif isinstance(operator, ast.In | ast.NotIn) and _is_alone(node.left):
            twin = self._twin(node)
            return ast.BoolOp(ast.Or() if isinstance(operator, ast.In) else ast.And(), [node, twin])
        else:
            self._alternatives(right)
        return node

    # Functions and classes

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = self._body(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = self._body(node.body)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name in _SKIPS_MISS:
            _settle(node)
            return node
        if node.name in _ADMITS:
            _admit(node)
        self.generic_visit(node)
        return node

    def _body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Statements, each function and class that is about MiSS followed by its twin, and so those that use it."""
        visited: list[tuple[ast.stmt, Any]] = []
        names: dict[str, str] = {}
        for statement in statements:
            original = deepcopy(statement)
            about_miss = isinstance(statement, _Def) and bone_name(statement.name) != statement.name
            if about_miss:
                _settle(statement)
            new = statement if about_miss else self.visit(statement)
            if isinstance(original, _Def) and (about_miss or any(map(_is_alone, ast.walk(new)))):
                names[original.name] = _twin_name(original.name)
            visited += [(part, original) for part in (new if isinstance(new, list) else [new])]
        while more := {
            original.name: _twin_name(original.name)
            for _, original in visited
            if isinstance(original, ast.FunctionDef)
            and original.name not in names
            and any(argument.arg in names for argument in original.args.args)
        }:
            names |= more

        body = []
        for statement, original in visited:
            body.append(statement)
            if isinstance(original, _Def) and original.name in names:
                _settle(statement)
                twin = self._twin_of_def(original, names)
                body += [twin] if twin is not None else []
        return body

    def _twin_of_def(self, node: Any, names: dict[str, str]) -> Any:
        parts = node.body if isinstance(node, ast.ClassDef) else [node]
        for part in parts:
            if isinstance(part, _Def) and is_mini(part):
                self.left_out.append((part.lineno, f"{part.name}, as far as it is about 'mini'"))
        kept = WithoutMini().visit(node)
        if kept is None:
            return None
        self.cases += 1
        return ToBone(names).visit(kept)

    # Twins

    def _with_twins(self, parts: Iterable[ast.expr]) -> list[ast.expr]:
        out = []
        for part in parts:
            out.append(part)
            if any(map(_is_alone, ast.walk(part))):
                twin = self._twin(part)
                form = other_form(twin) if twin is not None else None
                out += [new for new in (twin, form) if new is not None]
        return out

    def _twin(self, node: Any) -> Any:
        copy = deepcopy(node)
        _settle(node)
        if is_mini(copy):
            self.left_out.append((node.lineno, ast.unparse(node)))
            return None
        self.cases += 1
        return ToBone().visit(copy)

    def _alternatives(self, node: ast.expr) -> None:
        if isinstance(node, ast.Tuple):
            node.elts = self._with_twins(node.elts)

    def _either(self, node: ast.expr) -> ast.expr:
        """``MissConfig`` becomes ``(MissConfig, BoneConfig)``, and a tuple with it gets Bone's as well."""
        if _is_alone(node):
            return ast.Tuple(self._with_twins([node]), ast.Load())
        self._alternatives(node)
        return node


def _is_alone(node: ast.AST) -> bool:
    """Whether this names MiSS, and nothing beside it names Bone yet."""
    return is_miss(node) and not getattr(node, "settled", False)


def _settle(node: ast.AST) -> None:
    for part in ast.walk(node):
        part.settled = True  # type: ignore[attr-defined]


def _admit(node: ast.FunctionDef) -> None:
    for part in ast.walk(node):
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.NotIn | ast.NotEq):
            methods = part.comparators[0]
            if "LoraConfig" in [getattr(name, "id", None) for name in ast.walk(methods)]:
                named = methods.elts if isinstance(methods, ast.Tuple) else [methods]
                methods = ast.Tuple([*named, ast.Name("BoneConfig", ast.Load())], ast.Load())
                part.ops, part.comparators = [ast.NotIn()], [methods]


def _has_other_name(key: ast.expr) -> bool:
    return ast.unparse(ToBone().visit(deepcopy(key))) != ast.unparse(key)


def _twin_name(name: str) -> str:
    renamed = bone_name(name)
    return renamed if renamed != name else f"{name}_bone"
