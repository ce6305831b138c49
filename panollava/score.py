"""python -m panollava.score <predictions.csv>: scores a file of predictions without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.disk import read_document, write_json
from panollava.logs import LOG, configure_console, counted

if TYPE_CHECKING:
    from panollava.evaluation.metrics import AnswerSet


@dataclass(frozen=True)
class ScoreOptions:
    """Keys of ``conf/score.yaml``; see there."""

    predictions: str
    form: Literal["grouped", "single"]
    image_column: str | None
    query_column: str | None
    prediction_column: str | None
    reference_column: str | None
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    clip: str | None
    metrics: list[str] | None
    score_by: list[str] | None
    images: str | None
    device: str
    out: str | None


@entrypoint("score", bare="predictions")
def main(cfg: DictConfig) -> None:
    """Scores one file."""
    from panollava.evaluation.measure import AUTO, choose_measure, group_lines, group_scores, groups_record
    from panollava.evaluation.metrics import AnswerSet, find_metrics, metrics_record, score
    from panollava.evaluation.predictions import KEYED, METRICS, read_predictions
    from panollava.evaluation.words import choose_words
    from panollava.run.sections import metrics_problems, read_config

    configure_console()
    example = "name a CSV file, such as python -m panollava.score predictions.csv"
    options, _ = read_config(cfg, ScoreOptions, required=["predictions"], example=example, check=metrics_problems)
    path = Path(options.predictions).expanduser()
    out = Path(options.out).expanduser() if options.out else path.with_name(f"{path.stem}_scores.json")
    words = choose_words(options.words)
    columns = {role: getattr(options, f"{role}_column") for role in KEYED}
    scored = read_predictions(path, options.form, columns, options.score_by)
    answers = AnswerSet(scored, words, options.meteor)
    if options.clip or options.images:
        answers = _with_pictures(answers, path, options)
    report = score(answers, find_metrics(options.metrics, "metrics"), form=options.form)
    measure = choose_measure(AUTO, answers)
    groups = group_scores(answers, measure.metric)
    counts = {"answer": report.answers, "question": report.pairs, "picture": report.images}
    LOG.info("%s: %s", path, ", ".join(counted(number, noun) for noun, number in counts.items()))
    LOG.info("Form: %s. Words: %s. %s\n\n%s\n", report.form, report.words, measure, report.table())
    if groups:
        LOG.info("%s\n", "\n".join(group_lines(groups)))
    beside = path.with_name(METRICS)
    conditions = read_document(beside).get("settings", {}).get("conditions") if beside.is_file() else None
    if conditions is None:
        LOG.info("Nothing beside %s records which model gave its answers, how, or to which version of the data.", path)
    record = {"predictions": str(path), "clip": options.clip, "conditions": conditions, **report.record()}
    record |= {"measure": measure.name, "groups": groups_record(groups)}
    write_json(out, record | metrics_record(options.metrics))
    LOG.info("Scores: %s", out)


def _with_pictures(answers: AnswerSet, path: Path, options: ScoreOptions) -> AnswerSet:
    """The answers with the pictures that the file names, and with the CLIP."""
    folder = Path(options.images).expanduser() if options.images else path.parent
    files = {one: folder / one for one in answers.images}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} pictures are not there ({', '.join(missing[:3])} …). Name the folder that "
            "their paths start from with images=<folder>, or leave clip= out."
        )
    # transformers takes seconds to import.
    from panollava.evaluation.clip import Clip, read_picture
    from panollava.training.precision import choose_compute

    clip = None
    if options.clip:
        clip = Clip(options.clip, device=choose_compute(options.device, "fp32", section="").device)
    return replace(answers, pictures=lambda image: read_picture(files[image]), clip=clip)


if __name__ == "__main__":
    main()
