"""Identity of stored features and pictures: the content of a file, and a digest of the code that computes.

What code computes and a disk keeps (features, the names of drawn pictures) carries ``code_digest``, so nobody has to
raise a version number. The digest changes when a definition is rewritten or renamed, not when it moves to another file.

If a rewritten definition still computes the same bits, what earlier versions kept is still valid. This command shows
the present digests, and whether the features of an earlier version are the same: if so, make the digests the keys
of ``EQUIVALENT``; if not, remove the entry, which has no effect any more, and the tests that expect these features::

    python -m pytest tests/unit/store/test_code.py tests/integration/commands/test_landed.py -k digest
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from panollava.disk import write_file

SETTLED_NS = 2_000_000_000  # age from which a file's times distinguish it from a later version: their clocks tick
_READERS = 8  # threads that read new files

EQUIVALENT = {
    "3d62b809b5775dac": "5e13fe5140fd64b2",  # features, of version 0.2
    "315a02bf9b34dd8d": "b62edcc48720b1c7",  # panoramas of the built-in world, of version 0.2
}
"""Present digest -> the earlier digest that is used in its place, because both compute the same bits."""

Definition = Callable[..., Any] | type
_Import = tuple[str, str]  # module and name
_OURS = "panollava"
_LIBRARIES = {_OURS, "numpy", "torch", "transformers", *sys.stdlib_module_names}  # their versions count elsewhere


class FileIdentity:
    """Digests of images and other files, remembered on disk for every process that uses the same folder.

    Without a folder it remembers in this process alone. With ``verify`` it reads every file once in this process.
    """

    def __init__(self, folder: Path | None, *, verify: bool = False) -> None:
        self.folder, self.verify = folder, verify
        self._known: dict[str, tuple[list[int], str]] = {}

    def identify(self, source: Path | str) -> str:
        """SHA-256 digest of a file, or of a text that describes all that an image is drawn from."""
        if isinstance(source, str):
            return hashlib.sha256(source.encode()).hexdigest()
        path = os.path.abspath(source)
        state = file_state(path)
        known = self._known.get(path) or (None if self.verify else self._recorded(path))
        if known is None or known[0] != state:
            known = self._read(path)
        self._known[path] = known
        return known[1]

    def identify_all(self, sources: Iterable[Path | str]) -> dict[Path | str, str]:
        """Digests of several sources, each computed once."""
        distinct = list(dict.fromkeys(sources))
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            return dict(zip(distinct, pool.map(self.identify, distinct), strict=True))

    def identify_together(
        self, sources: Iterable[Path | str], rank: int, count: int, gather: Callable[[str], list[str]]
    ) -> None:
        """Identifies sources in several processes, each of which reads its share, and knows them all afterwards.

        Args:
            rank, count: of this process, and how many there are.
            gather: gives the texts of all processes, by rank.
        """
        self.identify_all(sorted(set(sources), key=str)[rank::count])
        for text in gather(json.dumps(self._known)):
            self._known.update((path, (state, digest)) for path, (state, digest) in json.loads(text).items())

    def _read(self, path: str) -> tuple[list[int], str]:
        while True:
            state = file_state(path)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if file_state(path) == state:
                break  # else it was replaced in the meantime
        now = time.time_ns()
        # A camera with a wrong clock gives times in the future, which no later version would have.
        if abs(now - state[1]) <= SETTLED_NS or now - state[2] <= SETTLED_NS:
            return [-1], digest  # a later version might have the same state: read it again next time
        if (record := self._record(path)) is not None:
            with contextlib.suppress(OSError):  # on a full disk it is read again next time
                write_file(record, json.dumps({"path": path, "state": state, "sha256": digest}), sync=False)
        return state, digest

    def _recorded(self, path: str) -> tuple[list[int], str] | None:
        try:
            if (file := self._record(path)) is not None:
                record = json.loads(file.read_bytes())
                if record["path"] == path and len(record["sha256"]) == 64:
                    return list(record["state"]), str(record["sha256"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # missing or damaged: the file itself is read
        return None

    def _record(self, path: str) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.json"


def file_state(path: str) -> list[int]:
    """Size, times of content and entry in ns, and inode, which a file keeps while nobody changes it."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file. Was it moved since the start?") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@cache
def code_digest(*roots: Definition) -> str:
    """Digest of functions, methods and classes and of all that they name in their package, or its older equivalent.

    References are found in the source: names of a module and members that a method names of its own class. Imports,
    docstrings, comments, layout, types of results, log messages and the texts of errors do not count.
    """
    found = present_digest(*roots)
    return EQUIVALENT.get(found, found)


