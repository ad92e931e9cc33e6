"""Mutations: the small faults of a tired colleague, one at a time, in the syntax tree of a module.

Left out, because a test of behaviour says nothing of them: annotations, decorators, docstrings, f-strings, which are
messages, assertions, `__repr__`, `__slots__`, log lines, protocols, and what a tuner may search (`TUNABLE`).
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
_UNTESTED_NAMES = {"__slots__", "__all__", "TUNABLE"}
_UNTESTED_FUNCTIONS = {"__repr__", "__str__"}
_LOGS = {"log", "logger"}


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        path: the module's, from the root of the repository.
        scope: qualified name of the function or class it is in; "" at the module's level.
        line: where it is.
        change: what it was and what it is, in source text.
        source: the line it is in.
        place: number of its node in the order of `ast.walk`.
        variant: number among the mutations of this node.
    """

    path: str
    scope: str
    line: int
    change: str
    source: str
    place: int
    variant: int

    @property
    def name(self) -> str:
        """What a list of equivalents calls it: lines may move."""
        return f"{self.path} {self.scope or '(module)'}: {self.change} in: {self.source}"


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a module, in the order of its nodes."""
    text = Path(path).read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    places = {id(node): number for number, node in enumerate(ast.walk(tree))}
    found: list[Mutant] = []
    for node, scope in _testable(tree, ""):
        for variant, changed in enumerate(_variants(node)):
            if isinstance(node, ast.Assign) and scope.endswith("__init__"):
                continue  # every test would fail
            line = getattr(node, "lineno", 1)
            change, source = _change(node, changed), lines[line - 1].strip()
            found.append(Mutant(path, scope, line, change, source, places[id(node)], variant))
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """The module's tree with this one fault in it."""
    tree = ast.parse(Path(mutant.path).read_text(encoding="utf-8"))
    node = list(ast.walk(tree))[mutant.place]
    changed = ast.copy_location(list(_variants(node))[mutant.variant], node)
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, changed)
            elif isinstance(value, list):
                value[:] = [changed if part is node else part for part in value]
    return ast.fix_missing_locations(tree)


def noting_calls(path: str, note: str) -> ast.Module:
    """The module's tree, where every function first calls the global `note` with its qualified name."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))

    def visit(node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{scope}.{child.name}" if scope else child.name
            visit(child, inside)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                call = ast.Call(ast.Name(note, ast.Load()), [ast.Constant(inside)], [])
                child.body.insert(0, ast.copy_location(ast.Expr(call), child.body[0]))

    visit(tree, "")
    return ast.fix_missing_locations(tree)


def _testable(node: ast.AST, scope: str) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that may be mutated, and where they are."""
    for child in _children(node):
        if _is_untested(child):
            continue
        inside = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{scope}.{child.name}" if scope else child.name
        yield child, inside
        yield from _testable(child, inside)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Without annotations, decorators and bases."""
    left_out: tuple[str, ...] = ("annotation", "returns", "decorator_list", "type_params")
    if isinstance(node, ast.ClassDef):
        left_out += ("bases", "keywords")
    for field, value in ast.iter_fields(node):
        if field not in left_out:
            yield from [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST)]


def _is_untested(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant()):
            return True  # a docstring, or "..."
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in _LOGS
        case ast.FunctionDef(name=name):
            return name in _UNTESTED_FUNCTIONS
        case ast.ClassDef(bases=bases):
            return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in bases)
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            aliased = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"
            return name in _UNTESTED_NAMES or aliased
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case _:
            return False


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """What the node may become."""
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node.value)
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)


def _of_constant(value: object) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)


def _of_expression(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for number, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield ast.Compare(left, [*ops[:number], other(), *ops[number + 1 :]], comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield values[0] if len(values) == 2 else ast.BoolOp(op, values[1:])
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=binary, right=right) if type(binary) in _COMPUTED:
            yield ast.BinOp(left, _COMPUTED[type(binary)](), right)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _OPPOSITES:
            yield ast.Call(ast.Name(_OPPOSITES[name], ast.Load()), args, keywords)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=args, keywords=keywords) if name in _OPPOSITES:
            yield ast.Call(ast.Attribute(value, _OPPOSITES[name], ast.Load()), args, keywords)
        case _:
            pass


def _of_statement(node: ast.stmt) -> Iterator[ast.stmt]:
    match node:
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _COMPUTED:
            yield ast.AugAssign(target, _COMPUTED[type(op)](), value)
            yield ast.Pass()
        case ast.If(body=body, orelse=orelse):
            yield ast.If(ast.Constant(False), body, orelse)
            yield ast.If(ast.Constant(True), body, orelse)
        case ast.While(body=body, orelse=orelse):
            yield ast.While(ast.Constant(False), body, orelse)
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete() | ast.Continue():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case _:
            pass


def _change(node: ast.AST, changed: ast.AST) -> str:
    """Both in source text, of statements the first line."""
    before, after = (ast.unparse(ast.fix_missing_locations(copy.deepcopy(part))) for part in (node, changed))
    return f"{before.splitlines()[0]} → {after.splitlines()[0]}"
