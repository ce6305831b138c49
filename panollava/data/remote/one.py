"""One panorama that a user names by an address, where ``data.remote`` allows it."""

from __future__ import annotations

import time
from pathlib import Path

from panollava.data.remote.fetch import Fetcher
from panollava.data.remote.rules import RemoteOptions, parse_address


def is_address(image: str) -> bool:
    """Whether a name of a picture is an http(s) address."""
    return image.lower().startswith(("http://", "https://"))


def fetch_panorama(address: str, options: RemoteOptions) -> Path:
    """File of the picture at an address; fetched unless it is kept already, and asked for again where it was dead.

    Args:
        address: as the user wrote it.
        options: which hosts may be asked, and where pictures are kept.

    Raises:
        ValueError: ``data.remote`` does not allow it, or no picture came.
        OSError: the folder of the pictures cannot be written.
    """
    fetcher = Fetcher(options, ask_dead=time.time())
    if not fetcher.allows(address):
        host = parse_address(address).host
        raise ValueError(
            f"image={address}: pictures are fetched only where data.remote allows it. data.remote=[{host}] allows this "
            "host, data.remote=true every public one. Or download it and give its path."
        )
    fetched = fetcher.fetch([address])
    if address not in fetched.paths:
        raise ValueError(f"image={address}: {fetched.dead[address]}.")
    return fetched.paths[address]
