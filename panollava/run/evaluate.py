"""After training: answers to a split and their scores, the model given to the tracker, and the last lines of a run."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from panollava.checkpoint import BASE, BEST, STATE, TRAINED, base_of, find_checkpoint, read_state
from panollava.data.source import FREE_TEXT, DataSource, Question
from panollava.disk import read_document, write_file, writing
from panollava.evaluation.box_words import BoxAnswers, asks_box, score_box_answers
from panollava.evaluation.clip import Clip
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.exact_match import AnswerReport, markdown_table, score_answers, text_table
from panollava.evaluation.gallery import answers_picture
from panollava.evaluation.measure import Groups, Measure, group_lines, group_scores, recorded_scores
from panollava.evaluation.metrics import EXACT, AnswerSet, Scores, compute_scores, find_metrics
from panollava.evaluation.predictions import (
    METRICS,
    UNFINISHED,
    AnswerLog,
    Prediction,
    as_scored,
    read_answers,
    with_groups,
)
from panollava.evaluation.results import (
    BENCHMARK,
    evaluate,
    latency_summary,
    of_benchmark,
    result_folder,
    write_results,
)
from panollava.evaluation.words import Words, choose_words
from panollava.generation import GenerationOptions
from panollava.logs import LOG, counted
from panollava.model.api import PanoLlava
from panollava.model.lora import LORA
from panollava.model.vision import device_kind
from panollava.run.conditions import answer_conditions, describe, differences, mismatch, model_conditions, scoring
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import GREY, check_questions, describe_split, pictures_of, question_batches, split_measure
from panollava.run.evaluate_places import recorded_ap
from panollava.run.features import open_features
from panollava.run.memory import answers_too_large, explained
from panollava.run.preflight import VIEWS
from panollava.run.restore import Restored
from panollava.run.run import Run, answering_stage, awaits_model, wanted_model
from panollava.run.sources import open_source
from panollava.run.tools import Tools
from panollava.run_folder import CONFIG, METADATA, read_metadata
from panollava.stages.protocol import Stage
from panollava.store.feature_maker import FeatureMaker
from panollava.tracking.location import absolute_uri, how_to_view
from panollava.tracking.tracker import ModelLoss, Tracker

SHOWN_ANSWERS = 12
PICTURE = "answers.png"
MEASURE_TAG = "panollava.measure"
"""Tag of a tracked run: the name of the score that ranks models, also recorded as a metric of ``test/``."""


@dataclass(frozen=True)
class Answers:
    """Answers to a split."""

    predictions: Sequence[Prediction]  # in the order of the questions
    image_tokens: int  # tokens that a panorama takes in the language model
    conditions: Mapping[str, Any]  # what the answers depend on
    timing: Mapping[str, Any]  # how their times were measured; empty in older evaluations


@dataclass(frozen=True)
class Evaluation(Answers):
    """Answers to a split, scored and written."""

    report: AnswerReport  # exact match, by question type
    captions: Scores  # the other metrics, such as BLEU
    measure: str  # name of the score that ranks models
    groups: Groups  # scores by the columns of ``data.score_by``
    words: Words  # how texts were split for them
    boxes: BoxAnswers | None  # answers that are to be boxes in words; None without such questions
    folder: Path  # of its files

    def summary(self, title: str) -> str:
        """The table of exact match, for free text and another measure the other scores, and the scores by group."""
        parts = [f"\n{title}, {counted(self.report.count, 'question')}:\n", text_table(self.report)]
        if self.boxes is not None:
            parts += ["", *self.boxes.lines()]
        if set(self.report.kinds) == {FREE_TEXT} or self.measure != EXACT:
            parts += ["", f"Caption scores with words={self.words}:", *self.captions.lines()]
        if self.measure in self.captions.scores:
            parts += ["", f"Measure: {self.measure} {self.captions.scores[self.measure]}"]
        if self.groups:
            parts += ["", *group_lines(self.groups)]
        return "\n".join([*parts, ""])


def evaluate_run(run: Run, trained: Stage | None) -> None:
    """Evaluates the run's last stage, if it can answer and was not evaluated yet.

    Args:
        trained: the last stage with its best weights, or None where every stage was finished before.
    """
    last, test = answering_stage(run.cfg.stage.run, run.stages), run.data.test
    if run.cfg.dry_run:
        LOG.info("Dry run: the evaluation is left out.")
    if not run.procs.is_main or run.cfg.dry_run or test is None or last is None:
        return
    options, folder = EvaluationOptions(**run.plain["evaluation"]), run.experiment.stage_folder(last)
    is_done = not run.evaluation_due
    if is_done and not (result_folder(Path(options.results_dir), run.experiment.name) / UNFINISHED).is_dir():
        return
    settings = {key: run.plain[key] for key in ("crop", "generation")}
    settings |= {"stage": last, "model": run.backbones.model, "inputs": run.inputs(last)}
    subject = Restored(find_checkpoint(folder), {**settings, "experiment_name": run.experiment.name})
    if is_done:
        prompt = run.backbones.prompt.format.record()
        of_model: dict[str, Any] = {"prompt": prompt, "precision": run.compute.name, "in_4bit": True}
        conditions = answer_conditions(subject.checkpoint, settings, test, run.known, **of_model)
        for log in answer_logs(options, run.experiment.name, conditions):
            log.discard()  # of a process that died just after its result was on record
        return
    model = None if trained is None or trained.name != last or run.is_sharded else trained.composite
    if model is not None:
        pano = PanoLlava(model.eval(), run.backbones.prompt, run.backbones.crop)
    else:  # finished earlier, but stopped before its evaluation was; or this process has only a shard of it
        pano = _opened(run, last, device=run.compute.device, dtype=run.compute.dtype)
    pano.generation = GenerationOptions(**run.plain["generation"])
    result = answer_split(
        subject,
        run.plain["data"],
        "test",
        options,
        run.tools,
        pano=pano,
        source=test,
        measure=run.measure,
        written=lambda folder: run.experiment.record(last, evaluated=str(folder)),
    )
    LOG.info("%s", result.summary("Test split"))
    LOG.info("Predictions and metrics: %s", result.folder)


def _opened(run: Run, stage: str, *, in_4bit: bool = True, **device: Any) -> PanoLlava:
    """The model of a finished stage, of the backbones of this start: their folders may have moved since.

    ``in_4bit`` keeps the language model in four bits where training did; it cannot be saved in them.
    """
    folder, model = run.experiment.stage_folder(stage), dict(run.backbones.model)
    if not in_4bit:
        model["language"] = {**model["language"], "load_in_4bit": False}
    settings = {**read_metadata(folder), "model": model}
    return PanoLlava.from_checkpoint(find_checkpoint(folder), settings, **device)


def answer_split(
    run: Restored,
    data: Mapping[str, Any],
    split: str,
    options: EvaluationOptions,
    tools: Tools,
    *,
    pano: PanoLlava,
    conditions: Mapping[str, Any] | None = None,
    source: DataSource | None = None,
    measure: Measure | None = None,
    written: Callable[[Path], None] | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on a split, and records the result on disk and in the tracker.

    Args:
        conditions: of ``answer_conditions``, where they were computed before the model was open.
        source: the split, where it is open and known to the tracker.
        measure: of the split, where it was chosen before.
        written: called when all files are on disk, before the answer logs are removed.

    Raises:
        ValueError: questions with too many or unknown tokens for the model.
    """
    experiment, known = run.settings["experiment_name"], tools.known
    of_model = model_conditions(pano, tools.compute)
    if source is None:
        source = open_source(dict(data), split, pano.crop)
        tools.tracker.inputs([describe_split(data, split, source)])
    conditions = conditions or answer_conditions(run.checkpoint, run.settings, source, known, **of_model)
    conditions = {key: of_model.get(key, value) for key, value in conditions.items()}
    new_tokens = pano.generation.max_new_tokens
    check_questions(source, pano.prompt, pano.limits, image_tokens=pano.image_tokens, new_tokens=new_tokens)
    metrics = find_metrics(options.metrics, "evaluation.metrics")
    ranking = (measure or split_measure(source, options)).metric
    if ranking.name not in (EXACT, *(one.name for one in metrics)):
        metrics.append(ranking)
    clip = Clip(options.clip, device=pano.model.device, key="evaluation.clip") if options.clip else None
    logs = answer_logs(options, experiment, conditions)
    answers, blind = answer_twice(pano, source, options, tools, logs)
    predictions = with_groups(answers, source.questions())
    report = score_answers(predictions, blind)
    words = choose_words(options.words)
    scored = AnswerSet(as_scored(predictions), words, options.meteor, pictures_of(source), clip)
    captions = compute_scores(scored, metrics)
    groups, boxes = group_scores(scored, ranking), score_box_answers(predictions)
    timing = {
        "device": device_kind(pano.model.device),
        "batch_size": options.batch_size,
        "encoder": "not timed, its features are stored" if tools.store.enabled else "timed",
    }
    settings = {
        **run.subject(known),
        "split": split,
        "timing": timing,
        "data": dict(data),
        "max_samples": options.max_samples,
        "image_tokens": pano.image_tokens,
        "conditions": conditions,
        "scores": scoring(options, data),
    }
    folder = write_results(
        Path(options.results_dir),
        experiment,
        predictions,
        report,
        captions={"form": "grouped", "words": words, "clip": options.clip, **captions.record()},
        measure=ranking.name,
        groups=groups,
        boxes=boxes,
        settings=settings,
        key=logs[0].key,
        resumed=logs[0].resumed,
    )
    draw_answers(source, predictions, folder / PICTURE)
    found = (report, captions, ranking.name, groups, words, boxes, folder)
    result = Evaluation(predictions, pano.image_tokens, conditions, timing, *found)
    _track(result, tools.tracker)
    tools.tracker.flush()  # an evaluation on record is not made again
    if written is not None:
        written(folder)
    for log in logs:  # last, so that an evaluation that is stopped before continues from them
        log.discard()
    return result


