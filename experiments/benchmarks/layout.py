"""Counts the shape of the code: modules, lines, imports, import circles, and the files that one run enters.

``python experiments/benchmarks/layout.py [--run "train +debug=default"] [package folder]`` prints a table; with
``--run`` the command is started in a temporary folder and every function call of the package is recorded.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "panollava"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of each module; an ``__init__`` of one to three lines is none."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        if file.name == "__init__.py" and len(file.read_text("utf-8").splitlines()) <= 3:
            continue
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def import_lines(tree: ast.Module) -> int:
    """Lines of import statements, wherever they stand."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes)


def functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and name of each function, decorators not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name


def imported(name: str, tree: ast.Module, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports at its top level or for type checking; not inside functions."""
    found = set()
    for node in _outside_functions(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return (found & known.keys()) - {name}


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def measure(package: Path) -> dict[str, object]:
    """The static figures of a package."""
    known = modules(package)
    trees = {name: ast.parse(file.read_text("utf-8")) for name, file in known.items()}
    lengths = {name: len(file.read_text("utf-8").splitlines()) for name, file in known.items()}
    graph = {name: imported(name, tree, known) for name, tree in trees.items()}
    longest, where = max(
        ((*found, name) for name, tree in trees.items() for found in functions(tree)), key=lambda each: each[0]
    )[::2]
    total = sum(lengths.values())
    return {
        "modules": len(known),
        "lines": total,
        "median lines of a file": statistics.median(lengths.values()),
        "files below 60 lines": sum(length < 60 for length in lengths.values()),
        "longest function": f"{longest} ({where})",
        "import lines, %": round(100 * sum(import_lines(tree) for tree in trees.values()) / total, 2),
        "import circles": circles(graph),
        "modules with one importer": sum(sum(name in used for used in graph.values()) == 1 for name in graph),
    }


def record(package: Path, command: str, arguments: list[str]) -> dict[str, object]:
    """Files entered, and distinct pairs (calling file, called file), in a command of this process and its threads."""
    import importlib
    import threading

    prefix = str(package.resolve()) + os.sep
    entered: dict[bool, set[str]] = {True: set(), False: set()}
    pairs: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}

    def profile(frame: Any, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(prefix):
            return
        called = bool(code.co_flags & inspect.CO_OPTIMIZED)  # a function; else the body of a module or class
        entered[called].add(code.co_filename)
        back = frame.f_back
        while back is not None and not back.f_code.co_filename.startswith(prefix):
            back = back.f_back  # a call through a library counts for the file that called the library
        if back is not None and back.f_code.co_filename != code.co_filename:
            pairs[called].add((back.f_code.co_filename, code.co_filename))

    sys.setprofile(profile)
    threading.setprofile(profile)
    module = importlib.import_module(f"{package.name}.{command}")
    sys.argv = [f"{package.name}.{command}", *arguments]
    try:
        module.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {
        "files entered, imports included": len(entered[True] | entered[False]),
        "files entered by a call": len(entered[True]),
        "hops between files, imports included": len(pairs[True] | pairs[False]),
        "hops between files by a call": len(pairs[True]),
    }


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE)
    parser.add_argument("--run", help='a command and its arguments, such as "train +debug=default"')
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    package = options.package.resolve()
    if options.here:
        command, *arguments = options.run.split()
        sys.stdout.write(json.dumps(record(package, command, arguments)))
        return
    figures = measure(package)
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(package), "--here", "--run", options.run]
            environment = {**os.environ, "PYTHONPATH": str(package.parent)}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            figures |= json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
