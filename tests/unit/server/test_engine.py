"""The queue: which questions are answered together, and what happens when something fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from support.served import CPU, panorama, talkative

from panollava.batch import Batch
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.server.engine import Ask, Engine
from panollava.server.guard import RefusedError
from panollava.server.weights import MappedWeights

Backbone = Callable[[str], Path]
GREEDY = GenerationOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def pano(backbone: Backbone) -> PanoLlava:
    return talkative(backbone)


class Watched(PanoLlava):
    """Keeps the batches that it answers; fails as the test says."""

    batches: list[Batch]
    fail: Callable[[Batch], None] = staticmethod(lambda batch: None)

    def new_tokens(self, batch: Batch, *args: Any, **options: Any) -> torch.Tensor:
        self.batches.append(batch)
        self.fail(batch)
        return super().new_tokens(batch, *args, **options)


@pytest.fixture
def watched(pano: PanoLlava) -> Watched:
    model = Watched(pano.model, pano.prompt, pano.crop, generation=pano.generation)
    model.batches = []
    return model


@pytest.fixture
def engine(watched: Watched) -> Iterator[Engine]:
    engine = Engine(watched, CPU, batch_size=4, queue_limit=16)
    yield engine
    engine.close()


def question(pano: PanoLlava, text: str, seed: int = 0, options: GenerationOptions = GREEDY, **more: Any) -> Ask:
    return Ask(f"picture {seed}", pano.views(panorama(seed)), pano.encode(text), options, **more)


def held(engine: Engine) -> threading.Event:
    """Holds the engine until the event is set, so that a queue forms."""
    release, begun = threading.Event(), threading.Event()
    engine.call(lambda: (begun.set(), release.wait()))
    assert begun.wait(10)
    return release


def answered(asks: list[Ask]) -> list[str]:
    return [ask.answer.result(60).text for ask in asks]


def test_questions_of_one_kind_are_answered_together(engine: Engine, watched: Watched) -> None:
    release = held(engine)
    sampled = GenerationOptions(max_new_tokens=6, temperature=1.0)
    kinds = [GREEDY, sampled, GREEDY, sampled, GREEDY, GREEDY, GREEDY]
    asks = [question(watched, f"what is {number}?", number % 2, kind) for number, kind in enumerate(kinds)]
    for ask in asks:
        engine.submit(ask)
    release.set()
    together = answered(asks)
    # The first batch is full with four of the five greedy ones; then the oldest that waits, and its kind.
    assert [len(batch) for batch in watched.batches] == [4, 2, 1]
    assert [len(batch.cameras) for batch in watched.batches] == [2, 1, 1]
    alone = [question(watched, f"what is {number}?", number % 2, kind) for number, kind in enumerate(kinds)]
    for ask in alone:
        engine.submit(ask).result(60)
    assert answered(alone) == together
    assert len(set(together)) > 3


def test_each_answer_has_its_own_length_and_is_given_at_its_end(engine: Engine, watched: Watched) -> None:
    release, order = held(engine), []
    asks = [question(watched, "what?", options=GenerationOptions(max_new_tokens=count)) for count in (12, 2, 5)]
    for ask in asks:
        engine.submit(ask).add_done_callback(lambda done: order.append(done.result().tokens))
    release.set()
    wait([ask.answer for ask in asks])
    assert len(watched.batches) == 1
    assert order == sorted(order)
    longest = asks[0].answer.result()
    for ask in asks:
        assert longest.text.startswith(ask.answer.result().text.rstrip("\ufffd"))


def test_a_full_queue(engine: Engine, watched: Watched) -> None:
    release = held(engine)
    for _ in range(16):
        engine.submit(question(watched, "what?"))
    with pytest.raises(RefusedError, match="queue=16"):
        engine.submit(question(watched, "what?"))
    release.set()


def test_cancelled_questions_are_left_out(engine: Engine, watched: Watched) -> None:
    release = held(engine)
    asks = [question(watched, "what?", number) for number in range(3)]
    for ask in asks:
        engine.submit(ask)
    asks[0].is_cancelled = True
    asks[1].answer.cancel()
    release.set()
    assert asks[2].answer.result(60).text
    assert [len(batch) for batch in watched.batches] == [1]


def test_a_batch_that_is_too_large_is_divided(engine: Engine, watched: Watched) -> None:
    def fail(batch: Batch) -> None:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too large")

    watched.fail = fail  # type: ignore[method-assign]
    release = held(engine)
    asks = [question(watched, f"what is {number}?") for number in range(4)]
    for ask in asks:
        engine.submit(ask)
    release.set()
    assert len(answered(asks)) == 4
    assert [len(batch) for batch in watched.batches] == [4, 2, 1, 1, 2, 1, 1]


def test_what_a_divided_batch_has_sent_already_is_not_sent_again(engine: Engine, watched: Watched) -> None:
    """Memory runs out in mid-answer, as the cache grows."""
    pieces: list[list[str]] = [[], []]

    def until(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if len(ids) > 1 and all(map(len, pieces)):
            raise torch.OutOfMemoryError("too large")
        return torch.zeros(len(ids), dtype=torch.bool)

    original = PanoLlava.new_tokens

    def new_tokens(batch: Batch, *args: Any, criteria: Any, **options: Any) -> torch.Tensor:
        watched.batches.append(batch)
        return original(watched, batch, *args, criteria=[*criteria, until], **options)

    watched.new_tokens = new_tokens  # type: ignore[method-assign]
    options = GenerationOptions(max_new_tokens=12)
    release = held(engine)
    asks = [question(watched, f"what is {number}?", options=options) for number in range(2)]
    for ask, kept in zip(asks, pieces, strict=True):
        ask.on_text = kept.append
        engine.submit(ask)
    release.set()
    texts = answered(asks)
    assert [len(batch) for batch in watched.batches] == [2, 1, 1]
    assert ["".join(kept) for kept in pieces] == texts


def test_an_error_reaches_its_clients_and_the_next_question_is_answered(engine: Engine, watched: Watched) -> None:
    def fail(batch: Batch) -> None:
        raise ValueError("broken")

    watched.fail = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="broken"):
        engine.submit(question(watched, "what?")).result(60)
    watched.fail = lambda batch: None  # type: ignore[method-assign]
    assert engine.submit(question(watched, "what?")).result(60).text
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(60)


def test_closing_ends_what_runs_and_what_waits(watched: Watched) -> None:
    engine = Engine(watched, CPU, batch_size=1, queue_limit=16)
    begun = threading.Event()
    options = GenerationOptions(max_new_tokens=200)
    first = question(watched, "what?", options=options, on_text=lambda piece: begun.set())
    second = question(watched, "what?", options=options)
    engine.submit(first)
    engine.submit(second)
    assert begun.wait(60)
    engine.close()
    for ask in (first, second):
        if not (ask is first and ask.answer.done() and ask.answer.exception() is None):
            with pytest.raises(RuntimeError, match="stopped"):
                ask.answer.result(10)
    with pytest.raises(RuntimeError, match="closing"):
        engine.submit(question(watched, "what?"))


def test_a_panorama_is_encoded_once(engine: Engine, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    tower = watched.model.vision.tower
    original = type(tower).forward
    monkeypatch.setattr(
        type(tower), "forward", lambda self, pixels: encoded.append(len(pixels)) or original(self, pixels)
    )
    for text in ("what?", "where?", "what?"):
        engine.submit(question(watched, text)).result(60)
    engine.submit(question(watched, "what?", 1)).result(60)
    assert len(encoded) == 2


def test_weights_that_are_overwritten_while_they_are_mapped_are_noticed(pano: PanoLlava, tmp_path: Path) -> None:
    pano.save_pretrained(tmp_path / "export")
    file = tmp_path / "export" / "model.safetensors"
    content = file.read_bytes()
    weights = MappedWeights(file.parent)
    opened = PanoLlava.from_pretrained(file.parent)
    engine = Engine(opened, CPU, batch_size=4, queue_limit=16, check=weights.check)
    before = [parameter.clone() for parameter in opened.model.parameters()]
    asks = [question(opened, "what is there?") for _ in range(3)]
    engine.submit(asks[0])
    said = answered(asks[:1])
    replaced = tmp_path / "other"  # another file under its name leaves the mapped one as it is
    os.link(file, tmp_path / "kept")
    replaced.write_bytes(bytes(100))
    replaced.replace(file)
    engine.submit(asks[1])
    assert answered(asks[1:2]) == said
    (tmp_path / "kept").replace(file)
    with file.open("r+b") as stream:
        stream.seek(len(content) // 2)
        stream.write(bytes(len(content) // 2))
    assert any(not torch.equal(one, other) for one, other in zip(before, opened.model.parameters(), strict=True))
    for refused in (engine.submit(asks[2]), engine.call(lambda: 1)):
        with pytest.raises(RuntimeError, match=r"model\.safetensors was overwritten .* Restart the server"):
            refused.result(60)
    engine.close()
    MappedWeights(None).check()
    MappedWeights(tmp_path / "user" / "repo").check()  # a name of the hub
