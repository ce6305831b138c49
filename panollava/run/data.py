"""The test set that a command line asks for, out of the one that a run recorded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from panollava.batch import Batch
from panollava.crop.render import check_workers
from panollava.data.augment import Augment, AugmentOptions, check_turnable
from panollava.data.csv import LISTED_PROBLEMS
from panollava.data.dataset import PanoDataset, QuestionDataset, TextEncoder, control_texts, count_cut
from panollava.data.files import FilesSource
from panollava.data.loader import Collate, StageLoader, eval_loader
from panollava.data.source import DataSource, Question, Record
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
from panollava.prompt import IMAGE_TOKEN, ChatPrompt, Encoded, Limits
from panollava.run.sources import open_splits, part_of, source_arguments
from panollava.stages.registry import Targets
from panollava.store.feature_maker import FeatureMaker
from panollava.tracking.tracker import Dataset
from panollava.training.distributed import DistributedContext
from panollava.training.options import StageOptions

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}
DIGEST_LENGTH = 16
_BLOCK = 1 << 20


def describe_split(data: Mapping[str, Any], split: str, source: DataSource) -> Dataset:
    """A split as the tracker records it.

    Args:
        data: the ``data`` section.
        split: ``train``, ``val`` or ``test``.
        source: the same split, opened.
    """
    options = _content(data, split)
    path = _file(options)
    origin: dict[str, Any] = {"tags": {key: str(value) for key, value in options.items()}}
    kind = "code"
    if path is not None:
        kind, origin = "local", {"uri": str(path)}
    return Dataset(
        name=source.name,
        digest=digest_of(data, split),
        source_type=kind,
        source=json.dumps(origin, ensure_ascii=False),
        profile=json.dumps({"num_rows": len(source)}),
        context=CONTEXTS[split],
    )


def digest_of(data: Mapping[str, Any], split: str) -> str:
    """Digest of a split's content: of the bytes of its file, or of the numbers that it is drawn from.

    A file that lies elsewhere or is read under other column names has the same digest; so does a world on any machine.
    """
    options = _content(data, split)
    digest = hashlib.sha256()
    path = _file(options)
    if path is None:
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    else:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _content(data: Mapping[str, Any], split: str) -> dict[str, Any]:
    options = {key: value for key, value in source_arguments(dict(data), split).items() if key not in ("name", "dir")}
    return {**options, "split": split}


def _file(options: Mapping[str, Any]) -> Path | None:
    path = options.get("path")
    return Path(path).expanduser().resolve() if isinstance(path, str) else None


@dataclass
class RunData:
    """The splits of a run.

    Attributes:
        train, val: for every stage.
        test: for evaluation; None where it is switched off.
        backbones: for the crop, the prompt and the number of image tokens.
        augment: how training pictures are changed; ``augment.is_on`` says whether they are.
    """

    train: DataSource
    val: DataSource
    test: DataSource | None
    backbones: Backbones
    augment: AugmentOptions = AugmentOptions()  # noqa: RUF009  frozen

    def batches(
        self,
        targets: Targets | None,
        options: StageOptions,
        *,
        seed: int,
        procs: DistributedContext,
        num_workers: int,
        pin_memory: bool,
        validation_batches: int | None = None,
        features: FeatureMaker | None = None,
    ) -> StageLoader:
        """Training windows and validation batches of a stage.

        Args:
            targets: the tokens that it learns; None gives it no text.
            options: its batch size, accumulation and text length.
            seed: of the stage.
            procs: which samples this process takes.
            num_workers: processes that read; 0 reads here.
            pin_memory: page-locked batches, for a GPU.
            validation_batches: no more than these, in a trial.
            features: of a frozen encoder; None leaves encoding to the model.
        """
        crop = self.backbones.crop
        check_workers(crop.device, num_workers)
        encoder = None if targets is None else self._text(targets, options)
        encode = None if encoder is None else encoder.record
        pad = 0 if encoder is None else encoder.prompt.tokenizer.pad_token_id or 0
        store = None if features is None else features.store
        augment = Augment(self.augment, seed) if self.augment.is_on else None
        return StageLoader(
            PanoDataset(self.train, crop, encode, store, augment),
            PanoDataset(self.val, crop, encode, store),
            Collate(pad_id=pad),
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            seed=seed,
            rank=procs.rank,
            world_size=procs.world_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            validation_batches=validation_batches,
            complete=None if features is None else features.complete,
        )

    def described(self, data: Mapping[str, Any]) -> list[Dataset]:
        """The splits as the tracker records them.

        Args:
            data: the ``data`` section.
        """
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return [describe_split(data, name, split) for name, split in splits.items() if split is not None]

    def _text(self, targets: Targets, options: StageOptions) -> TextEncoder:
        return TextEncoder(self.backbones.prompt, self.backbones.image_tokens, options.max_text_length, targets)

    def check_text(self, name: str, targets: Targets, options: StageOptions) -> None:
        """Says how much text a stage's limit costs, from a look at the first records.

        Raises:
            ValueError: it leaves nothing to learn.
        """
        encoder = self._text(targets, options)
        cut = count_cut(self.train, encoder.record, at_most=200)
        if cut.silent_samples == cut.samples:
            raise ValueError(
                f"stage.{name}.max_text_length={options.max_text_length} cuts every text looked at before its first "
                "answer, so there is nothing to learn. Raise it."
            )
        if cut.cut_samples:
            LOG.info(
                "stage.%s.max_text_length=%d cuts %d of %d texts looked at (%d tokens in all, %d left with nothing).",
                name, options.max_text_length, cut.cut_samples, cut.samples, cut.cut_tokens, cut.silent_samples,
            )  # fmt: skip

    def tell_control_tokens(self) -> None:
        """Warns of texts that would be read as the end or the beginning of a turn."""
        for source in (self.train, self.val, self.test):
            if isinstance(source, FilesSource) and (told := control_texts(source, self.backbones.prompt)):
                LOG.warning("%s.", told)

    def check_tokens(self, targets: Targets, options: StageOptions, limits: Limits) -> None:
        """Refuses texts of a stage with tokens that the language model does not know."""
        encoder = self._text(targets, options)
        for source in (self.train, self.val):
            check_records(source, encoder, limits)


def open_data(data: dict[str, Any], backbones: Backbones, *, evaluate: bool) -> RunData:
    """Opens the splits; every file is looked at here.

    Args:
        data: the ``data`` section.
        backbones: give the crop, whose reader decodes pictures.
        evaluate: whether the test split is needed.
    """
    splits = open_splits(data, ("train", "val", "test") if evaluate else ("train", "val"), backbones.crop)
    test = splits.get("test")
    augment = AugmentOptions(**part_of(data, AugmentOptions))
    if augment.turns:
        check_turnable(splits["train"])
    result = RunData(splits["train"], splits["val"], test, backbones, augment)
    if augment.is_on:
        LOG.info("Training pictures change from epoch to epoch (data.augment), so their features are not kept.")
    LOG.info(
        "Data %s: %d training and %d validation records%s.",
        data["name"], len(result.train), len(result.val), f", {len(test)} for the test" if test else "",
    )  # fmt: skip
    return result


def check_records(source: DataSource, encoder: TextEncoder, limits: Limits) -> None:
    """Refuses training records that a language model cannot be given.

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
        # The first shows what the chat format itself takes; of the others those may have one that spell one.
        spelt = re.compile("|".join(map(re.escape, unknown)))
        records = (each for at, each in enumerate(records) if at == 0 or spelt.search(str(each.turns)))
    _check(source, ((each.sample_id, encoder.record(each)) for each in records), encoder.prompt, limits)


