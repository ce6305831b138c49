"""Folders of boxes in the forms of VOC and YOLO, which the package reads and does not write."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from panollava.data.boxes import BoxAnnotations, Conventions, written_box
from panollava.disk import write_file

VOC_ANGLES = ("center_lon", "center_lat", "bfov_w", "bfov_h", "bfov_roll")


def write_voc(folder: Path, annotations: BoxAnnotations, conventions: Conventions) -> None:
    """Writes a file for each picture, which ``read_voc`` reads with the same conventions. Scores are left out."""
    for name, one in annotations.pictures.items():
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        if name in annotations.sizes:
            size = ElementTree.SubElement(root, "size")
            for key, value in zip(("height", "width"), annotations.sizes[name], strict=True):
                ElementTree.SubElement(size, key).text = str(value)
        for box, kind in zip(one.boxes, one.classes.tolist(), strict=True):
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = annotations.names[kind]
            place = ElementTree.SubElement(thing, "BFOV")
            for key, number in zip(VOC_ANGLES, written_box(box, conventions), strict=True):
                ElementTree.SubElement(place, key).text = repr(number)
        ElementTree.indent(root)
        write_file(folder / f"{_stem(name)}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")


def write_yolo(folder: Path, annotations: BoxAnnotations, conventions: Conventions) -> None:
    """Writes a file for each picture, which ``read_yolo`` reads with the same conventions. Scores are left out."""
    for name, one in annotations.pictures.items():
        lines = [
            " ".join([str(kind), *(repr(value) for value in written_box(box, conventions))])
            for box, kind in zip(one.boxes, one.classes.tolist(), strict=True)
        ]
        write_file(folder / f"{_stem(name)}.txt", "".join(f"{line}\n" for line in lines))


def _stem(name: str) -> str:
    """File of a picture's annotations, without a suffix; raises a ValueError for a name with folders."""
    if Path(name).name != name:
        raise ValueError(f"{name}: the picture is in a folder, and its annotations are files of one folder. Rename it.")
    return Path(name).stem
