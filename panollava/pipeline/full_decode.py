"""Decodes every picture of a data set once, in several threads, with a forecast; what is known is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from panollava.assemble.decoded import Decoded, examined
from panollava.crop.partial import Covered
from panollava.logs import LOG

_TRIED = 16
"""Pictures, from all over the data set, by which the time for all is forecast."""
_SAVED_EVERY_S = 30.0

_Found = tuple[str, list[int], str]


def decode_all(pictures: Sequence[str], covered: Covered | None, num_workers: int) -> list[str]:
    """Decodes pictures in full; every opening of a data set in this folder knows from then on which are damaged.

    Args:
        pictures: paths of files whose headers are right.
        covered: degrees that they cover; None for the whole sphere.
        num_workers: threads that decode.

    Returns:
        The damaged ones.
    """
    decoded = Decoded()
    found = {picture: decoded.verdict(picture) for picture in dict.fromkeys(pictures)}
    sizes = {picture: _size(picture) for picture, verdict in found.items() if verdict is None}
    known = len(found) - len(sizes)
    LOG.info(
        "Full decode: %d pictures to do (%.1f MB), %d known from before.", len(sizes), sum(sizes.values()) / 1e6, known
    )
    saved = time.monotonic()
    try:
        for picture, identity, reason in _examined(sizes, covered, num_workers):
            decoded.learn(picture, identity, reason)
            found[picture] = reason
            if time.monotonic() - saved > _SAVED_EVERY_S:
                decoded.save()
                saved = time.monotonic()
    finally:  # it may have taken hours
        if sizes:
            decoded.save()
    return [picture for picture, reason in found.items() if reason]


def _examined(sizes: dict[str, int], covered: Covered | None, num_workers: int) -> Iterator[_Found]:
    """Verdicts in any order: of a few pictures first, by which the time for the others is told."""
    if not sizes:
        return
    pictures = list(sizes)
    first = pictures[:: -(-len(pictures) // _TRIED)]
    rest = [picture for picture in pictures if picture not in set(first)]
    look = partial(examined, covered=covered)
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="decoding", delay=1.0) as bar:
        start = time.perf_counter()
        for found in map(look, first):
            bar.update(sizes[found[0]])
            yield found
        elapsed = time.perf_counter() - start
        left = sum(sizes[picture] for picture in rest)
        if left:
            seconds = elapsed * left / max(1, sum(sizes[picture] for picture in first)) / max(1, num_workers)
            LOG.info("The other %d pictures take about %s.", len(rest), _spoken(seconds))
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            for found in pool.map(look, rest):
                bar.update(sizes[found[0]])
                yield found


def _size(picture: str) -> int:
    return os.path.getsize(picture) if os.path.isfile(picture) else 0


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
