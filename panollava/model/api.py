"""``PanoLlava``: opens a run or an export, answers questions about panoramas, and writes exports.

``VisionPart`` also opens runs of stages without a language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from panollava.batch import Batch
from panollava.component import allow as allow_packages
from panollava.crop.crop import Crop, Cut
from panollava.disk import read_document
from panollava.generation import GenerationOptions, recorded_generation
from panollava.model import lora
from panollava.model.backbones import Backbones, open_checkpoint
from panollava.model.decoding import (
    AnswerStream,
    ChosenProbabilities,
    OnText,
    from_transformers,
    sampler,
    stop_ids,
    to_transformers,
)
from panollava.model.detector import SURE, Detections, PanoDetector
from panollava.model.fusion import crop_misfits, image_token_count
from panollava.model.hub import SHIPPED, fetch_export, is_hub_name, public_name, quiet_transformers
from panollava.model.processor import PanoLlavaProcessor, Picture, pad_left, read_picture
from panollava.model.shared_prefix import PICTURE_INPUTS, prefill, unshareable
from panollava.model.vision import Encoding, PanoVision
from panollava.model.vlm import PanoLlavaConfig, PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt, Encoded, Limits
from panollava.run_folder import find_trained, no_run, read_metadata, short_name, with_paths_found
from panollava.stages.registry import recorded_stage

Turns = Sequence[tuple[str, str]]  # (question, answer) pairs of a conversation so far


class PanoLlava:
    """A trained model with its crop, its prompt and its default decoding options.

    ``metadata`` is its run's, empty without one; ``source`` the checkpoint or export, None for a model in memory.
    """

    def __init__(
        self,
        model: PanoLlavaForConditionalGeneration,
        prompt: ChatPrompt,
        crop: Crop,
        metadata: Mapping[str, Any] | None = None,
        generation: GenerationOptions | None = None,
        source: Path | None = None,
    ) -> None:
        self.model, self.prompt, self.crop, self.source = model, prompt, crop, source
        self.generation = generation or GenerationOptions()
        self.metadata = dict(metadata or {})

    def __repr__(self) -> str:
        parts = {"stage": self.metadata.get("stage"), "checkpoint": self.source, **self._parts}
        return f"PanoLlava({', '.join(f'{name}={value}' for name, value in parts.items() if value)})"

    @property
    def summary(self) -> str:
        """Encoder, language model, resampler and crop in a line."""
        return ", ".join(str(value) for value in self._parts.values() if value)

    @property
    def _parts(self) -> dict[str, Any]:
        config, named = self.model.config, self.metadata.get("model", {})
        return {
            "vision": short_name(named.get("vision", {}).get("name") or config.vision_name),
            "language": short_name(named.get("language", {}).get("name") or config.language_name),
            "resampler": (config.resampler or {}).get("type"),
            "crop": (config.crop or {}).get("type"),
        }

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        in_4bit: bool = True,
        allow: str | Sequence[str] = (),
        revision: str | None = None,
    ) -> PanoLlava:
        """Opens a run folder, an experiment's folder, a checkpoint in one, or an export.

        An export may be one of the Hugging Face hub, ``user/repo``, where there is no such folder; ``revision`` is its
        commit, branch or tag. ``dtype`` is of the backbones, also where they were trained. ``in_4bit`` keeps the
        language model in four bits where training did. ``allow`` names packages whose classes the model may be made
        of; their code is run.

        Raises:
            FileNotFoundError: no run there; the message names those nearby, and says if the hub was asked.
            ValueError: a stage without a language part, weights that do not fit the metadata, a class of a package
                that is not allowed or not installed, or a ``revision`` of a folder.
        """
        allow_packages(allow)
        path = _located(folder, revision)
        if (path / "config.json").is_file():
            return cls._from_export(path, device, dtype)
        checkpoint, settings = _find(path)
        if not in_4bit:
            settings["model"]["language"]["load_in_4bit"] = False
        return cls.from_checkpoint(checkpoint, settings, device=device, dtype=dtype)

    @classmethod
    def from_backbones(
        cls,
        vision: str,
        language: str,
        *,
        resampler: Mapping[str, Any] | None = None,
        position: Mapping[str, Any] | None = None,
        projector: Mapping[str, Any] | None = None,
        crop: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        join: str = "concat",
        latent_width: int = 768,
        tokens_per_side: int | None = None,
        attn_implementation: str = "sdpa",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PanoLlava:
        """A model to train, around an encoder and a language model; its other parts are drawn from the seed.

        Args:
            vision, language: hub name or folder.
            resampler: type and keywords, ``{"type": "mlp"}`` by default; likewise ``position`` (``yaw_pitch``),
                ``projector`` (``mlp``) and ``crop`` (``anyres_e2p``).
            lora: arguments of ``add_lora`` for the stages that train the language model; None trains no adapter.
        """
        backbone = {"revision": None, "attn_implementation": attn_implementation}
        section = {
            "vision": {"name": vision, "feature_layer": -1, **backbone},
            "language": {"name": language, "load_in_4bit": False, "system": None, **backbone},
            "resampler": dict(resampler or {"type": "mlp"}),
            "position": dict(position or {"type": "yaw_pitch"}),
            "projector": dict(projector or {"type": "mlp"}),
            "lora": {"enabled": lora is not None, "save_only": False, "target_modules": "all-linear", **(lora or {})},
            "size": "tiny" if {vision, language} <= SHIPPED.keys() else "full",
            "join": join,
            "latent_width": latent_width,
            "tokens_per_side": tokens_per_side,
        }
        spec = dict(crop or {"type": "anyres_e2p"})
        if problems := crop_misfits(spec, section):
            raise ValueError("\n  ".join(["the model does not take this crop:", *problems]))
        backbones = Backbones(section, spec, dtype=dtype, seed=seed)
        settings = {"model": section, "crop": backbones.crop_spec}
        return cls(backbones.composite().eval(), backbones.prompt, backbones.crop, settings)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Path,
        settings: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PanoLlava:
        """As ``from_pretrained``, for a ``*.ckpt`` folder and changed settings of its run, such as another crop."""
        if not recorded_stage(settings).answers:
            raise ValueError(
                f"{checkpoint} is of stage {settings['stage']}: it has no language part and cannot answer. Train "
                "stage=resampler or stage=finetune from it first."
            )
        backbones, model, _ = open_checkpoint(checkpoint, settings, device=device, dtype=dtype)
        used = {**settings, "model": backbones.model}
        return cls(model, backbones.prompt, backbones.crop, used, recorded_generation(settings), checkpoint)

    @classmethod
    def _from_export(cls, path: Path, device: str | torch.device, dtype: torch.dtype) -> PanoLlava:
        kind = read_document((path / "config.json").resolve()).get("model_type")  # the hub's cache keeps links
        if kind != PanoLlavaConfig.model_type:
            raise ValueError(
                f"{path} holds a model of type {kind!r}, and PanoLlava opens exports of layout=panollava "
                f"({PanoLlavaConfig.model_type!r}). Open it with transformers alone, or export the run again."
            )
        with quiet_transformers():
            model = PanoLlavaForConditionalGeneration.from_pretrained(path, dtype=dtype)
        processor = PanoLlavaProcessor.from_pretrained(path, trust_remote_code=False)
        model.to(device)
        crop, generation = processor.image_processor.build_crop(), from_transformers(model.generation_config)
        return cls(model.eval(), processor.prompt, crop, generation=generation, source=path)

    def generate(
        self,
        image: Picture,
        question: str,
        *,
        history: Turns = (),
        max_new_tokens: int | None = None,
        generation: GenerationOptions | None = None,
        on_text: OnText | None = None,
    ) -> str:
        """Answers a question about a panorama.

        Args:
            image: a file, its bytes, an ``(H, W, 3)`` uint8 RGB array or tensor, or a PIL picture: of the whole sphere,
                2:1, or of the part that the run's ``crop.panorama_fov_deg``, or else its GPano tags, name.
            history: earlier turns; the oldest are left out where all do not fit into the language model.
            max_new_tokens: longest answer, in place of that of the options.
            generation: decoding options; None takes ``self.generation``.
            on_text: called with each piece of the answer; of a beam search once, at its end.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: several pictures or questions, or none.
            ValueError: it is no panorama, or the question is too long.
        """
        options = self.decoding(generation, max_new_tokens)
        encoded = self.encode(question, history, max_new_tokens=options.max_new_tokens)
        return self.answer(self.batch([self.cut(image)], [encoded]), generation=options, on_text=on_text)[0]

    def generate_batch(
        self,
        images: Sequence[Picture],
        questions: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        generation: GenerationOptions | None = None,
    ) -> list[str]:
        """Answers a question about each of several panoramas, or one about all of them; else as ``generate``."""
        options = self.decoding(generation, max_new_tokens)
        is_one = isinstance(images, str | Path | bytes | bytearray | memoryview) or getattr(images, "ndim", 4) != 4
        if is_one or hasattr(images, "read") or not isinstance(images, Iterable):
            raise TypeError(f"images are a list of panoramas, not one {type(images).__name__}: see generate.")
        pictures = list(images)
        if not isinstance(questions, Iterable):
            raise TypeError(f"questions={questions!r}: give a text for each picture, or one for all of them.")
        asked = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
        if len(asked) != len(pictures):
            raise ValueError(
                f"{len(pictures)} pictures and {len(asked)} questions: give one question a picture, or one text for "
                "all of them."
            )
        encoded = [self.encode(question, max_new_tokens=options.max_new_tokens) for question in asked]
        cuts = [self.cut(picture) for picture in pictures]
        return self.answer(self.batch(cuts, encoded), generation=options) if cuts else []

    def detect(self, image: Picture, *, least_score: float = SURE) -> Detections:
        """Finds boxes and masks in a panorama, with the detection stage of the experiment that this model is of.

        Arguments and results as for ``PanoDetector.detect``.

        Raises:
            FileNotFoundError: there is no such file, or the experiment has no detection stage.
            ValueError: it is no panorama, or the detection stage does not stand on its weights any more.
        """
        return self._detector.detect(image, least_score=least_score)

    @cached_property
    def _detector(self) -> PanoDetector:
        tower = self.model.vision.tower
        options: dict[str, Any] = {"device": tower.mean.device, "dtype": tower.dtype}
        found = None if self.source is None else PanoDetector.beside(self.source, **options)
        if found is None:
            raise FileNotFoundError(
                f"{self.source} is of no experiment with a detection stage. Train one, python -m panollava.train "
                "stage=detect init_from=<run>, and open it with PanoDetector.from_pretrained."
            )
        return found

    def chat(self, image: Picture) -> Conversation:
        """A conversation about a panorama, given as for ``generate``; ``.ask(question)`` answers and remembers."""
        return Conversation(self, image)

    def decoding(self, generation: GenerationOptions | None, max_new_tokens: int | None) -> GenerationOptions:
        """Decoding options of a call: those given, else ``self.generation``, with the given answer length."""
        options = self.generation if generation is None else generation
        if not isinstance(options, GenerationOptions):
            raise TypeError(
                f"generation={options!r}: give panollava.generation.GenerationOptions, such as "
                "GenerationOptions(num_beams=4)."
            )
        return options.changed({"max_new_tokens": max_new_tokens})

    def views(self, image: Picture) -> Tensor:
        """Views ``(V, 3, h, w)`` uint8 of a panorama; arguments and errors as for ``generate``."""
        return self.cut(image).views

    def cut(self, image: Picture) -> Cut:
        """As ``views``, with the cameras ``(V, C)`` that ``crop=adaptive`` chooses for each panorama."""
        if image is None or isinstance(image, list | tuple | dict | set):
            raise TypeError(f"Give one panorama, not a {type(image).__name__}. generate_batch takes several.")
        return self.crop.cut(read_picture(image, self.crop))

    def encode(self, question: str, history: Turns = (), *, max_new_tokens: int | None = None) -> Encoded:
        """Token ids of a question, ready for generation; the oldest turns are dropped where all would be too long.

        Raises:
            TypeError: question or history are no texts.
            ValueError: panorama, question and answer do not fit into the language model, or a token has no embedding.
        """
        _check_texts(question, history)
        new, limits = self.decoding(None, max_new_tokens).max_new_tokens, self.limits
        try:
            encoded = self.prompt.encode(
                [*history, (question, None)],
                image_tokens=self.image_tokens,
                max_text_length=limits.positions - self.image_tokens - new,
            )
        except ValueError as error:
            raise ValueError(
                f"The language model takes {limits.positions} tokens. The panorama has {self.image_tokens} of them, "
                f"max_new_tokens={new} are for the answer, and the question does not fit into the rest. "
                "Shorten it, or lower max_new_tokens."
            ) from error
        if problem := self.prompt.misfit(encoded, limits, new):
            raise ValueError(f"The question cannot be encoded: {problem}.")
        return encoded

    def batch(self, views: Sequence[Tensor | Cut], texts: Sequence[Encoded]) -> Batch:
        """A left-padded batch for ``answer``, of the results of ``cut`` or ``views``, and of ``encode``."""
        pixels, cameras = zip(*(self.crop.with_cameras(one) for one in views), strict=True)
        return self._batch(texts, cameras, pixel_values=torch.stack(pixels))

    def _batch(self, texts: Sequence[Encoded], cameras: Sequence[Tensor], **pictures: Any) -> Batch:
        """A batch of texts, and of panoramas with their cameras ``(V, C)``."""
        rows = torch.stack(list(cameras))
        return Batch(
            sample_ids=[f"question {number}" for number in range(1, len(texts) + 1)],
            cameras=rows,
            view_mask=torch.ones(rows.shape[:2], dtype=torch.bool),
            **pictures,
            **pad_left([text.ids for text in texts], self.pad_id),
        )

    def features(self, views: Tensor) -> Tensor:
        """Features ``(V, N, Dv)`` of a panorama's views, with the bits that an evaluation has of them."""
        return Encoding(self.model.vision.tower)(views)

    def feature_batch(
        self,
        features: Sequence[Tensor],
        texts: Sequence[Encoded],
        picture_index: Sequence[int],
        cameras: Sequence[Tensor] | None = None,
    ) -> Batch:
        """A batch for ``answer`` of several questions about each panorama, whose common part is computed once.

        Args:
            features: of each panorama, as of ``features``.
            texts: of ``encode``.
            picture_index: the panorama of each text.
            cameras: of each panorama, as of ``cut``; None where the crop gives all panoramas the same.
        """
        if cameras is None:
            cameras = [self.crop.with_cameras(one).cameras for one in features]
        pictures = {"vision_features": torch.stack(list(features)), "picture_index": torch.tensor(picture_index)}
        return self._batch(texts, cameras, pixel_values=None, **pictures)

    @torch.inference_mode()
    def answer(
        self,
        batch: Batch,
        *,
        max_new_tokens: int | None = None,
        generation: GenerationOptions | None = None,
        on_text: OnText | None = None,
        scores: dict[str, float] | None = None,
    ) -> list[str]:
        """Answers a batch of questions; options as for ``generate``. ``on_text`` is for a single question.

        ``scores`` gets the mean log-probability of each answer's tokens by sample id, if decoding is greedy.
        """
        options = self.decoding(generation, max_new_tokens)
        keeps_scores = scores is not None and options.num_beams == 1 and options.temperature == 0
        chosen = ChosenProbabilities() if keeps_scores else None
        streamer = None
        if on_text is not None and options.num_beams == 1:
            streamer = AnswerStream(self.prompt.tokenizer, on_text)
        new = self.new_tokens(batch, options, last=[] if chosen is None else [chosen], streamer=streamer)
        answers = [text.strip() for text in self.prompt.tokenizer.batch_decode(new, skip_special_tokens=True)]
        if on_text is not None and streamer is None:
            on_text(answers[0])
        if scores is not None and chosen is not None:
            scores.update(zip(batch.sample_ids, chosen.means(new, self.stop_ids), strict=True))
        return answers

    @torch.inference_mode()
    def new_tokens(
        self,
        batch: Batch,
        options: GenerationOptions,
        *,
        last: Sequence[LogitsProcessor] = (),
        streamer: BaseStreamer | None = None,
        criteria: Sequence[StoppingCriteria] = (),
    ) -> Tensor:
        """Token ids ``(B, new)`` of answers to a batch of questions; behind its end an answer is padded.

        Args:
            options: of all answers.
            last: logits processors that see the scores of which the next token is the most likely one.
            streamer: gets the tokens of all answers, step by step; not with a beam search.
            criteria: end answers before their own end.
        """
        if options.temperature > 0 and batch.pixel_values is not None:
            # A sample depends on the picture's features, which an evaluation or a server may have kept.
            features = torch.stack([self.features(views) for views in batch.pixel_values])
            batch = replace(batch, pixel_values=None, vision_features=features)
        keys = _row_keys(batch) if options.temperature > 0 else ()
        inputs = self._inputs(batch.to(self.model.device), options)
        ids = self.model.generate(  # type: ignore[misc]
            **inputs,
            # A sample is the most likely token after the sampler, which draws for each row by itself.
            generation_config=to_transformers(options.without_sampling, self.stop_ids, self.pad_id),
            logits_processor=LogitsProcessorList([*sampler(options, keys), *last]),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        return ids[:, inputs["input_ids"].shape[1] :]

    def _inputs(self, batch: Batch, options: GenerationOptions) -> dict[str, Any]:
        """Arguments of ``generate``; what rows about one panorama have in common is computed here, once."""
        inputs = {name: value for name, value in batch.model_inputs.items() if value is not None}
        if batch.picture_index is None:
            return inputs
        assert batch.input_ids is not None
        length = batch.input_ids.shape[1] + options.max_new_tokens
        if len(batch) > len(batch.cameras) and not unshareable(self.model.language_model, length):
            return prefill(self.model, inputs, options.num_beams)
        index = inputs.pop("picture_index")
        return {name: value[index] if name in PICTURE_INPUTS else value for name, value in inputs.items()}

    @property
    def limits(self) -> Limits:
        """Sequence length and embeddings of the language model."""
        return Limits.of(self.model)

    @property
    def image_tokens(self) -> int:
        """Tokens that one panorama takes in the language model."""
        vision, join = self.model.vision, self.model.config.join
        return image_token_count(self.crop.camera_rows, vision.tokens_per_view, join, vision.token_grid)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: of tokenizer, chat template, and all that the language model's files state."""
        return list(dict.fromkeys([*self.prompt.stop_ids, *stop_ids(self.model)]))

    @property
    def pad_id(self) -> int:
        """The tokenizer's pad, or another id that has an embedding; the mask hides it."""
        possible = (self.prompt.tokenizer.pad_token_id, *self.stop_ids)
        return next((int(one) for one in possible if one is not None and one < self.limits.rows), 0)

    @property
    def lora_names(self) -> list[str]:
        """Names of the adapters that are attached."""
        return lora.lora_names(self.model)

    def load_lora_weights(self, folder: str | Path, name: str = lora.DEFAULT) -> None:
        """Attaches an adapter, such as a run's ``lora_weights``, and uses it; errors as for ``lora.load_lora``."""
        lora.load_lora(self.model, folder, name=name)
        self.model.eval()

    def use_lora(self, name: str | None) -> None:
        """Answers with the attached adapter of this name from now on, or with None without any."""
        lora.use_lora(self.model, name)

    def merge_lora_weights(self) -> None:
        """Adds the active adapter to the language model's weights and removes all; does nothing without one."""
        lora.merge_lora(self.model)

    def save_pretrained(self, folder: str | Path, *, keep_lora: bool = False) -> None:
        """Writes a plain Hugging Face folder; the Auto classes open it after ``import panollava``.

        With ``keep_lora`` the active adapter is beside the model, as ``lora_weights``; opening the folder attaches it.
        Raises ValueError if an adapter is attached and not to be kept, the folder holds one of an earlier save, or the
        language model is in four bits.
        """
        if keep_lora and lora.lora_in_use(self.model) is not None:
            with lora.without_lora(self.model):
                self.save_pretrained(folder)
            lora.save_lora(self.model, Path(folder) / lora.LORA, base=public_name(self.model.config.language_name))
            return
        self.model.generation_config = to_transformers(self.generation, self.stop_ids, self.pad_id)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        processor = PanoLlavaProcessor.of(self.model, self.prompt.tokenizer, **self.prompt.format.written())
        processor.tokenizer.pad_token_id = self.pad_id  # a pipeline takes no batch without one
        processor.save_pretrained(folder)


class Conversation:
    """A conversation about one panorama, whose views are cut once; ``PanoLlava.chat`` opens it."""

    def __init__(self, pano: PanoLlava, image: Picture) -> None:
        self._pano, self._cut = pano, pano.cut(image)
        self.turns: list[tuple[str, str]] = []  # (question, answer) so far; an emptied list starts anew

    def __repr__(self) -> str:
        return f"Conversation({len(self.turns)} turns, {self._pano!r})"

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        generation: GenerationOptions | None = None,
        on_text: OnText | None = None,
    ) -> str:
        """Answers a question, as ``PanoLlava.generate``; on Ctrl-C the answer as far as it came stays in ``turns``."""
        pieces: list[str] = []

        def keep(piece: str) -> None:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

        options = self._pano.decoding(generation, max_new_tokens)
        encoded = self._pano.encode(question, self.turns, max_new_tokens=options.max_new_tokens)
        batch = self._pano.batch([self._cut], [encoded])
        try:
            (answer,) = self._pano.answer(batch, generation=options, on_text=keep)
        except KeyboardInterrupt:
            if pieces:
                self.turns.append((question, "".join(pieces)))
            raise
        self.turns.append((question, answer))
        return answer


