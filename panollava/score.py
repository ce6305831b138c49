"""python -m panollava.score <predictions.csv>: scores a file of predictions without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from panollava.checkpoint import write_json
from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.evaluation.read_predictions import KEYED, Form, Scored, read_predictions
from panollava.evaluation.results import METRICS
from panollava.evaluation.scores import score
from panollava.evaluation.statistics import Interval
from panollava.evaluation.words import choose_words
from panollava.logs import LOG, configure_console, counted
from panollava.untrusted import read_document


@dataclass(frozen=True)
class ScoreOptions:
    """Keys of ``conf/score.yaml``; see there."""

    predictions: str
    form: Form
    image_column: str | None
    query_column: str | None
    prediction_column: str | None
    reference_column: str | None
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    clip: str | None
    images: str | None
    device: str
    out: str | None


@entrypoint("score", bare="predictions")
def main(cfg: DictConfig) -> None:
    """Scores one file.

    Args:
        cfg: composed from ``conf/score.yaml`` and the command line.
    """
    configure_console()
    options = _checked(cfg)
    path = Path(options.predictions).expanduser()
    out = Path(options.out).expanduser() if options.out else path.with_name(f"{path.stem}_scores.json")
    words = choose_words(options.words)
    scored = read_predictions(path, options.form, {role: getattr(options, f"{role}_column") for role in KEYED})
    clip = _clip_scores(scored, path, options) if options.clip else None
    report = score(scored, form=options.form, words=words, meteor=options.meteor, clip=clip)
    counts = {"answer": report.answers, "question": report.pairs, "picture": report.images}
    LOG.info("%s: %s", path, ", ".join(counted(number, noun) for noun, number in counts.items()))
    LOG.info("Form: %s. Words: %s.\n\n%s\n", report.form, report.words, report.table())
    beside = path.with_name(METRICS)
    conditions = read_document(beside).get("settings", {}).get("conditions") if beside.is_file() else None
    if conditions is None:
        LOG.info("Nothing beside %s tells which model gave its answers, how, or to which version of the data.", path)
    write_json(out, {"predictions": str(path), "clip": options.clip, "conditions": conditions, **report.record()})
    LOG.info("Scores: %s", out)


def _clip_scores(scored: Sequence[Scored], path: Path, options: ScoreOptions) -> dict[str, Interval]:
    """CLIP-scores, with the pictures that the file names."""
    folder = Path(options.images).expanduser() if options.images else path.parent
    files = {one.image_id: folder / one.image_id for one in scored}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} pictures are not there ({', '.join(missing[:3])} …). Name the folder that "
            "their paths start from with images=<folder>, or leave clip= out."
        )
    from panollava.evaluation.clip import Clip, clip_scores, read_picture
    from panollava.training.precision import choose_compute

    clip = Clip(str(options.clip), device=choose_compute(options.device, "fp32", section="").device)
    return clip_scores(scored, clip, lambda image: read_picture(files[image]))


def _checked(cfg: DictConfig) -> ScoreOptions:
    if OmegaConf.is_missing(cfg, "predictions"):
        raise ValueError("predictions is missing: name a CSV file, such as python -m panollava.score predictions.csv.")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    refuse(check_section(values, ScoreOptions, ""))
    return ScoreOptions(**values)


if __name__ == "__main__":
    main()
