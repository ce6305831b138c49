"""What the record of a run says of the data it reads: name, digest, origin, size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panollava.assemble.sources import source_arguments
from panollava.data.records import Source
from panollava.tracking.tracker import Dataset

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}
DIGEST_LENGTH = 16
_BLOCK = 1 << 20


def describe_split(data: Mapping[str, Any], split: str, source: Source) -> Dataset:
    """A split as the tracker records it.

    Args:
        data: the ``data`` section.
        split: ``train``, ``val`` or ``test``.
        source: the same split, opened.
    """
    options = _content(data, split)
    path = _file(options)
    origin: dict[str, Any] = {"tags": {key: str(value) for key, value in options.items()}}
    kind = "code"
    if path is not None:
        kind, origin = "local", {"uri": str(path)}
    return Dataset(
        name=source.name,
        digest=digest_of(data, split),
        source_type=kind,
        source=json.dumps(origin, ensure_ascii=False),
        profile=json.dumps({"num_rows": len(source)}),
        context=CONTEXTS[split],
    )


def digest_of(data: Mapping[str, Any], split: str) -> str:
    """Digest of a split's content: of the bytes of its file, or of the numbers that it is drawn from.

    A file that lies elsewhere or is read under other column names has the same digest; so does a world on any machine.
    """
    options = _content(data, split)
    digest = hashlib.sha256()
    path = _file(options)
    if path is None:
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    else:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _content(data: Mapping[str, Any], split: str) -> dict[str, Any]:
    options = {key: value for key, value in source_arguments(dict(data), split).items() if key not in ("name", "dir")}
    return {**options, "split": split}


def _file(options: Mapping[str, Any]) -> Path | None:
    path = options.get("path")
    return Path(path).expanduser().resolve() if isinstance(path, str) else None
