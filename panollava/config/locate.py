"""Where ``conf/`` lies: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

CONF = next(
    (str(folder) for folder in (_PACKAGE.parent / "conf", _PACKAGE / "_conf") if (folder / "train.yaml").is_file()),
    "",
)
"""Absolute path of the config folder."""

if not CONF:
    raise FileNotFoundError(
        f"panollava's config folder is neither {_PACKAGE.parent / 'conf'} nor {_PACKAGE / '_conf'}: "
        "the installation is incomplete. Reinstall with `pip install .` in the repository."
    )
