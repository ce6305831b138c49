"""python -m panollava.check data=…: reads a whole data set and tells what there is and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from omegaconf import DictConfig, OmegaConf

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.crop.partial import Covered
from panollava.logs import configure_console, say
from panollava.run.data_check import Split, decode_all, look_at
from panollava.run.sources import check_data, shared_pictures


@dataclass(frozen=True)
class CheckOptions:
    """Plain keys of ``conf/check.yaml``; see there."""

    splits: Annotated[list[Literal["train", "val", "test"]], MinLen(1)]
    full: bool
    texts: Annotated[int, Interval(ge=0)] | None
    num_workers: Annotated[int, Interval(ge=0)]
    allow: str | list[str]


@dataclass(frozen=True)
class PictureOptions:
    """The key of ``crop`` that says something of the files."""

    panorama_fov_deg: Covered | None


@entrypoint("check")
def main(cfg: DictConfig) -> None:
    """Checks one data set.

    Args:
        cfg: composed from ``conf/check.yaml`` and the command line.
    """
    configure_console()
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    options, covered = _checked(values)
    splits = _looked_at(values, options, covered)
    for split in splits:
        for problem in split.problems:
            say(problem)
    for split in splits:
        say(split.line())
    for line in shared_pictures({split.name: split.source for split in splits if split.source is not None}):
        say(f"Note: {line}.")
    if options.texts != 0:
        _count_texts(splits, values, options.texts)
    _conclude(splits, values["data"].get("on_error"))


def _looked_at(values: dict[str, Any], options: CheckOptions, covered: Covered | None) -> list[Split]:
    def look() -> list[Split]:
        return [look_at(values["data"], name, covered) for name in dict.fromkeys(options.splits)]

    splits = look()
    if not options.full:
        return splits
    pictures = [picture for split in splits for picture in split.files]
    return look() if decode_all(pictures, covered, options.num_workers) else splits


def _count_texts(splits: list[Split], values: dict[str, Any], most: int | None) -> None:
    from panollava.run.data_check import text_lines  # here, as tokenizers bring in torch

    sources = {split.name: split.source for split in splits if split.source is not None}
    if sources:
        say(f"Text tokens of {values['model']['language']['name']}:")
        for line in text_lines(sources, values["model"]["language"], values["stage"], most):
            say(f"  {line}")


def _conclude(splits: list[Split], on_error: str | None) -> None:
    bad = {split.name: split.bad for split in splits if split.bad}
    if not bad:
        say("Nothing is wrong.")
        return
    counts = ", ".join(f"{count:,} in {name}" for name, count in bad.items())
    if on_error == "skip" and all(split.source is not None for split in splits):
        say(f"Bad: {counts}; data.on_error=skip leaves them out.")
        return
    raise ValueError(
        f"bad entries or files: {counts}. They are named above. Mend them; bad entries may also be deleted, or left "
        "out with data.on_error=skip."
    )


def _checked(values: dict[str, Any]) -> tuple[CheckOptions, Covered | None]:
    sections = ("crop", "data", "model", "stage")
    plain = {key: value for key, value in values.items() if key not in sections}
    problems = check_section(plain, CheckOptions, "") + check_data(values["data"])
    crop = {"panorama_fov_deg": values["crop"].get("panorama_fov_deg")}
    problems += check_section(crop, PictureOptions, "crop")
    refuse(problems)
    covered = crop["panorama_fov_deg"]
    return CheckOptions(**plain), None if covered is None else (covered[0], covered[1])


if __name__ == "__main__":
    main()
