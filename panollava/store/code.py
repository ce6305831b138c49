"""The version of a piece of this package: a digest of what its code does, whatever its comments say."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType


@cache
def code_digest(*names: str) -> str:
    """Digest of modules, and of all the modules of packages; comments, docstrings and layout do not change it.

    What is made by code and kept on disk carries it, so that nobody has to remember to raise a version number.

    Args:
        names: such as ``panollava.crop``.
    """
    digest = hashlib.sha256()
    for module in (module for name in names for module in _modules(name)):
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [part for part in node.body if not _is_text(part)]
        digest.update(f"{module.__name__}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _modules(name: str) -> list[ModuleType]:
    module = importlib.import_module(name)
    below = sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", [])))
    return [module] if not below else [each for part in below for each in _modules(f"{name}.{part}")]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