@dataclass(frozen=True)
class VisionPart:
    """The vision part of a run, with the whole model where its stage has a language model."""

    name: str  # of the experiment, or of an export's folder
    vision: PanoVision
    crop: Crop
    pano: PanoLlava | None
    detector: PanoDetector | None = None  # of its experiment

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        allow: str | Sequence[str] = (),
    ) -> VisionPart:
        """Opens runs of every stage, and exports; arguments and errors as for ``PanoLlava.from_pretrained``."""
        allow_packages(allow)
        path, detector = _located(folder), None
        if not (path / "config.json").is_file():
            checkpoint, settings = _find(path)
            detector = PanoDetector.beside(checkpoint, device=device, dtype=dtype)
            if not recorded_stage(settings).answers:
                backbones, vision, _ = open_checkpoint(checkpoint, settings, device=device, dtype=dtype)
                return cls(settings["experiment_name"], vision, backbones.crop, None, detector)
        pano = PanoLlava.from_pretrained(path, device=device, dtype=dtype)
        return cls(pano.metadata.get("experiment_name", path.name), pano.model.vision, pano.crop, pano, detector)


def _located(folder: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or that of an export of the hub in its cache; errors as for ``PanoLlava.from_pretrained``."""
    path = Path(folder).expanduser()
    if path.exists() or not is_hub_name(folder):
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for exports of the Hugging Face hub, and {folder} is a folder or no hub "
                "name (user/repo). Leave it out."
            )
        return path
    try:
        return fetch_export(str(folder), revision, PanoLlavaConfig.model_type)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{no_run(path)} {error}") from error


def _find(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint in a run folder, an experiment's folder or itself, and the run's metadata."""
    run, checkpoint = find_trained(path)
    return checkpoint, with_paths_found(read_metadata(run), run)


def _row_keys(batch: Batch) -> list[bytes]:
    """Bytes of each row's picture and question, which do not depend on the rest of its batch."""
    pictures = batch.pixel_values if batch.pixel_values is not None else batch.vision_features
    if pictures is not None and batch.picture_index is not None:
        pictures = pictures[batch.picture_index]
    rows = [tensor.cpu() for tensor in (pictures, batch.input_ids, batch.attention_mask) if tensor is not None]
    return [
        picture.contiguous().view(torch.uint8).numpy().tobytes() + ids[mask.bool()].numpy().tobytes()
        for picture, ids, mask in zip(*rows, strict=True)
    ]


def _check_texts(question: Any, history: Any) -> None:
    if not isinstance(question, str):
        raise TypeError(f"question={question!r}: give one text. generate_batch takes several.")
    if not question.strip():
        raise ValueError(f"question={question!r} is empty: give a text.")
    is_list = isinstance(history, Sequence) and not isinstance(history, str)
    if not is_list or not all(
        isinstance(turn, tuple | list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in history
    ):
        raise TypeError(f"history={history!r}: give a list of (question, answer) texts.")
