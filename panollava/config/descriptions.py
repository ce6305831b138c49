"""What each command does, in one sentence: the first of its ``hydra.help.template`` in ``conf/``."""

import re
from pathlib import Path

import yaml

from panollava.config.command_line import CONF


def descriptions() -> dict[str, str]:
    """Command -> its sentence; every file at the top of ``conf/`` is a command."""
    return {path.stem: _first_sentence(path.read_text("utf-8")) for path in sorted(Path(CONF).glob("*.yaml"))}


def _first_sentence(text: str) -> str:
    """That of a command's file; the comment at its top, where the file has no help of its own."""
    config = yaml.safe_load(text)
    template = ((config.get("hydra") or {}).get("help") or {}).get("template")
    if template is None:
        return text.partition("\n")[0].removeprefix("#").strip()
    paragraph = " ".join(template.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