def answer_logs(options: EvaluationOptions, experiment: str, conditions: Mapping[str, Any]) -> list[AnswerLog]:
    """Answer logs of an unfinished evaluation: for the pictures, and for blank ones."""
    folder = result_folder(Path(options.results_dir), experiment)
    return [AnswerLog(folder, {**conditions, "blank": blank}) for blank in (False, True)]


def answer_twice(
    pano: PanoLlava, source: DataSource, options: EvaluationOptions, tools: Tools, logs: Sequence[AnswerLog]
) -> tuple[list[Prediction], list[Prediction] | None]:
    """A model's answers to a split, and those with blank pictures where the options ask for them.

    Args:
        logs: of ``answer_logs``.
    """
    features = open_features(tools.store, pano.model.vision.tower, pano.crop)
    ask = partial(answer_questions, pano, source, options, num_workers=tools.num_workers, features=features)
    LOG.info("Decoding of %s: %s.", source.name, pano.generation.summary)
    with tools.compute.autocast():
        answers = ask(log=logs[0], log_samples=options.log_samples)
        return answers, ask(log=logs[1], blank=True) if options.blank else None


def answer_questions(
    pano: PanoLlava,
    source: DataSource,
    options: EvaluationOptions,
    *,
    num_workers: int = 0,
    features: FeatureMaker | None = None,
    blank: bool = False,
    log_samples: bool = False,
    log: AnswerLog | None = None,
) -> list[Prediction]:
    """A model's answers to a split's questions.

    Args:
        features: of the model's encoder; None leaves encoding to the model.
        blank: show plain grey in place of every view.
        log_samples: write answers to the log while they are generated.
        log: keeps the answers until all are given; those it has are not generated again.
    """
    known = {} if log is None else dict(log.answers)
    name = f"{source.name}, blank pictures" if blank else source.name
    if known:
        LOG.info("%s: %d answers are there from an evaluation that was stopped.", name, len(known))
    elif log is not None and log.other is not None and (found := differences(log.other, log.settings)):
        LOG.info(
            "%s: an evaluation that did not end has other conditions (%s), and is not continued.", name, describe(found)
        )
    left = None if options.max_samples is None else options.max_samples - len(known)
    if left is not None and left <= 0:
        return list(known.values())[: options.max_samples]
    pixel = GREY if blank else None
    scores: dict[str, float] | None = {} if any(map(asks_box, source.questions())) else None
    batches = question_batches(pano, source, options.batch_size, num_workers, known, features=features, blank=pixel)
    with explained(lambda: answers_too_large(options.batch_size, pano.generation.max_new_tokens, kept=log is not None)):
        given = evaluate(
            pano.answer if scores is None else partial(pano.answer, scores=scores),
            batches,
            total=len(source.questions()) - len(known),
            max_samples=left,
            log_samples=log_samples,
            log_interval=options.log_interval,
            log_max_samples=options.log_max_samples,
            name=name,
            keep=None if log is None else log.add,
            log_probabilities=scores,
        )
    return [*known.values(), *given]


