"""The splits of a run: their loaders, checks of their texts, digests, and overrides of the command line."""

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from panollava.batch import Batch
from panollava.crop.places import PlaceEncoder
from panollava.crop.render import check_workers
from panollava.data.augment import Augment, AugmentOptions, check_turnable
from panollava.data.box_files import box_files
from panollava.data.csv import LISTED_PROBLEMS
from panollava.data.dataset import PanoDataset, QuestionDataset, TextEncoder
from panollava.data.loader import Collate, StageLoader, eval_loader
from panollava.data.source import DataSource, Question, Record
from panollava.evaluation.measure import Measure, as_asked, choose_measure
from panollava.evaluation.metrics import AnswerSet
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
from panollava.prompt import IMAGE_TOKEN, ChatPrompt, Encoded, Limits
from panollava.run.config_check import EvaluationOptions
from panollava.run.options import AskOptions
from panollava.run.sources import BatchOptions, open_splits, part_of, source_arguments
from panollava.stages.registry import Targets
from panollava.store.feature_maker import FeatureMaker
from panollava.store.identity import FileIdentity
from panollava.tracking.tracker import Dataset
from panollava.training.distributed import DistributedContext
from panollava.training.options import StageOptions

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}
DIGEST_LENGTH = 16
GREY = 128
"""Value of every pixel of a blank picture."""
READ_AS = (
    "dir", "image_dir", "query_template", "on_error", "image_column", "query_column", "annotation_column", "score_by",
)  # fmt: skip
"""Keys of ``data`` that say how a table is read; one that the command line names is read as the run's was."""


@dataclass
class RunData:
    """The splits of a run.

    Attributes:
        train, val: for every stage.
        test: for evaluation; None where it is switched off.
        backbones: for the crop, the prompt and the number of image tokens.
        augment: how training pictures are changed at random.
        shared_prefix: whether training samples about one panorama share what is computed of it.
    """

    train: DataSource
    val: DataSource
    test: DataSource | None
    backbones: Backbones
    augment: AugmentOptions = AugmentOptions()  # noqa: RUF009  frozen
    shared_prefix: bool = False

    @property
    def splits(self) -> dict[str, DataSource]:
        """The splits that there are, by name."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: source for name, source in found.items() if source is not None}

    @cached_property
    def records_a_panorama(self) -> int:
        """How many training records are about one panorama, on average."""
        pictures = {self.train.image_id(index) for index in range(len(self.train))}
        return max(1, round(len(self.train) / len(pictures)))

    def batches(
        self,
        targets: Targets | None,
        options: StageOptions,
        *,
        seed: int = 0,
        procs: DistributedContext | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        validation_batches: int | None = None,
        features: FeatureMaker | None = None,
        share: bool = True,
        places: PlaceEncoder | None = None,
    ) -> StageLoader:
        """Training windows and validation batches of a stage.

        Args:
            targets: the tokens that it learns; None for a stage without text.
            procs: which samples this process takes; None for a single process.
            validation_batches: at most this many; None for all.
            features: of a frozen encoder; None leaves encoding to the model.
            share: as ``shared_prefix`` says; False never.
            places: makes the targets of what is where; None for a stage that does not learn it.
        """
        crop, procs = self.backbones.crop, procs or DistributedContext()
        check_workers(crop.device, num_workers)
        encoder = None if targets is None else self.text(targets, options)
        encode = None if encoder is None else encoder.record
        collate = Collate()
        if encoder is not None:
            collate = Collate(encoder.prompt.tokenizer.pad_token_id or 0, image_id=encoder.prompt.image_id)
        store = None if features is None else features.store
        augment = Augment(self.augment, seed) if self.augment.is_on else None
        return StageLoader(
            PanoDataset(self.train, crop, encode, store, augment, places),
            PanoDataset(self.val, crop, encode, store, None, places),
            collate,
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            seed=seed,
            rank=procs.rank,
            world_size=procs.world_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            validation_batches=validation_batches,
            complete=None if features is None else features.complete,
            share=share and self.shared_prefix and encoder is not None,
        )

    def text(self, targets: Targets, options: StageOptions) -> TextEncoder:
        """Encodes the texts of a stage's records as token ids and targets."""
        return TextEncoder(self.backbones.prompt, self.backbones.image_tokens, options.max_text_length, targets)


def open_data(data: dict[str, Any], backbones: Backbones, *, evaluate: bool) -> RunData:
    """Opens the splits of a ``data`` section, and checks their files; ``evaluate``: with the test split."""
    splits = open_splits(data, ("train", "val", "test") if evaluate else ("train", "val"), backbones.crop)
    test = splits.get("test")
    augment = AugmentOptions(**part_of(data, AugmentOptions))
    if augment.turns:
        check_turnable(splits["train"])
    shared = BatchOptions(**part_of(data, BatchOptions)).shared_prefix
    if shared and augment.is_on:
        raise ValueError(
            "data.shared_prefix=true computes a panorama once for its records, and data.augment=true changes it for "
            "each by itself. Choose one of them."
        )
    result = RunData(splits["train"], splits["val"], test, backbones, augment, shared)
    if augment.is_on:
        LOG.info("Training pictures change from epoch to epoch (data.augment), so their features are not kept.")
    LOG.info(
        "Data %s: %d training and %d validation records%s.",
        data["name"], len(result.train), len(result.val), f", {len(test)} for the test" if test else "",
    )  # fmt: skip
    return result


