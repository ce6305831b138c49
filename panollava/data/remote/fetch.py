"""Fetches the pictures of a data file: several at once, each once, with a word on how far it is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from panollava.data.remote.cache import Dead, Kept, PictureCache
from panollava.data.remote.rules import Failed, RemoteOptions, Rules, parse_address
from panollava.data.remote.transfer import Limits, download
from panollava.logs import LOG

_TOLD_EVERY_S = 30.0
_LONGEST_PAUSE_S = 60.0


@dataclass
class Fetched:
    """What came of the addresses of a data file.

    Attributes:
        paths: files of the pictures that are there.
        dead: why the others are not.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)


class Fetcher:
    """Fetches pictures into a folder that several runs may share.

    Args:
        options: ``data.remote*``.
        ask_dead: ask again for links that were dead before this time (seconds since 1970).
        pause_s: before the second try; it doubles with each one.
    """

    def __init__(self, options: RemoteOptions, *, ask_dead: float = 0.0, pause_s: float = 1.0) -> None:
        self.options = options
        self._rules = Rules(options.remote)
        self._limits = Limits(options.remote_timeout_s, int(options.remote_max_mb * 1e6))
        self._ask_dead = ask_dead
        self._pause_s = pause_s

    @property
    def folder(self) -> Path:
        """Where the pictures are kept."""
        return Path(self.options.remote_cache).expanduser()

    def allows(self, address: str) -> bool:
        """Whether ``data.remote`` allows an address; one that is no address of a picture is a matter of its row."""
        try:
            parsed = parse_address(address)
        except Failed:
            return True
        return self._rules.allows(parsed)

    def fetch(self, addresses: Iterable[str]) -> Fetched:
        """The pictures at some addresses, from the folder where they are there already.

        Raises:
            OSError: the folder cannot be written.
        """
        wanted, result = [], Fetched()
        for address in dict.fromkeys(addresses):
            try:
                parse_address(address)
                wanted.append(address)
            except Failed as failure:  # no link, so nothing to remember of it
                result.dead[address] = str(failure)
        if not wanted:
            return result
        try:
            cache = PictureCache(self.folder)
            missing = [address for address in wanted if not self._take(address, self._known(cache, address), result)]
            if missing:
                self._fetch_missing(cache, missing, result)
        except OSError as error:
            raise OSError(
                f"data.remote_cache={self.folder} cannot be written ({error.strerror or error}). Make room, or name "
                "another folder."
            ) from error
        return result

    def _known(self, cache: PictureCache, address: str) -> Kept | Dead | None:
        known = cache.find(address)
        if isinstance(known, Dead) and (known.time < self._ask_dead or not self._is_under(known)):
            return None
        return known

    def _is_under(self, dead: Dead) -> bool:
        """Whether the option that made a link dead, if one did, is as it was then."""
        return not dead.under or dead.under == self._set(dead.under.partition("=")[0])

    def _set(self, option: str) -> str:
        return f"{option}={getattr(self.options, option, None)}" if option else ""

    def _take(self, address: str, known: Kept | Dead | None, result: Fetched) -> bool:
        if isinstance(known, Kept):
            result.paths[address] = known.path
        elif isinstance(known, Dead):
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.time))
            result.dead[address] = f"{known.reason} (tried {day})"
        return known is not None

    def _fetch_missing(self, cache: PictureCache, missing: list[str], result: Fetched) -> None:
        at_once = min(self.options.remote_connections, len(missing))
        LOG.info("Fetching %d pictures into %s, %d at a time.", len(missing), cache.folder, at_once)
        began = told = time.monotonic()
        stop = Event()
        pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="fetch")
        try:
            jobs = {pool.submit(partial(self._fetch_one, cache, address, stop)): address for address in missing}
            with tqdm(total=len(missing), desc="pictures", unit="picture", disable=None, leave=False) as bar:
                for done, job in enumerate(as_completed(jobs), start=1):
                    self._take(jobs[job], job.result(), result)
                    bar.update()
                    if bar.disable and time.monotonic() - told >= _TOLD_EVERY_S:
                        told = time.monotonic()
                        LOG.info("%d of %d pictures, %d links dead.", done, len(missing), len(result.dead))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        came = sum(address in result.paths for address in missing)
        LOG.info("%d of %d pictures came in %.0f s.", came, len(missing), time.monotonic() - began)

    def _fetch_one(self, cache: PictureCache, address: str, stop: Event) -> Kept | Dead | None:
        """Fetches a picture, unless another process has done so while this one waited for the lock."""
        with cache.lock(address):
            cache.refresh()
            if (known := self._known(cache, address)) is not None:
                return known
            for attempt in range(1, self.options.remote_tries + 1):
                if stop.is_set():
                    break
                try:
                    return cache.keep(
                        address, lambda file: download(address, self._rules, self._limits, file, stop.is_set)
                    )
                except Failed as failure:
                    if not failure.passing or attempt == self.options.remote_tries:
                        times = f", {attempt} times" if attempt > 1 else ""
                        if stop.is_set():
                            return None
                        return cache.bury(address, f"{failure}{times}", self._set(failure.option))
                    stop.wait(max(failure.wait_s, self._pause(attempt)))
        return None

    def _pause(self, attempt: int) -> float:
        """Seconds to wait; not the same for all, or they would all knock at once again."""
        return min(self._pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
