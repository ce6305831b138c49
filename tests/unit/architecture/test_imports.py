"""Areas of the package import downward only, and each outside library is used in its own areas only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import panollava

PACKAGE = Path(panollava.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
REGISTRY = "stages.registry"
"""The records of the stages: data alone, which lower layers than the stages themselves read."""
LEAVES = {"batch", "chat_format", "component", "disk", "generation"}
ANYTHING = {"run", "trainer"}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"model", "trainer"},  # the front door shows the facade when asked
    "checkpoint": {"disk"},
    "config": {"component", "disk", "logs", "run_folder", "sweep_folder", "tracking", REGISTRY},
    "crop": {"component"},
    "data": {"batch", "checkpoint", "crop", "disk", "logs", "prompt", "store"},
    "evaluation": {"batch", "checkpoint", "component", "crop", "data", "disk", "logs", "losses", "model", REGISTRY},
    "logs": {"disk"},
    "losses": {"batch", "crop"},
    # The Python API opens run folders, and checks that the files of the backbones are unchanged.
    "model": {
        "batch",
        "checkpoint",
        "component",
        "crop",
        "disk",
        "generation",
        "prompt",
        "run_folder",
        "store",
        REGISTRY,
    },
    "model_card": {"checkpoint", "disk", "evaluation", "model", "run_folder"},
    "prompt": {"chat_format"},
    "run_folder": {"component", "checkpoint", "disk", REGISTRY},
    "server": {"batch", "crop", "data", "evaluation", "generation", "logs", "model", "prompt", "training"},
    "stages": {"batch", "component", "crop", "losses", "model", REGISTRY},
    REGISTRY: {"component"},
    "store": {"batch", "disk", "logs"},
    "sweep_folder": {"disk"},
    "tracking": {"disk"},
    "training": {"batch", "checkpoint", "disk", "logs", "stages", "tracking"},
}
"""Area -> areas it may import; what is in none of the three tables is an entry point."""

OUTSIDE = {
    "hydra": {"config", "run", "trainer"},
    "omegaconf": {"config", "run", "trainer"},
    "mlflow": {"tracking"},
    "tensorboard": {"tracking"},
    "wandb": {"tracking"},
    "peft": {"model"},
    "timm": {"model"},
}
"""Library -> areas that may import it; entry points may also import Hydra and OmegaConf."""


def area(file: Path) -> str:
    """First folder or, at the top, the module itself."""
    return area_of(".".join(file.relative_to(PACKAGE).with_suffix("").parts))


def area_of(module: str) -> str:
    """The same of a module's name below the package."""
    return REGISTRY if f"{module}.".startswith(f"{REGISTRY}.") else module.partition(".")[0]


def entry_points() -> set[str]:
    """Modules at the top that are started with ``python -m``."""
    return {area(file) for file in PACKAGE.glob("*.py") if 'if __name__ == "__main__":' in file.read_text("utf-8")}


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_area_is_known() -> None:
    areas = {area(file) for file in FILES}
    assert areas == LEAVES | ANYTHING | set(ALLOWED) | entry_points()
    assert {"train", "eval", "gallery"} <= entry_points()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downward_only(file: Path) -> None:
    own = area(file)
    names = [name.removeprefix("panollava.") for name in imported(file) if name.startswith("panollava.")]
    ours = {area_of(name) for name in names} - {own}
    if own in entry_points() | ANYTHING:
        assert not ours & entry_points()
    else:
        assert ours <= ALLOWED.get(own, set())


@pytest.mark.parametrize("library", OUTSIDE)
def test_outside_libraries_stay_in_their_areas(library: str) -> None:
    allowed = OUTSIDE[library] | (entry_points() if library in ("hydra", "omegaconf") else set())
    users = {area(file) for file in FILES if any(name.split(".")[0] == library for name in imported(file))}
    assert users <= allowed
    assert users & OUTSIDE[library]


PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Libraries that run code from what they read."""
UNPICKLING = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load"}


def test_nothing_is_pickled_or_unpickled() -> None:
    """Files of ours are safetensors and JSON; ``torch.load`` is not called even with ``weights_only``."""
    for file in FILES:
        names = set(imported(file))
        assert not {name.split(".")[0] for name in names} & PICKLERS, file
        used = {ast.unparse(node) for node in ast.walk(ast.parse(file.read_text("utf-8"))) if _is_of_files(node)}
        assert not (names | used) & UNPICKLING, file


def _is_of_files(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("load", "save")


def test_packages_are_a_docstring_and_nothing_else() -> None:
    for file in PACKAGE.glob("*/**/__init__.py"):
        body = [node for node in ast.parse(file.read_text("utf-8")).body if not _is_version(node)]
        assert len(body) == 1, file
        assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), file


def _is_version(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and all(getattr(target, "id", "") == "__version__" for target in node.targets)


@pytest.mark.parametrize(
    "module",
    [
        "panollava",
        "panollava.config.command_line",
        "panollava.run.sweep_design",
        "panollava.tracking.mlflow_tracker",
        "panollava.train",
    ],
)
def test_what_the_command_line_needs_first_is_light(module: str) -> None:
    assert brought_in(module, "torch", "transformers", "mlflow") == []


HEAVY = (
    *("torch", "transformers", "timm", "peft", "mlflow", "wandb", "tensorboard"),
    *("pandas", "matplotlib", "scipy", "requests", "cv2"),
)
"""Libraries that take long to import; a command imports them when it uses them."""
READS_FILES = {"check", "fetch"}
"""Commands whose modules are about files of pictures and their headers."""


@pytest.mark.parametrize("command", sorted(entry_points()))
def test_help_of_a_command_needs_no_heavy_library(command: str) -> None:
    heavy = [name for name in HEAVY if command not in READS_FILES or name not in ("requests", "cv2")]
    at_end = f"atexit.register(lambda: print(*[name for name in {heavy} if name in sys.modules], file=sys.stderr))"
    code = f"import atexit, sys, panollava.{command} as command; sys.argv[1:] = ['--help']; {at_end}; command.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.split() == []


def test_the_check_of_a_config_brings_in_no_model_library() -> None:
    models = ("transformers", "timm", "peft", "torchvision", "mlflow", "scipy", "pandas")
    assert brought_in("panollava.run.config_check", *models) == []


def test_an_encoder_of_transformers_brings_in_no_timm() -> None:
    opened = 'panollava.model.vision.VisionTower.from_pretrained("panollava/tiny-siglip").config'
    assert brought_in("panollava.model.vision", "timm", "transformers", then=opened) == ["transformers"]


def test_scoring_brings_in_no_model_library() -> None:
    assert brought_in("panollava.score", "torch", "transformers", "timm", "peft", "mlflow", "pandas") == []


def brought_in(module: str, *libraries: str, then: str = "") -> list[str]:
    """Which of some libraries a fresh interpreter has loaded after a module and an expression."""
    code = f"import sys, {module}; {then or None}; print(*[name for name in {libraries} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()
