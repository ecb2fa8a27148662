"""Rewrites a module so that mutmut makes the mutants that matter: none of wording, and those of decorated functions."""

from __future__ import annotations

import ast
import io
import tokenize

LOGGING = {"debug", "info", "warning", "warn", "error", "exception"}


def prepared(source: str) -> str:
    """Returns the same program in a form that has mutmut leave out wording and mutate decorated functions."""
    lines = triple_quoted(source).splitlines()
    before: dict[int, str] = {}
    after: dict[int, list[str]] = {}
    tree = ast.parse("\n".join(lines))
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and is_message(node) and lines[node.lineno - 1][: node.col_offset].isspace():
            indent = " " * node.col_offset
            before[node.lineno] = f"{indent}# pragma: no mutate start"
            after.setdefault(node.end_lineno or node.lineno, []).append(f"{indent}# pragma: no mutate end")
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for function in (node for body in bodies for node in body if isinstance(node, ast.FunctionDef)):
        # mutmut passes over decorated functions: `@d` before f becomes `f = d(f__bare)` after it.
        decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
        is_stub = isinstance(last := function.body[-1], ast.Expr) and isinstance(last.value, ast.Constant)
        if not decorators or decorators in (["classmethod"], ["staticmethod"]) or is_stub:
            continue
        indent, name = " " * function.col_offset, f"{function.name}__bare{function.lineno}"
        for number in range(function.decorator_list[0].lineno, function.lineno):
            lines[number - 1] = ""
        lines[function.lineno - 1] = lines[function.lineno - 1].replace(f"def {function.name}", f"def {name}", 1)
        wrapped = "(".join([*decorators, name]) + ")" * len(decorators)
        after.setdefault(function.end_lineno or 0, []).append(f"{indent}{function.name} = {wrapped}")
    result = []
    for number, line in enumerate(lines, 1):
        result += [before[number]] if number in before else []
        result += [line, *after.get(number, [])]
    return "\n".join(result) + "\n"


def is_message(node: ast.stmt) -> bool:
    """Whether a statement raises an error or logs."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        return node.value.func.attr in LOGGING
    return isinstance(node, ast.Raise) and node.exc is not None


def triple_quoted(source: str) -> str:
    """Returns the same program with triple quotes around prose, which mutmut leaves as it is."""
    lines = source.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        text = token.string
        if token.type == tokenize.STRING and text[0] in "\"'" and " " in text and text[:3] != text[0] * 3:
            (row, start), (_, end) = token.start, token.end
            quotes = text[0] * 3
            lines[row - 1] = f"{lines[row - 1][:start]}{quotes}{text[1:-1]}{quotes}{lines[row - 1][end:]}"
    return "".join(lines)