def draw_answers(source: DataSource, predictions: Sequence[Prediction], path: Path) -> None:
    """A picture of the first panorama with the answers about it."""
    first = next(one for one in source.questions() if one.image_id == predictions[0].image_id)
    about_it = [one for one in predictions if one.image_id == first.image_id][:SHOWN_ANSWERS]
    write_file(path, encode_png(answers_picture(source.question_panorama(first), about_it)))


def _track(result: Evaluation, tracker: Tracker) -> None:
    predictions = result.predictions
    values = result.report.metrics() | {name: interval.value for name, interval in result.captions.scores.items()}
    latency = latency_summary(predictions)
    values |= {f"latency_{name}": latency[name] for name in ("mean_s", "median_s", "p95_s")}
    values |= {} if result.boxes is None else result.boxes.metrics()
    for column, members in result.groups.items():
        for value, one in members.items():
            scores = {metric.replace(" ", "_"): interval.value for metric, interval in one.scores.items()}
            values |= {f"{metric}/{column}/{value or 'empty'}": score for metric, score in scores.items()}
    tracker.metrics({f"test/{name}": value for name, value in values.items()}, step=0)
    tracker.tags({MEASURE_TAG: result.measure})
    tracker.folder(result.folder, "evaluation")
    tracker.text(markdown_table(result.report), "evaluation/table.md")
    track_samples(predictions, tracker)


