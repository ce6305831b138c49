"""Answers questions in batches, as they arrive: one thread for each model, which alone uses it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from panollava.batch import Batch
from panollava.crop.crop import Cut
from panollava.generation import GenerationOptions
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.decoding import AnswerText, OnText
from panollava.prompt import Encoded
from panollava.server.guard import RefusedError
from panollava.training.precision import Compute

GATHER_S = 0.005
"""Time for which a model that has nothing to do waits for further questions after the first: clients send in bursts."""
FEATURE_BYTES = 512 * 2**20
"""Memory for the features of panoramas that may be asked about again."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """An answer with what the OpenAI form says of it."""

    text: str
    finish_reason: Literal["stop", "length"]  # ended by itself or by a stop text, or by the largest number of tokens
    prompt_tokens: int
    tokens: int  # of the answer, with the one that ended it


@dataclass(eq=False)
class Ask:
    """A question that waits for its answer.

    Attributes:
        picture: digest of the panorama's content.
        views: of it, with their cameras, which may be left out where every panorama has the same.
        text: the question and what was said before it, encoded.
        options: how the answer is decoded.
        stop: texts at which it ends.
        on_text: gets the pieces of the answer, from the engine's thread.
        answer: gets the answer, or the error.
        is_cancelled: set by the client that does not want it any more.
        sent: characters of the answer that ``on_text`` has; a batch that is divided begins the answer again.
    """

    picture: str
    views: Tensor | Cut
    text: Encoded
    options: GenerationOptions
    stop: tuple[str, ...] = ()
    on_text: OnText | None = None
    answer: Future[Answer] = field(default_factory=Future)
    is_cancelled: bool = False
    sent: int = 0

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.is_cancelled or self.answer.cancelled()

    @property
    def group(self) -> GenerationOptions:
        """Asks with the same group are answered in one batch. Each has its own length, but in a beam search."""
        return self.options if self.options.num_beams > 1 else replace(self.options, max_new_tokens=1)


@dataclass(eq=False)
class _Call:
    """Other work with the model."""

    function: Callable[[], Any]
    result: Future[Any] = field(default_factory=Future)


class Engine:
    """Answers with one model, in a thread of its own.

    The thread takes the oldest question that waits and with it all others that are decoded in the same way (the same
    temperature, seed, penalties and so on), up to ``batch_size``. What comes meanwhile waits for the next batch. In a
    batch, questions about the same panorama share its prefix. An answer is given when it has ended, whatever the rest
    of its batch does. A batch that does not fit the memory is divided.

    Args:
        pano: the model; no other thread may use it.
        compute: device and precision.
        batch_size: most questions at once.
        queue_limit: most questions that wait; further ones are refused.
        check: called before the model is used; what it raises is what the clients get.
    """

    def __init__(
        self,
        pano: PanoLlava | None,
        compute: Compute,
        *,
        batch_size: int,
        queue_limit: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.pano, self.compute, self._check = pano, compute, check
        self.batch_size, self.queue_limit = batch_size, queue_limit
        self._features: OrderedDict[str, Tensor] = OrderedDict()  # of the panoramas that were asked about last
        self._waiting: deque[Ask | _Call] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="panollava-engine", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask) -> Future[Answer]:
        """Puts a question into the queue. Raises RefusedError where it is full, RuntimeError after ``close``."""
        self._put(ask)
        return ask.answer

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs a function between two batches, in the engine's thread; errors as of ``submit``."""
        call = _Call(function)
        self._put(call)
        return call.result

    def close(self) -> None:
        """Ends the thread; answers that are not ready get an error."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def check_room(self) -> None:
        """Raises RefusedError where the queue is full, before work is done for a question."""
        if len(self._waiting) >= self.queue_limit:
            raise RefusedError(
                429,
                f"{len(self._waiting)} questions wait already, the most that queue={self.queue_limit} allows. Try "
                "again in a moment.",
            )

    def _put(self, item: Ask | _Call) -> None:
        with self._changed:
            if self._is_closed:
                raise RuntimeError("The server is closing.")
            self.check_room()
            self._waiting.append(item)
            self._changed.notify()

    def _run(self) -> None:
        while (items := self._take()) is not None:
            first = items[0]
            with self.compute.autocast():
                if isinstance(first, _Call):
                    _settle(first.result, self._check, first.function)
                else:
                    self._answer([one for one in items if isinstance(one, Ask)])
        for item in self._waiting:
            _fail(item, RuntimeError("The server was stopped."))

    def _take(self) -> list[Ask] | list[_Call] | None:
        """The next call, or the next batch; None once the engine is closed."""
        with self._changed:
            if not self._waiting and not self._is_closed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                end = time.monotonic() + GATHER_S
                while len(self._waiting) < self.batch_size and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
            if self._is_closed:
                return None
            first = self._waiting.popleft()
            if isinstance(first, _Call):
                return [first]
            asks: list[Ask] = [first]
            rest: list[Ask | _Call] = []
            for item in self._waiting:
                fits = isinstance(item, Ask) and len(asks) < self.batch_size and item.group == first.group
                (asks if fits else rest).append(item)  # type: ignore[arg-type]
            self._waiting = deque(rest)
            return asks

    def _answer(self, asks: Sequence[Ask]) -> None:
        """Answers a batch; a question whose client has left is left out."""
        asks = [ask for ask in asks if not ask.is_unwanted]
        if not asks:
            return
        try:
            self._generate(asks)
        except torch.OutOfMemoryError as error:
            unanswered = [ask for ask in asks if not ask.answer.done()]
            if len(unanswered) == 1:
                _fail(unanswered[0], error)
                return
            LOG.warning("A batch of %d questions does not fit the memory and is divided.", len(asks))
            if self.compute.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(unanswered) // 2
            for part in (unanswered[:half], unanswered[half:]):
                self._answer(part)
        except Exception as error:  # the thread serves other clients
            LOG.warning("A batch of %d questions failed: %s", len(asks), error)
            for ask in asks:
                _fail(ask, error)

    def _generate(self, asks: Sequence[Ask]) -> None:
        assert self.pano is not None
        self._check()
        options = replace(asks[0].options, max_new_tokens=max(ask.options.max_new_tokens for ask in asks))
        progress = BatchProgress(self.pano, asks, lambda: self._is_closed)
        if options.num_beams > 1:
            new = self.pano.new_tokens(self._batch(asks), options)
            progress.put(torch.empty(0))
            for step in new.T:
                progress.put(step)
        else:
            self.pano.new_tokens(self._batch(asks), options, streamer=progress, criteria=[progress])
        progress.end()

    def _batch(self, asks: Sequence[Ask]) -> Batch:
        """Questions as a batch; those about one panorama share its features."""
        assert self.pano is not None
        features = {ask.picture: self._features_of(ask) for ask in asks}
        row_of = {picture: row for row, picture in enumerate(features)}
        rows = [row_of[ask.picture] for ask in asks]
        own = {ask.picture: self.pano.crop.with_cameras(ask.views).cameras for ask in asks}
        texts = [ask.text for ask in asks]
        return self.pano.feature_batch(list(features.values()), texts, rows, list(own.values()))

    def _features_of(self, ask: Ask) -> Tensor:
        """Features ``(V, N, Dv)`` of a panorama, encoded as an evaluation does; those asked about last are kept."""
        assert self.pano is not None
        if ask.picture not in self._features:
            self._features[ask.picture] = self.pano.features(self.pano.crop.with_cameras(ask.views).views)
        self._features.move_to_end(ask.picture)
        kept = sum(one.nbytes for one in self._features.values())
        while kept > FEATURE_BYTES and len(self._features) > 1:
            kept -= self._features.popitem(last=False)[1].nbytes
        return self._features[ask.picture]


class BatchProgress(BaseStreamer, StoppingCriteria):
    """Follows the answers of a batch token by token: passes their text on, and says which have ended."""

    def __init__(self, pano: PanoLlava, asks: Sequence[Ask], is_closed: Callable[[], bool]) -> None:
        self._asks, self._is_closed = asks, is_closed
        self._stop_ids = set(pano.stop_ids)
        self._texts = [AnswerText(pano.prompt.tokenizer, ask.on_text or _ignored, ask.stop, ask.sent) for ask in asks]
        self._ended = [False] * len(asks)
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Takes the prompts, which come first and are skipped, then a token ``(B,)`` of each answer."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        for row, token in enumerate(value.tolist()):
            if not self._ended[row]:
                self._take(row, int(token))

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which answers ``(B,)`` have ended."""
        return torch.tensor(self._ended, device=input_ids.device) | self._is_closed()

    def end(self) -> None:
        """Gives the answers that did not end by themselves."""
        for row, ask in enumerate(self._asks):
            if self._is_closed():
                _fail(ask, RuntimeError("The server was stopped."))
            elif not self._ended[row]:
                self._finish(row, "length")

    def _take(self, row: int, token: int) -> None:
        ask, text = self._asks[row], self._texts[row]
        text.add([token])
        ask.sent = text.sent
        if ask.is_unwanted or token in self._stop_ids or text.is_stopped:
            self._finish(row, "stop")
        elif len(text.ids) >= ask.options.max_new_tokens:
            self._finish(row, "length")

    def _finish(self, row: int, reason: Literal["stop", "length"]) -> None:
        ask, text = self._asks[row], self._texts[row]
        self._ended[row] = True
        text.end()
        with suppress(InvalidStateError):  # cancelled
            ask.answer.set_result(Answer(text.text, reason, len(ask.text.ids), len(text.ids)))


def _settle(result: Future[Any], check: Callable[[], None], function: Callable[[], Any]) -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        check()
        result.set_result(function())
    except Exception as error:  # its client gets it, and the thread serves others
        result.set_exception(error)


def _fail(item: Ask | _Call, error: Exception) -> None:
    future: Future[Any] = item.answer if isinstance(item, Ask) else item.result
    with suppress(InvalidStateError):  # answered, or cancelled
        future.set_exception(error)


def _ignored(piece: str) -> None:
    """Nobody reads the answer before its end."""
