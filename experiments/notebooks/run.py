"""Runs the notebooks and writes them with their outputs: ``python -m experiments.notebooks.run [name …]``.

The sources are the numbered ``*.py`` files, which jupytext pairs with the ``*.ipynb`` files beside them. Cells run in
the folder where this is started, so that runs and data stay there; ``--into`` says where notebooks are written.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCES = Path(__file__).parent
LIMIT_S = 600
"""Longest time of a cell."""
logger = logging.getLogger(__name__)


def sources() -> list[Path]:
    """The notebooks' sources, in the order in which they are read."""
    return sorted(SOURCES.glob("[0-9]_*.py"))


def execute(source: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, run in a folder. Raises CellExecutionError with a cell that fails."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which change with every run
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Runs all notebooks, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="starts of file names, such as 1_views")
    parser.add_argument("--into", type=Path, default=SOURCES)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for source in sources():
        if not options.names or any(source.name.startswith(name) for name in options.names):
            notebook = execute(source, Path.cwd())
            target = options.into / source.with_suffix(".ipynb").name
            nbformat.write(notebook, target)
            logger.info("%s: %.0f kB", target, target.stat().st_size / 1000)


if __name__ == "__main__":
    main()
