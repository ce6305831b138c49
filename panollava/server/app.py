"""The routes of the server: the OpenAI form below ``/v1``, what the page needs below ``/api``, and the page itself."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from panollava.generation import GenerationOptions
from panollava.model.api import VisionPart
from panollava.model.detector import Detections
from panollava.server import openai
from panollava.server.engine import Answer, Ask, Engine
from panollava.server.guard import Guard, RefusedError, has_key, read_body
from panollava.server.overlays import Overlay, Overlays, boxes_document, mask_png, views_document
from panollava.server.pictures import Panorama, Pictures

STATIC = Path(__file__).with_name("static")
LOOK_S = 0.5
"""Time between two looks at whether a client still waits."""
MAX_TEXT = 100_000
"""Most bytes of a request without a picture."""
LONG = "The conversation is too long. Begin anew."
_END = object()


@dataclass(eq=False)
class Served:
    """A model that is served.

    Attributes:
        name: by which clients choose it.
        summary: what it is, in a line.
        engine: answers with it.
        created: when it was opened, seconds since 1970.
    """

    name: str
    summary: str
    part: VisionPart
    engine: Engine
    overlays: Overlays
    created: int = field(default_factory=lambda: int(time.time()))
    _encoding: Any = field(default_factory=Lock)  # a tokenizer is for one thread at a time

    @property
    def options(self) -> GenerationOptions:
        """Its decoding options."""
        assert self.part.pano is not None
        return self.part.pano.generation

    def ask(
        self,
        panorama: Panorama,
        question: str,
        history: Sequence[tuple[str, str]],
        options: GenerationOptions,
        stop: Sequence[str] = (),
    ) -> Ask:
        """A question about a panorama, ready for the engine. Raises ValueError where it does not fit the model."""
        pano = self.part.pano
        openai.check_length(history)
        if pano is None:
            raise ValueError(f"{self.name} is of a stage without a language model and cannot answer.")
        views = panorama.views(pano.crop)
        with self._encoding:
            text = pano.encode(question, history, max_new_tokens=options.max_new_tokens)
        return Ask(panorama.digest, views, text, options, tuple(stop))


class PageQuestion(BaseModel):
    """The body of ``POST /api/ask``."""

    model: str
    picture: str
    question: Annotated[str, Field(min_length=1)]
    history: list[tuple[str, str]] = []
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class PageAnswer(PageQuestion):
    """The body of ``POST /api/attention``."""

    answer: str


def create_app(
    models: Sequence[Served],
    pictures: Pictures,
    *,
    hosts: Sequence[str],
    key: str | None,
    upload_bytes: int,
    version: str,
) -> Guard:
    """The server as an ASGI application.

    Args:
        models: the first is the page's default.
        hosts, key: as for ``Guard``.
        upload_bytes: most bytes of a picture.
        version: of the package.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages load scripts from other hosts
    _add_errors(app)
    served = {model.name: model for model in models}
    _add_openai(app, served, pictures, upload_bytes)
    _add_overlays(app, served, pictures)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/info")
    async def info(request: Request) -> dict[str, Any]:
        if not has_key(key, request.headers):  # names of models and pictures are for those who have it
            return {"models": [], "pictures": [], "key_needed": True, "upload_bytes": upload_bytes, "version": version}
        return {
            "models": [
                {
                    "id": model.name,
                    "name": model.name,
                    "summary": model.summary,
                    "answers": model.part.pano is not None,
                    "detects": model.part.detector is not None,
                    "explains": model.part.pano is not None and model.part.pano.model.config.join != "mean",
                }
                for model in models
            ],
            "pictures": [
                {"id": one.id, "name": one.name, "question": one.question} for one in pictures.offered.values()
            ],
            "key_needed": key is not None,
            "upload_bytes": upload_bytes,
            "version": version,
        }

    @app.post("/api/pictures")
    async def add_picture(request: Request) -> dict[str, Any]:
        content = await read_body(request, upload_bytes)
        panorama = await run_in_threadpool(pictures.add, content)
        await run_in_threadpool(_decoded, panorama, pictures)
        return {"id": panorama.id, "width": panorama.size[1], "height": panorama.size[0]}

    @app.get("/api/pictures/{name}")
    async def picture(name: str) -> Response:
        panorama = await run_in_threadpool(pictures.get, name)
        return Response(await run_in_threadpool(_decoded, panorama, pictures), media_type="image/jpeg")

    @app.post("/api/ask")
    async def ask(request: Request) -> Response:
        asked = openai.parse_body(PageQuestion, await read_body(request, MAX_TEXT, LONG))
        model = _model(served, asked.model)
        model.engine.check_room()

        def prepare() -> Ask:
            options = model.options.changed({"max_new_tokens": asked.max_tokens})
            return model.ask(pictures.get(asked.picture), asked.question, asked.history, options)

        item = await run_in_threadpool(_as_refused(prepare))
        pieces = _pieces(item, _submitted(model.engine, item), request)
        return StreamingResponse(_page_events(pieces), media_type="text/event-stream", headers=_UNBUFFERED)

    @app.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, hosts=hosts, key=key)


_UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of a stream: no proxy may hold its pieces back."""


def _add_errors(app: FastAPI) -> None:
    """Every error has the OpenAI form."""

    async def refused(_: Request, error: Any) -> Response:
        return error.response()

    async def invalid(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        return RefusedError(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}.").response()

    async def of_route(request: Request, error: Any) -> Response:
        return RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").response()

    async def failed(_: Request, error: Any) -> Response:
        return RefusedError(500, f"The server failed: {type(error).__name__}.").response()

    async def left(_: Request, __: Any) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_route)
    app.add_exception_handler(Exception, failed)


def _add_openai(app: FastAPI, served: Mapping[str, Served], pictures: Pictures, upload_bytes: int) -> None:
    answering = {name: model for name, model in served.items() if model.part.pano is not None}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [
            {"id": name, "object": "model", "created": model.created, "owned_by": "panollava"}
            for name, model in answering.items()
        ]
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        model = _model(answering, name)
        return {"id": name, "object": "model", "created": model.created, "owned_by": "panollava"}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        for model in answering.values():  # all of one process: a client that is refused need not know of which
            model.engine.check_room()
        body = await read_body(request, upload_bytes * 4 // 3 + MAX_TEXT)  # base64 takes four bytes for three

        def prepare() -> tuple[openai.Asked, Ask]:
            recorded = {name: model.options for name, model in answering.items()}
            system = {
                name: model.part.pano.prompt.format.system for name, model in answering.items() if model.part.pano
            }
            asked = openai.parse_request(body, recorded, system)
            panorama = pictures.add(asked.picture)
            model = answering[asked.model]
            return asked, model.ask(panorama, asked.question, asked.history, asked.options, asked.stop)

        asked, item = await run_in_threadpool(_as_refused(prepare))
        engine, name = answering[asked.model].engine, f"chatcmpl-{uuid.uuid4().hex}"
        pieces = _pieces(item, _submitted(engine, item), request)
        if asked.stream:
            events = _openai_events(pieces, name, asked)
            return StreamingResponse(events, media_type="text/event-stream", headers=_UNBUFFERED)
        async for piece in pieces:
            if isinstance(piece, Answer):
                return JSONResponse(openai.completion(name, asked.model, piece))
        raise RefusedError(499, "The client has left.")


def _add_overlays(app: FastAPI, served: Mapping[str, Served], pictures: Pictures) -> None:
    @app.get("/api/pictures/{name}/views")
    async def views(name: str, model: str) -> dict[str, Any]:
        panorama, crop = await run_in_threadpool(pictures.get, name), _model(served, model).part.crop
        return views_document(await run_in_threadpool(_as_refused(lambda: panorama.cameras(crop))))

    @app.get("/api/pictures/{name}/boxes")
    async def boxes(name: str, model: str, request: Request) -> dict[str, Any]:
        panorama = await run_in_threadpool(pictures.get, name)
        return boxes_document(await _detections(_model(served, model), panorama, request))

    @app.get("/api/pictures/{name}/mask")
    async def mask(name: str, model: str, request: Request) -> Response:
        found = await _detections(_model(served, model), await run_in_threadpool(pictures.get, name), request)
        return Response(await run_in_threadpool(mask_png, found), media_type="image/png")

    @app.get("/api/pictures/{name}/similar")
    async def similar(name: str, model: str, yaw: float, pitch: float, request: Request) -> Response:
        chosen, panorama = _model(served, model), await run_in_threadpool(pictures.get, name)
        seen = await run_in_threadpool(_as_refused(lambda: panorama.views(chosen.part.crop)))
        return _png(await _called(chosen.engine, lambda: chosen.overlays.similar(seen, yaw, pitch), request))

    @app.post("/api/attention")
    async def attention(request: Request) -> Response:
        asked = openai.parse_body(PageAnswer, await read_body(request, MAX_TEXT, LONG))
        openai.check_length(asked.history)
        model, panorama = _model(served, asked.model), await run_in_threadpool(pictures.get, asked.picture)
        pano = model.part.pano
        if pano is None:
            raise RefusedError(400, f"{asked.model} has no language model, so there is no attention to show.")
        seen = await run_in_threadpool(_as_refused(lambda: panorama.views(pano.crop)))
        texts = asked.question, asked.answer, asked.history
        return _png(await _called(model.engine, lambda: model.overlays.attention(pano, seen, *texts), request))


async def _detections(model: Served, panorama: Panorama, request: Request) -> Detections:
    """What the model's detection stage finds, computed once."""
    detector = model.part.detector
    if detector is None:
        raise RefusedError(400, f"{model.name} has no detection stage. Train one with stage=detect.")

    def find() -> Detections:
        return panorama.once(("detections", model.name), lambda: detector.detect(panorama.pixels(detector.crop)))

    return await _called(model.engine, find, request)


