"""What commands about pictures share: the panoramas that are named, the files that are written, the number format."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.crop import Crop, read_panorama
from panollava.crop.gpano import tilt_warning
from panollava.crop.image_file import parse_header
from panollava.crop.partial import Covered
from panollava.crop.render import render_views
from panollava.crop.strategies import global_camera
from panollava.data.csv import is_address
from panollava.data.fetch import FetchOptions, fetch_panorama
from panollava.disk import write_file
from panollava.logs import LOG
from panollava.run_folder import find_trained, is_run, recorded_metadata
from panollava.training.precision import Compute, Precision, choose_compute, recorded_compute

PANORAMA_SIZE = (1024, 2048)
"""Rows and columns of the panorama in a picture."""


def command_compute(checkpoint: str, device: str, precision: Precision | None, order: Sequence[str] = ()) -> Compute:
    """The device of a command, with the number format that it names or, where it names none, of a run's training.

    Args:
        checkpoint: a run, or an export, which records no number format; a wrong one is the error of its opening.
        order: stages, the preferred one first, of which one is opened; see ``find_run_folder``.
    """
    recorded: Precision = "auto"
    if precision is not None:
        return choose_compute(device, precision, section="")
    if is_run(folder := Path(checkpoint).expanduser()):
        with suppress(OSError, ValueError):
            recorded = recorded_metadata(find_trained(folder, order)[0]).get("precision", recorded)
    return recorded_compute(device, recorded)


def checked_out(out: Path, images: Sequence[Path], example: str, what: str = "picture is a PNG") -> Path:
    """``out``, checked before any work is done for it.

    Args:
        images: panoramas that are read; one need not be there.
        example: a name with the allowed suffix.
        what: what is written, in words, such as ``answers are a CSV``.

    Raises:
        ValueError: it has another suffix, or is a folder or one of the panoramas.
        OSError: nothing can be written there.
    """
    suffix = Path(example).suffix
    if out.suffix.lower() != suffix:
        raise ValueError(f"out={out}: the {what} file. Give it a name that ends in {suffix}.")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder. Name a file in it, such as out={out / example}.")
    if out.exists() and any(image.exists() and out.samefile(image) for image in images):
        raise ValueError(f"out={out} is the panorama itself, which would be lost. Choose another name.")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error
    return out


def read_twice(image: Path, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """A panorama file at the resolution of a picture, and at the one that the crop needs for its views."""
    whole = [global_camera("resize", PANORAMA_SIZE)]
    return read_panorama(image, whole, PANORAMA_SIZE, crop.panorama_fov_deg), crop.read(image)


def write_out(out: Path, content: str | bytes) -> None:
    """Writes the file of ``out=``.

    Raises:
        OSError: naming the key, if the file cannot be written.
    """
    try:
        write_file(out, content)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> OSError:
    return OSError(f"out={out} cannot be written ({error.strerror or error}). Choose another folder.")


_SUFFIXES = {".jpg", ".jpeg", ".png"}
"""Files with these names are pictures: one with other content is an error."""


def named_panorama(image: str, fetch: FetchOptions) -> Path:
    """The path of ``image``, which is fetched where it is an address; a path need not be there.

    Raises:
        ValueError: an address that gave no picture, or whose host ``fetch.hosts`` does not allow.
        OSError: the folder of fetched pictures cannot be written.
    """
    path = fetch_panorama(image, fetch) if is_address(image) else Path(image).expanduser()
    _warn_of_tilt([path])
    return path


def find_panoramas(image: str, fetch: FetchOptions, key: str = "image") -> list[Path]:
    """The file that ``image`` names, or all files of a folder that are JPEG or PNG, sorted by name.

    ``key`` is named in messages.

    Raises:
        FileNotFoundError: there is no such file or folder, or no picture in the folder.
        ValueError, OSError: as of ``named_panorama``.
    """
    path = named_panorama(image, fetch)
    if not image or not path.exists():
        raise FileNotFoundError(f"{key}={image}: there is no such file or folder. Check the path.")
    if not path.is_dir():
        return [path]
    # A link to nothing is kept, so that it is named among what cannot be read.
    files = sorted(
        one for one in path.iterdir() if not one.name.startswith(".") and (one.is_file() or one.is_symlink())
    )
    found = [one for one in files if one.suffix.lower() in _SUFFIXES or _is_picture(one)]
    if not found:
        raise FileNotFoundError(f"{key}={image}: there is no JPEG or PNG picture in this folder. Name another.")
    _warn_of_tilt(found)
    if others := [one.name for one in files if one not in set(found)]:
        LOG.info("%s: left out, as they are no JPEG or PNG: %d, such as %s.", image, len(others), others[0])
    return found


def _warn_of_tilt(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError), path.open("rb") as file:  # reading it later reports the error
            header = parse_header(file)
            if header is not None and (message := tilt_warning(str(path), header.xmp)):
                LOG.warning("%s", message)


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return parse_header(file) is not None
    except OSError:  # reading it later reports the error
        return True


def look(path: Path, yaw_deg: float, pitch_deg: float, *, covered: Covered | None = None) -> np.ndarray:
    """A perspective view of 90 x 90 degrees of a panorama file, (512, 512, 3) uint8 RGB.

    Args:
        yaw_deg: degrees to the right of the panorama's centre.
        pitch_deg: degrees up.
        covered: degrees that the picture covers, horizontally and vertically; None for the whole sphere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no panorama, or there is no such direction.
    """
    if not (math.isfinite(yaw_deg) and -90 <= pitch_deg <= 90):
        raise ValueError(
            f"yaw {yaw_deg:g}, pitch {pitch_deg:g} is no direction: pitch goes from -90 (down) to 90 (up) degrees."
        )
    size = (512, 512)
    camera = Camera(PERSPECTIVE, math.radians(yaw_deg), math.radians(pitch_deg), 0.0, math.pi / 2, math.pi / 2)
    return render_views(read_panorama(path, [camera], size, covered), [camera], size)[0]