def question_batches(
    pano: PanoLlava,
    source: DataSource,
    batch_size: int,
    num_workers: int,
    skip: Container[str] = (),
    *,
    features: FeatureMaker | None = None,
    blank: int | None = None,
) -> Iterator[tuple[list[Question], Batch]]:
    """A split's questions as left-padded batches for a model.

    Args:
        skip: sample ids of questions to leave out.
        features: of the model's encoder; None leaves encoding to the model.
        blank: value of every pixel, in place of the panoramas; None shows these.
    """
    check_workers(pano.crop.device, num_workers)
    encoder = TextEncoder(pano.prompt, pano.image_tokens)
    store = None if features is None else features.store
    dataset = QuestionDataset(source, pano.crop, encoder.question, skip, store, blank)
    pad = pano.prompt.tokenizer.pad_token_id or 0
    collate = Collate(pad_id=pad, padding_side="left")
    complete = None if features is None else features.complete
    return eval_loader(dataset, collate, batch_size=batch_size, num_workers=num_workers, complete=complete)


def data_name(options: AskOptions, data: Mapping[str, Any]) -> str:
    """The name of the data in reports: that of the file that was given, else of the data set and its split."""
    if options.csv_input is not None:
        return Path(options.csv_input).name
    level = data.get("level", 1) if data.get("type") == "world" else 1
    return f"{data['name']}{'' if level == 1 else f'-level{level}'}-{options.split}"


def data_overrides(
    options: AskOptions, recorded: Mapping[str, Any], *, turn_deg: float | None = None, learnt: Sequence[str] = ()
) -> dict[str, Any]:
    """A run's recorded ``data`` section with the changes of the command line.

    Args:
        turn_deg: rotation of every panorama of the built-in world.
        learnt: classes of a run that finds boxes; a file that is named is then one of boxes.

    Raises:
        ValueError: keys of the built-in world are given and the data are others.
    """
    data = dict(recorded)
    world = {
        f"{options.split}_scenes": options.world_scenes,
        "seed": options.world_seed,
        "level": options.world_level,
        "turn_deg": turn_deg,
    }
    changes = {key: value for key, value in world.items() if value is not None}
    if options.csv_input is not None and learnt:
        own = data if data["type"] == "annotated" else {"type": "annotated", "name": "boxes"}
        data = {**own, f"{options.split}_boxes": options.csv_input}
        if Path(options.csv_input).expanduser().is_dir():  # VOC and YOLO files do not name their classes
            data["classes"] = data.get("classes") or list(learnt)
    elif options.csv_input is not None:
        kept = {key: data[key] for key in READ_AS if key in data}
        data = {"type": "files", "name": "csv", f"{options.split}_csv": options.csv_input, **kept}
    if changes and data["type"] != "world":
        raise ValueError(f"{', '.join(changes)}: options of the built-in world; the data are {data['type']}.")
    if options.score_by is not None:
        if data["type"] != "files":
            raise ValueError(f"score_by names columns of data files; the data are {data['type']}.")
        data["score_by"] = options.score_by
    return {**data, **changes}


def evaluation_options(options: AskOptions, recorded: Mapping[str, Any], **own: Any) -> EvaluationOptions:
    """How a command asks a run: by default for its answers alone, in batches as recorded of it; ``own`` are others."""
    quiet = {"blank": False, "words": "auto", "meteor": False, "log_samples": False, "log_max_samples": 0}
    size, folder = options.batch_size or recorded["batch_size"], options.results_dir
    return EvaluationOptions(**{**quiet, **own, "enabled": True, "batch_size": size, "results_dir": folder})


def pictures_of(source: DataSource) -> Callable[[str], np.ndarray]:
    """The panoramas of a split's questions, by their ids."""
    first = {one.image_id: one for one in reversed(source.questions())}
    return lambda image_id: source.question_panorama(first[image_id])


def split_measure(source: DataSource, options: EvaluationOptions) -> Measure:
    """The measure of all questions of a split, named in the log; see ``choose_measure``."""
    asked = as_asked(source.questions())
    answers = AnswerSet(asked, meteor=options.meteor, pictures=pictures_of(source), clip=options.clip)
    found = choose_measure(options.measure, answers)
    LOG.info("%s: %s", source.name, found)
    return found


