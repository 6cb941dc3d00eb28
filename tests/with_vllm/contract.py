"""Names that a vLLM has, read from its source.

So a version for another machine can be checked, too: unpack its wheel and name the folder that
holds `vllm/` in VLLM_SOURCES (several with colons between them).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from pathlib import Path


def sources() -> list[Path]:
    """The installed vLLM, and what VLLM_SOURCES names."""
    spec = importlib.util.find_spec("vllm")
    installed = [Path(spec.origin).parent] if spec and spec.origin else []
    named = filter(None, os.environ.get("VLLM_SOURCES", "").split(":"))
    return [*installed, *(Path(each) / "vllm" for each in named)]


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The tree of a module."""
    return ast.parse(file.read_text(encoding="utf-8"))


def names_of(file: Path, where: str) -> set[str]:
    """Of a module, a class or a function: what it defines, takes, sets and reads."""
    node: ast.AST = parsed(file)
    for part in filter(None, where.split(".")):
        node = next(
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and each.name == part
        )
    found: set[str] = set()
    for each in ast.walk(node):
        match each:
            case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name):
                found.add(name)
            case ast.ImportFrom(names=names):
                found.update(alias.asname or alias.name for alias in names)
            case _:
                pass
    return found