def check_questions(
    source: DataSource, prompt: ChatPrompt, limits: Limits, *, image_tokens: int, new_tokens: int
) -> None:
    """Refuses a split that a language model cannot be asked: what would be cut or unknown is answered with anything.

    Args:
        source: the split.
        prompt: how its questions are written.
        limits: of the language model.
        image_tokens: tokens of a panorama.
        new_tokens: longest answer.

    Raises:
        ValueError: naming its file and rows.
    """
    encoder = TextEncoder(prompt, image_tokens)
    texts = ((question.sample_id, encoder.question(question)) for question in source.questions())
    _check(source, texts, prompt, limits, new_tokens)


def _check(
    source: DataSource, texts: Iterable[tuple[str, Encoded]], prompt: ChatPrompt, limits: Limits, new_tokens: int = 0
) -> None:
    """Refuses texts, given with their sample ids."""
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
    """Where a sample stands in its file, such as ``row 5``."""
    return re.sub(r"^(row|line|entry)(\d+)", r"\1 \2", sample_id.removeprefix(f"{source.name}-"))


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
        pano: the model.
        source: the split.
        batch_size: questions of a batch.
        num_workers: processes that cut panoramas.
        skip: sample ids of questions that are not asked.
        features: of the model's encoder; None leaves encoding to the model.
        blank: every pixel has this value, whatever is asked about; None shows the panoramas.
    """
    check_workers(pano.crop.device, num_workers)
    encoder = TextEncoder(pano.prompt, pano.image_tokens)
    store = None if features is None else features.store
    dataset = QuestionDataset(source, pano.crop, encoder.question, skip, store, blank)
    pad = pano.prompt.tokenizer.pad_token_id or 0
    collate = Collate(pad_id=pad, padding_side="left")
    complete = None if features is None else features.complete
    return eval_loader(dataset, collate, batch_size=batch_size, num_workers=num_workers, complete=complete)


class Asked(Protocol):
    """The keys that commands which evaluate have in common."""

    @property
    def split(self) -> str: ...

    @property
    def csv_input(self) -> str | None: ...

    @property
    def world_seed(self) -> int | None: ...

    @property
    def world_scenes(self) -> int | None: ...


def asked_name(options: Asked, data: Mapping[str, Any]) -> str:
    """What was asked, as reports call it: the file that was named, else the data set and its split."""
    return Path(options.csv_input).name if options.csv_input is not None else f"{data['name']}-{options.split}"


def asked_data(options: Asked, recorded: Mapping[str, Any], *, turn_deg: float | None = None) -> dict[str, Any]:
    """The run's own ``data`` section with what the command line changes.

    Args:
        options: of the command.
        recorded: the run's section.
        turn_deg: how far every panorama of the built-in world is turned.

    Raises:
        ValueError: keys of the built-in world are given and the data are others.
    """
    data = dict(recorded)
    world = {f"{options.split}_scenes": options.world_scenes, "seed": options.world_seed, "turn_deg": turn_deg}
    changes = {key: value for key, value in world.items() if value is not None}
    if options.csv_input is not None:
        read_as = (
            "dir",
            "image_dir",
            "query_template",
            "on_error",
            "image_column",
            "query_column",
            "annotation_column",
        )
        template = {key: value for key, value in data.items() if key in read_as}
        data = {"type": "files", "name": "csv", f"{options.split}_csv": options.csv_input, **template}
    if changes and data["type"] != "world":
        raise ValueError(f"{', '.join(changes)}: only the built-in world has these, and the data are {data['type']}.")
    return {**data, **changes}
