"""Payment inside a template: a step in each body that may be repeated, and before each operation that copies or compares.

The functions `step`, `paid` and `concatenated` are those of the environment, `sandbox.Sandbox`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.visitor import NodeTransformer

__all__ = ["CHARACTERS", "Generator", "Instrumented"]

# A step is one repetition, one value that is looked through, or so many characters that are copied or searched.
CHARACTERS = 64


class Instrumented(NodeTransformer):
    """Puts a step into every body that may be repeated, and payment before what Jinja does not let us intercept."""

    def _repeated(self, node: Any) -> Any:
        written = sum(len(each.data) for each in _within(node))
        self.generic_visit(node)
        # Calling a macro takes twenty times as long as a turn of a loop.
        steps = (20 if isinstance(node, nodes.Macro | nodes.CallBlock | nodes.Block) else 1) + written // CHARACTERS
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [nodes.Const(steps)], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno).set_lineno(node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_FilterBlock = visit_Block = _repeated  # noqa: N815
    visit_AssignBlock = visit_With = _repeated  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenated", node.nodes, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _paid(node.expr)
        for operand in node.ops:
            operand.expr = _paid(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _paid(node.node)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _paid(node.key)
        return node


def _within(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    """The literal text of a body, without the bodies in it that have steps of their own."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.TemplateData):
            yield child
        elif not isinstance(child, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
            yield from _within(child)


def _call(name: str, values: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), values, [], None, None, lineno=line)


def _paid(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _call("paid", [node], node.lineno)


class Generator(CodeGenerator):
    """Calls our own functions without the sandbox's examination, which takes ten times as long as they do."""

    def visit_Call(self, node: nodes.Call, frame: Any, forward_caller: bool = False) -> None:  # noqa: N802
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")