def track_samples(predictions: Sequence[Prediction], tracker: Tracker) -> None:
    """Gives about 50 answers to the tracker as a table."""
    rows = [
        {
            "question": one.question,
            "prediction": one.prediction,
            "reference": one.references[0],
            "kind": one.kind,
            "image": one.image_id,
        }
        for one in predictions[:: max(1, len(predictions) // 50)]
    ]
    tracker.table(rows, "sample_answers.json")


def find_answers(
    run: Restored, source: DataSource, results_dir: Path, max_samples: int | None, conditions: Mapping[str, Any]
) -> Answers | None:
    """The newest answers on disk under these conditions; the log names them, or the difference of the nearest ones.

    Args:
        max_samples: number of questions; None for all.
        conditions: see ``run.conditions``.
    """
    nearest: tuple[Path, dict[str, tuple[Any, Any]]] | None = None
    unrecorded = None
    folder, questions = result_folder(results_dir, run.settings["experiment_name"]), source.questions()[:max_samples]
    for path in sorted(folder.glob(f"predictions_*/{METRICS}"), reverse=True):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            settings = metrics["settings"]
        except (json.JSONDecodeError, KeyError):
            LOG.warning("%s cannot be read and is skipped.", path)
            continue
        if of_benchmark(settings) != conditions.get(BENCHMARK):
            continue  # a benchmark's answers, or another benchmark's, are no candidates at all
        found = mismatch(settings, conditions, max_samples)
        if found is None and settings.get("fingerprint") == conditions["weights"]:
            unrecorded = path.parent
        if found and settings.get("stage") == run.stage and (nearest is None or len(found) < len(nearest[1])):
            nearest = path.parent, found
        if found is None or found or "image_tokens" not in settings:
            continue
        try:
            answers = read_answers(path.parent, metrics)[:max_samples]
        except (OSError, ValueError, KeyError) as error:
            LOG.warning("%s is skipped: %s.", path.parent, str(error).rstrip("."))
            continue
        if difference := first_difference(questions, answers):
            LOG.warning("%s was changed since it was written (%s) and is skipped.", path.parent, difference)
            continue
        LOG.info("Reusing the answers in %s, given on %s.", path.parent, metrics.get("created", "an unknown date"))
        return Answers(answers, int(settings["image_tokens"]), settings["conditions"], settings.get("timing") or {})
    if nearest is not None:
        LOG.info("The answers in %s are not used: %s.", nearest[0], describe(nearest[1]))
    elif unrecorded is not None:
        LOG.info("%s does not record the conditions of its answers, so they are not used.", unrecorded)
    return None


def first_difference(first: Sequence[Question | Prediction], other: Sequence[Question | Prediction]) -> str:
    """The first difference between two lists of questions, with its sample id; empty where they are the same."""
    by_id = {one.sample_id: one for one in other}
    for one in first:
        if (same := by_id.pop(one.sample_id, None)) is None:
            return f"{one.sample_id} is in only one of them"
        for part in ("image_id", "history", "question", "references", "question_type"):
            values = getattr(one, part), getattr(same, part)
            if values[0] != values[1]:
                return f"{part} of {one.sample_id}: {values[0]!r} and {values[1]!r}"
    return f"{next(iter(by_id))} is in only one of them" if by_id else ""


def keep_model(run: Run) -> None:
    """Gives the last stage's best checkpoint to the tracker, as it is or as an export, if ``tracking`` says so."""
    last = run.cfg.stage.run[-1]
    if not (run.procs.is_main and awaits_model(run) and run.tracker.run_id):
        return
    folder = run.experiment.stage_folder(last)
    pano = _opened(run, last, in_4bit=False) if run.tracker.model_form == "export" else None
    if pano is not None:
        pano.merge_lora_weights()
    with ExitStack() as stack:
        with writing(run.experiment.root):
            # In the run's folder, so that what waits for a server can be links instead of copies. What is not
            # removed here is removed at the next start.
            temporary = TemporaryDirectory(prefix=".tmp-model-", dir=run.experiment.root, ignore_cleanup_errors=True)
            target = Path(stack.enter_context(temporary)) / "model"
            if pano is not None:
                pano.save_pretrained(target)
            else:
                _copy_checkpoint(folder, target)
            for path in target.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner alone
        measured_on = f"{last}, validation data {' '.join(run.inputs(last)['val'].values())}"
        if run.stages[last].answers:
            measured_on += f", {run.cfg.model.language.name}"
        run.tracker.model(target, ModelLoss(read_state(find_checkpoint(folder))["validation_loss"], measured_on))
    finished = run.experiment.state(last).get("finished")
    run.experiment.record(last, kept_model={**(wanted_model(run) or {}), "finished": finished})


def _copy_checkpoint(folder: Path, target: Path) -> None:
    """Copies what opens a stage's best checkpoint, and nothing else."""
    checkpoint = find_checkpoint(folder)
    for source, place in ((checkpoint, BEST), (base_of(checkpoint), BASE)):
        if source is not None:
            (target / place).mkdir(parents=True)
            for name in (TRAINED, STATE):
                shutil.copyfile(source / name, target / place / name)
    for name in (METADATA, CONFIG):
        shutil.copyfile(folder / name, target / name)
    if (folder / LORA).is_dir():
        shutil.copytree(folder / LORA, target / LORA)


def final_score(run: Run) -> float | None:
    """The measure of a run's evaluation on record, as a sweeper that searches for the best setting needs it.

    0 for a dry run, which has no score; None in processes beside the first, and where no evaluation is on disk.
    """
    if run.cfg.dry_run:
        return 0.0
    if not run.procs.is_main:
        return None
    last = run.cfg.stage.run[-1]
    folder = run.experiment.evaluated(last)
    if folder is None or not (folder / METRICS).is_file():
        return None
    if run.stages[last].finds:
        return recorded_ap(folder)
    measure, scores = recorded_scores(read_document(folder / METRICS))
    return scores[measure].value


def summarize(run: Run) -> None:
    """Logs where checkpoints, pictures and tracked metrics are."""
    if not run.procs.is_main:
        return
    if run.cfg.dry_run:
        LOG.info("Dry run: everything was built and one batch went through each stage; nothing was kept.")
        return
    if not run.pending:
        LOG.info("Every stage of this config is finished already; overwrite=true would train it anew.")
    for name in run.cfg.stage.run:
        best = run.experiment.stage_folder(name) / BEST
        if best.exists():
            LOG.info("Stage %s: %s", name, best)
    evaluated = run.experiment.evaluated(run.cfg.stage.run[-1])
    pictures = [run.experiment.root / VIEWS, *([evaluated / PICTURE] if evaluated else [])]
    LOG.info("Pictures: %s", ", ".join(str(path) for path in pictures if path.is_file()))
    if run.tracker.run_id:
        LOG.info("Compare runs: %s", how_to_view(absolute_uri(run.cfg.tracking.uri)))