async def _called(engine: Engine, function: Callable[[], Any], request: Request) -> Any:
    """The result of a function that uses the model; it is not called any more where the client leaves."""
    result = asyncio.wrap_future(engine.call(_as_refused(function)))
    while not (await asyncio.wait([result], timeout=LOOK_S))[0]:
        if await request.is_disconnected():
            result.cancel()
            raise RefusedError(499, "The client has left.")
    return result.result()


def _submitted(engine: Engine, item: Ask) -> asyncio.Queue[Any]:
    """Puts a question into the queue of a model; the pieces of its answer come through another, then ``_END``.

    Raises:
        RefusedError: the queue is full.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def pass_on(piece: Any) -> None:
        with suppress(RuntimeError):  # the server has stopped
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    item.on_text = pass_on
    item.answer.add_done_callback(lambda _: pass_on(_END))
    engine.submit(item)
    return pieces


async def _pieces(item: Ask, pieces: asyncio.Queue[Any], request: Request) -> AsyncIterator[str | Answer]:
    """Pieces of an answer, then the answer; the rest is not generated where the client leaves.

    Raises:
        RefusedError: the model failed.
    """
    try:
        looked = time.monotonic()
        while True:
            with suppress(TimeoutError):
                if (piece := await asyncio.wait_for(pieces.get(), timeout=LOOK_S)) is _END:
                    break
                yield piece
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                if await request.is_disconnected():
                    return
        try:
            yield item.answer.result()
        except Exception as error:
            raise RefusedError(500, f"The model failed: {error}") from error
    finally:
        item.is_cancelled = True


async def _page_events(pieces: AsyncIterator[str | Answer]) -> AsyncIterator[str]:
    try:
        async for piece in pieces:
            if isinstance(piece, str):
                yield _event({"text": piece})
            else:
                yield _event({"answer": piece.text, "finish_reason": piece.finish_reason, "tokens": piece.tokens})
    except RefusedError as error:
        yield _event({"error": {"message": error.message}})


async def _openai_events(pieces: AsyncIterator[str | Answer], name: str, asked: openai.Asked) -> AsyncIterator[str]:
    yield _event(openai.chunk(name, asked.model, {"role": "assistant", "content": ""}))
    try:
        async for piece in pieces:
            if isinstance(piece, str):
                yield _event(openai.chunk(name, asked.model, {"content": piece}))
                continue
            yield _event(openai.chunk(name, asked.model, {}, piece.finish_reason))
            if asked.include_usage:
                yield _event({**openai.chunk(name, asked.model, {}), "choices": [], "usage": openai.usage(piece)})
    except RefusedError as error:
        yield _event({"error": {"message": error.message}})
    yield "data: [DONE]\n\n"


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _decoded(panorama: Panorama, pictures: Pictures) -> bytes:
    """A panorama as JPEG. Raises RefusedError where its data are damaged."""
    return _as_refused(lambda: panorama.jpeg(pictures.crops[0].panorama_fov_deg))()


def _model(served: Mapping[str, Served], name: str) -> Served:
    if name not in served:
        raise RefusedError(404, f"model={name!r}: there is {', '.join(served)}.")
    return served[name]


def _as_refused(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function, its errors about pictures and questions as answers of status 400."""

    def call() -> Any:
        try:
            return function()
        except (ValueError, TypeError, OSError) as error:
            raise RefusedError(400, str(error)) from error

    return call


def _png(made: Overlay) -> Response:
    return Response(made.png, media_type="image/png", headers={"x-range": f"{made.low:.3g} {made.high:.3g}"})
