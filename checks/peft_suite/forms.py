"""Bone's forms that MiSS does not have: the bottleneck beside each plain case, and shared input beside each Bat."""

from __future__ import annotations

import ast
from copy import deepcopy


def other_form(entry: ast.expr) -> ast.expr | None:
    """The same test case in Bone's next form; ``None`` for a case that sets no size."""
    form = _OtherForm()
    changed = form.visit(deepcopy(entry))
    return changed if form.found else None


class _OtherForm(ast.NodeTransformer):
    found = False

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        self.generic_visit(node)
        names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        values = dict(zip(names, node.values, strict=True))
        if "r" in values and _is_bat(values.get("init_weights")):
            self.found = True
            node.keys.append(ast.Constant("share"))
            node.values.append(ast.Constant("input"))
        elif "r" in values:
            self.found = True
            node.keys[names.index("r")] = ast.Constant("bottleneck_size")
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        options = {keyword.arg: keyword for keyword in node.keywords}
        if getattr(node.func, "id", None) != "BoneConfig" or "r" not in options:
            return node
        self.found = True
        if "init_weights" in options and _is_bat(options["init_weights"].value):
            node.keywords.append(ast.keyword("share", ast.Constant("input")))
        else:
            options["r"].arg = "bottleneck_size"
        return node


def _is_bat(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value == "bat"