def present_digest(*roots: Definition) -> str:
    """Digest of the present code, never replaced by an older equivalent."""
    waiting = [(root.__module__, root.__qualname__) for root in roots]
    package = waiting[0][0].split(".")[0]
    seen, written = set[_Import](), set[str]()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or module.split(".")[0] != package:
            continue
        seen.add((module, name))
        node = _found(module, name)
        if isinstance(node, ast.AST):
            node = _Computing().visit(node)
            written.add(repr(_plain(node)))
            waiting += [(module, other) for other in _references(node, name.rpartition(".")[0])]
        elif node is not None:
            waiting.append(node)
    return hashlib.sha256("\n".join(sorted(written)).encode()).hexdigest()[:16]


def class_digest(kind: type, *members: str) -> str:
    """Digest of what members of a class compute: the ``code_digest`` of those of ours.

    That of another package's class has its name and the modules of the classes that it derives from as well, as of
    ``package_digest``: a member of ours may call whatever the class overrides.
    """
    if is_ours(kind):
        return code_digest(*(getattr(kind, name) for name in members))
    own = [vars(one)[name] for one in kind.__mro__ if is_ours(one) for name in members if name in vars(one)]
    modules = (one.__module__ for one in kind.__mro__)
    parts = [kind.__qualname__, package_digest(*modules), code_digest(*own) if own else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def is_ours(kind: type) -> bool:
    """Whether a class is of this package."""
    return _top(kind.__module__) == _OURS


@cache
def package_digest(*modules: str) -> str:
    """Digest of modules, and of all modules of their packages that these import; empty where no file of them is here.

    None is imported. Whole files count, without comments and layout: how a name is reached makes no difference. Modules
    of ours and of the libraries that we use are left out.
    """
    packages, waiting = {_top(module) for module in modules} - _LIBRARIES, [*modules]
    seen, written = set[str](), set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or _top(module) not in packages:
            continue
        seen.add(module)
        if (file := _source_file(module)) is not None:
            content = file.read_bytes()
            try:
                tree = ast.parse(content)
            except (SyntaxError, ValueError):  # imported under some condition, such as another version of Python
                written.add(f"{module} {content!r}")
                continue
            written.add(f"{module} {_plain(tree)!r}")
            waiting += _imported(tree, module if file.stem == "__init__" else module.rpartition(".")[0])
    return hashlib.sha256("\n".join(sorted(written)).encode()).hexdigest()[:16] if written else ""


def _top(module: str) -> str:
    return module.partition(".")[0]


def _source_file(module: str) -> Path | None:
    """The Python file of a module, found without importing it; None where there is none."""
    top, *rest = module.split(".")
    loaded = getattr(sys.modules.get(module), "__file__", None)
    files = [] if loaded is None else [Path(loaded)]
    with contextlib.suppress(ImportError, ValueError):  # the second: a module that was made without a file
        if not files and (spec := importlib.util.find_spec(top)) is not None:
            places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
            inside = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
            files = inside if rest else [Path(spec.origin or "")]
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of what a module in a package imports: modules, and members, which may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # a relative import that leaves the package
                name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def _found(module: str, name: str) -> ast.AST | _Import | None:
    """A definition, where it is imported from, or None for a builtin, an inherited member and another package's."""
    name, *members = name.split(".")
    node = _named(module).get(name)
    if isinstance(node, tuple):
        return node[0], ".".join([node[1], *members])
    for member in members:
        inside = {key: each for part in getattr(node, "body", []) for key, each in _definitions(part)}
        node = inside.get(member)
    return node


@cache
def _named(module: str) -> dict[str, ast.AST | _Import]:
    """What the names of a module refer to: definitions, and the origins of imported names."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    found: dict[str, ast.AST | _Import] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found | {name: each for node in tree.body for name, each in _definitions(node)}


def _definitions(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name, node
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from ((name, node) for target in targets for name in _bound(target))


def _references(node: ast.AST, owner: str) -> set[str]:
    """Names that a definition uses and does not bind, and members of its class ``owner``."""
    if isinstance(node, ast.ClassDef):
        parts = [*node.body, *node.bases, *node.keywords, *node.decorator_list]
        return {name for part in parts for name in _references(part, "")}
    inside = list(ast.walk(node))
    names = {each.id for each in inside if isinstance(each, ast.Name)} - set(_bound(node))
    if owner:
        own = ((each.value, each.attr) for each in inside if isinstance(each, ast.Attribute))
        names |= {f"{owner}.{name}" for of, name in own if isinstance(of, ast.Name) and of.id in ("self", "cls")}
    return names


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that arguments and assignments bind."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.arg):
            yield each.arg


class _Computing(ast.NodeTransformer):
    """Removes what has no part in a result: imports, texts, log messages, what an error says, types of results."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) or _is_log(node.value) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, None)


def _is_log(node: ast.expr) -> bool:
    of = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
    return isinstance(of, ast.Name) and of.id in ("LOG", "logger")


def _plain(node: object) -> object:
    """A syntax tree as nested lists, the same with every version of Python."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [_plain(each) for each in node] if isinstance(node, list) else node