def check_records(source: DataSource, encoder: TextEncoder, limits: Limits) -> None:
    """Refuses training records with too many or unknown tokens for a language model.

    Raises:
        ValueError: naming their file and rows.
    """
    tokenizer, longest = encoder.prompt.tokenizer, encoder.max_text_length
    unknown = {token for token, number in tokenizer.get_vocab().items() if number >= limits.rows} - {IMAGE_TOKEN}
    fits = longest is not None and encoder.image_tokens + longest <= limits.positions
    if fits and not unknown:
        return
    records: Iterable[Record] = (source.record(index, 0) for index in range(len(source)))
    if fits and unknown <= tokenizer.get_added_vocab().keys():
        # The first record shows the tokens of the chat format; others can have such a token only if they spell it.
        spelt = re.compile("|".join(map(re.escape, unknown)))
        records = (each for at, each in enumerate(records) if at == 0 or spelt.search(str(each.turns)))
    _check(source, ((each.sample_id, encoder.record(each)) for each in records), encoder.prompt, limits)


def check_questions(
    source: DataSource, prompt: ChatPrompt, limits: Limits, *, image_tokens: int, new_tokens: int
) -> None:
    """Refuses a split whose questions have too many or unknown tokens for a language model.

    Raises:
        ValueError: naming its file and rows.
    """
    encoder = TextEncoder(prompt, image_tokens)
    texts = ((question.sample_id, encoder.question(question)) for question in source.questions())
    _check(source, texts, prompt, limits, new_tokens)


def _check(
    source: DataSource, texts: Iterable[tuple[str, Encoded]], prompt: ChatPrompt, limits: Limits, new_tokens: int = 0
) -> None:
    """Refuses texts that do not fit, given with their sample ids."""
    rows: dict[str, list[str]] = {}
    for name, text in texts:
        if problem := prompt.misfit(text, limits, new_tokens):
            rows.setdefault(problem, []).append(_place(name, source))
    if not rows:
        return
    found = [
        f"  {places[0]}{f' and {len(places) - 1} more' if places[1:] else ''}: {problem}"
        for problem, places in rows.items()
    ]
    more = [f"  and {len(found) - LISTED_PROBLEMS} lines more"] if len(found) > LISTED_PROBLEMS else []
    lines = [f"{getattr(source, 'path', source.name)}: the language model cannot be given all texts."]
    lines += [*found[:LISTED_PROBLEMS], *more]
    if any(problem.endswith("positions") for problem in rows):
        lines.append(
            "Shorten them, lower max_new_tokens or crop.overlap, or choose a resampler with fewer tokens or "
            "a longer language model."
        )
    else:
        lines.append(
            "The tokenizer got tokens that the model was not resized for: take them out of the texts and of the chat "
            "template, or save a model with resized embeddings."
        )
    raise ValueError("\n".join(lines))


def _place(sample_id: str, source: DataSource) -> str:
    """The position of a sample in its file, such as ``row 5``."""
    return re.sub(r"^(row|line|entry)(\d+)", r"\1 \2", sample_id.removeprefix(f"{source.name}-"))


def describe_split(data: Mapping[str, Any], split: str, source: DataSource) -> Dataset:
    """A split of a ``data`` section as the tracker records it; ``source`` is the same split, opened."""
    options = _content(data, split)
    path = _file(options)
    origin: dict[str, Any] = {"tags": {key: str(value) for key, value in options.items()}}
    return Dataset(
        name=source.name,
        digest=digest_of(data, split),
        source_type="code" if path is None else "local",
        source=json.dumps(origin if path is None else {"uri": str(path)}, ensure_ascii=False),
        profile=json.dumps({"num_rows": len(source)}),
        context=CONTEXTS[split],
    )


def digest_of(data: Mapping[str, Any], split: str) -> str:
    """Digest of a split's content: of its file's bytes, of the names and bytes of a folder's files of boxes, or of the
    numbers from which it is drawn.

    It does not depend on the folder, on column names or on the machine.
    """
    options, known = _content(data, split), FileIdentity(None)
    path = _file(options)
    if path is not None and not path.is_dir():
        return known.identify(path)[:DIGEST_LENGTH]
    files = [] if path is None else sorted((file.name, known.identify(file)) for file in box_files(path))
    content = json.dumps(files or options, sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


def _content(data: Mapping[str, Any], split: str) -> dict[str, Any]:
    options = {
        key: value
        for key, value in source_arguments(dict(data), split).items()
        if key not in ("name", "dir", "shared_prefix")
    }
    if options["type"] == "world" and options.get("level") == 1:  # as in versions whose world had no levels
        del options["level"]
    if options["type"] == "world" and options.get("kinds") is None:  # as in versions that asked no others
        options.pop("kinds", None)
    return {**options, "split": split}


def _file(options: Mapping[str, Any]) -> Path | None:
    path = options.get("path")
    return Path(path).expanduser().resolve() if isinstance(path, str) else None
