"""Decoding options as transformers takes them, logits processors for what it lacks, and answers as they are written."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import LogitsProcessor, LogitsProcessorList, logits_process
from transformers.generation.streamers import BaseStreamer

from panollava.generation import GenerationOptions

OnText = Callable[[str], None]
"""Is called with each piece of an answer while it is generated."""
_SAMPLING = ("temperature", "top_k", "top_p")


def stop_ids(model: PreTrainedModel) -> list[int]:
    """All ids that end an answer according to a language model's own files."""
    config = model.generation_config
    stated = None if config is None else config.eos_token_id
    is_assumed = config is not None and config._from_model_config
    if is_assumed and stated == type(model.config.get_text_config())().eos_token_id:
        return []  # the architecture's default, stated by no file, may be a word of this vocabulary
    ids = stated if isinstance(stated, list | tuple) else [stated]
    return [one for one in ids if isinstance(one, int) and one >= 0]


def to_transformers(options: GenerationOptions, stop: Sequence[int], pad_id: int | None) -> GenerationConfig:
    """A generation config that states every option, so that no default of another file is used."""
    sampled = options.temperature > 0
    chosen = {name: value for name, value in vars(options).items() if sampled or name not in _SAMPLING}
    return GenerationConfig(**chosen, do_sample=sampled, eos_token_id=list(stop) or None, pad_token_id=pad_id)


def from_transformers(config: GenerationConfig) -> GenerationOptions:
    """The options that an export's generation config states; the defaults where another program wrote it."""
    if not hasattr(config, "seed"):
        return GenerationOptions()
    stated = {field.name: getattr(config, field.name, None) for field in fields(GenerationOptions)}
    if not config.do_sample:
        stated |= dict.fromkeys((*_SAMPLING, "seed"))
    elif stated["temperature"] is None:
        stated["temperature"] = 1.0  # as transformers samples
    return GenerationOptions().changed(stated)


def sampler(options: GenerationOptions, keys: Sequence[bytes]) -> LogitsProcessorList:
    """Processors after which the most likely token is a sample; empty where nothing is sampled.

    A row's random numbers depend on its key and the seed.
    """
    if options.temperature == 0:
        return LogitsProcessorList()
    processors = LogitsProcessorList([logits_process.TemperatureLogitsWarper(float(options.temperature))])
    if options.top_k:
        processors.append(logits_process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(logits_process.TopPLogitsWarper(options.top_p))
    return LogitsProcessorList([*processors, _Gumbel(options.seed, keys)])


class AnswerProcessors(LogitsProcessor):
    """Processors of transformers, with two corrections.

    The image placeholder is never generated. Repetitions are counted in the answer alone; transformers also counts
    question, placeholders and pads, so that a row's answer would depend on its batch.
    """

    def __init__(self, processors: LogitsProcessorList, prompt_length: int, placeholder: int) -> None:
        self._processors, self._prompt_length, self._placeholder = processors, prompt_length, placeholder
        for processor in processors:
            if isinstance(processor, logits_process.RepetitionPenaltyLogitsProcessor):
                processor.prompt_ignore_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(B, vocabulary)`` of the next token."""
        if self._placeholder < scores.shape[-1]:
            scores = scores.clone()  # the caller may keep the tensor
            scores[:, self._placeholder] = -torch.inf
        for processor in self._processors:
            is_of_answer = isinstance(processor, logits_process.NoRepeatNGramLogitsProcessor)
            scores = processor(input_ids[:, self._prompt_length :] if is_of_answer else input_ids, scores)
        return scores


class ChosenProbabilities(LogitsProcessor):
    """The last processor of greedy decoding: keeps the log-probability of each token that is chosen."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(B, vocabulary)`` as they are."""
        highest = scores.float().amax(dim=-1)
        self._steps.append(highest - scores.float().logsumexp(dim=-1))
        return scores

    def means(self, new: Tensor, stop: Sequence[int]) -> list[float]:
        """Mean over the tokens of each answer ``(B, T)``, with the one that ended it."""
        steps = torch.stack(self._steps, dim=1)[:, : new.shape[1]]
        is_end = torch.isin(new, torch.tensor(list(stop), device=new.device))
        is_in = is_end.cumsum(dim=1) - is_end.long() == 0
        return ((steps * is_in).sum(dim=1) / is_in.sum(dim=1)).tolist()


class _Gumbel(LogitsProcessor):
    """Adds Gumbel noise, so that the largest sum is a sample of the softmax; each row has its own generator.

    Source: Gumbel 1954, as in Maddison et al. 2014, arXiv:1411.0030, section 2.
    """

    def __init__(self, seed: int, keys: Sequence[bytes]) -> None:
        digests = [hashlib.sha256(f"{seed}/".encode() + key).digest() for key in keys]
        self._generators = [torch.Generator().manual_seed(int.from_bytes(digest[:8], "big")) for digest in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(B, vocabulary)`` with noise."""
        rows = [torch.empty(scores.shape[-1]).exponential_(generator=each).log() for each in self._generators]
        return scores - torch.stack(rows).to(scores)


class AnswerText:
    """The text of an answer that grows by tokens: stripped, passed on as far as later tokens cannot change it.

    Args:
        on_text: gets each piece.
        stop: texts at which the answer ends; they are no part of it.
        sent: characters of it that were passed on before, and are not again.

    Attributes:
        ids: of all its tokens.
    """

    _UNFINISHED = "\ufffd"  # what decoding gives for a character of which some bytes are missing

    def __init__(self, tokenizer: Any, on_text: OnText, stop: Sequence[str] = (), sent: int = 0) -> None:
        self._tokenizer, self._on_text, self._stop, self.sent = tokenizer, on_text, tuple(stop), sent
        self.ids: list[int] = []

    def add(self, ids: Sequence[int]) -> None:
        """Takes further tokens."""
        self.ids += ids
        text = self.text.rstrip(self._UNFINISHED)
        sizes = ((one, size) for one in self._stop for size in range(min(len(one), len(text) + 1)))
        longest = max((size for one, size in sizes if text.endswith(one[:size])), default=0)
        self._send(text[: len(text) - longest].rstrip())

    def end(self) -> None:
        """Passes on the rest."""
        self._send(self.text)

    @property
    def text(self) -> str:
        """The answer so far, up to the first stop text."""
        text = self._decoded
        return text[: min((place for one in self._stop if (place := text.find(one)) >= 0), default=len(text))].strip()

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text was written."""
        return any(one in self._decoded for one in self._stop)

    @property
    def _decoded(self) -> str:
        return self._tokenizer.decode(self.ids, skip_special_tokens=True).strip()

    def _send(self, text: str) -> None:
        if len(text) > self.sent:
            new, self.sent = text[self.sent :], len(text)
            self._on_text(new)


class AnswerStream(BaseStreamer):
    """Passes on the text of one answer while it is generated."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        self._text = AnswerText(tokenizer, on_text)
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt, which comes first and is skipped, then new tokens."""
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"One answer can be streamed at a time, not {len(value)}.")
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._text.add(value.flatten().tolist())

    def end(self) -> None:
        """Passes on the rest."""
        self._text.end()
