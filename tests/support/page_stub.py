"""A server with the routes of the page and known content, for tests of the page in a browser."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image

import panollava
from panollava.server.guard import POLICY

STATIC = Path(panollava.__file__).parent / "server" / "static"
MARKUP = '<img src=x onerror="window.broken = true"><b>bold</b>'
"""An answer and a name that must stay text."""
SIZE = (1024, 512)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def uniform(*colour: int) -> np.ndarray:
    """A panorama of one colour, RGB or RGBA."""
    return np.full((SIZE[1], SIZE[0], len(colour)), colour, np.uint8)


def landscape() -> np.ndarray:
    """Ground, sky, a grid of 30 degrees, and a red ring at yaw 180 across the seam."""
    yaw, pitch = _directions()
    up = np.clip(pitch / 90, 0, 1)[..., None]
    sky = np.array([190, 214, 235]) * (1 - up) + np.array([70, 110, 170]) * up
    ground = np.broadcast_to(np.array([96, 120, 92]), sky.shape)
    pixels = np.where(pitch[..., None] > 0, sky, ground)
    grid = (np.abs((yaw + 15) % 30 - 15) < 0.2) | (np.abs((pitch + 15) % 30 - 15) < 0.2)
    pixels[grid] = 235
    for at, high, radius, colour in ((180.0, 3.0, 9.0, (210, 40, 40)), (30.0, 10.0, 7.0, (240, 190, 40))):
        distance = _distance(yaw, pitch, at, high)
        pixels[(distance < radius) & (distance > radius / 2)] = colour
    return pixels.astype(np.uint8)


def _directions() -> tuple[np.ndarray, np.ndarray]:
    yaw = (np.arange(SIZE[0]) + 0.5) / SIZE[0] * 360 - 180
    pitch = 90 - (np.arange(SIZE[1]) + 0.5) / SIZE[1] * 180
    both = np.meshgrid(yaw, pitch)
    return both[0], both[1]


def _distance(yaw: np.ndarray, pitch: np.ndarray, at: float, high: float) -> np.ndarray:
    """Degrees on a great circle."""
    across, up, down = np.radians(yaw - at), np.radians(pitch), math.radians(high)
    cosine = np.sin(up) * math.sin(down) + np.cos(up) * math.cos(down) * np.cos(across)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def rectangle(yaw: float, pitch: float, width: float, height: float) -> list[list[float]]:
    """A closed curve with a point about every degree. Its yaw goes beyond 180 where it crosses the seam."""
    left, right, low, high = yaw - width / 2, yaw + width / 2, pitch - height / 2, pitch + height / 2
    across, up = np.linspace(left, right, round(width) + 1), np.linspace(low, high, round(height) + 1)
    sides = [
        [(x, low) for x in across],
        [(right, y) for y in up],
        [(x, high) for x in across[::-1]],
        [(left, y) for y in up[::-1]],
    ]
    return [[round(float(x), 3), round(float(y), 3)] for side in sides for x, y in side]


def box(name: str, score: float, yaw: float, pitch: float, width: float, height: float) -> dict[str, Any]:
    size = {"yaw": yaw, "pitch": pitch, "width": width, "height": height}
    return {"name": name, "score": score, **size, "outline": rectangle(yaw, pitch, width, height)}


class Stub:
    """The contract between server and page, without a model.

    Args:
        models: their ids, one or two.
        key: what requests must bring, if anything.

    Attributes:
        asked: bodies of the questions.
        gate: what waits for it, goes on when it is set.
    """

    def __init__(self, *models: str, key: str = "") -> None:
        self.models, self.key = models or ("demo",), key
        self.asked: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.pictures = {
            "world-0": encoded(landscape(), "JPEG"),
            "black": encoded(uniform(0, 0, 0), "JPEG"),
            "late": encoded(uniform(40, 40, 90), "JPEG"),
        }
        self.app = FastAPI()
        self._routes()

    def info(self, given: str | None) -> dict[str, Any]:
        told = [
            {"id": one, "name": one, "summary": "tiny, mlp, tiny, anyres_e2p", "detects": True, "explains": True}
            for one in self.models
        ]
        questions = {"world-0": "where is the red ring?"}
        pictures = [
            {"id": one, "name": one.replace("-", " "), "question": questions.get(one)}
            for one in list(self.pictures)[:3]
        ]
        limits = {"key_needed": bool(self.key), "upload_bytes": 1 << 20, "version": "0.0.0"}
        if self.key and given != f"Bearer {self.key}":
            return {"models": [], "pictures": [], **limits}
        return {"models": told, "pictures": pictures, **limits}

    def boxes(self, picture: str) -> list[dict[str, Any]]:
        if picture == "late":
            self.gate.wait(20)
            return [box("late", 0.9, 0, 0, 20, 20)]
        return [box("red ring", 0.93, 180, 3, 24, 20), box(MARKUP, 0.41, 30, 10, 16, 16)]

    async def pieces(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Events of an answer, by the question."""
        question = body["question"]
        if question == "break":
            yield _event(text="half ")
            yield _event(error={"message": "the model broke"})
            return
        if question == "endless":
            while not self.gate.is_set():
                yield _event(text="more ")
                await asyncio.sleep(0.05)
            return
        answer = MARKUP if question == "markup" else f"{body['model']}: {question} after {len(body['history'])}"
        for start in range(0, len(answer), 5):
            yield _event(text=answer[start : start + 5])
            await asyncio.sleep(0.005)
        yield _event(
            answer=answer, finish_reason="length" if question == "long" else "stop", tokens=len(answer.split())
        )

    def _routes(self) -> None:
        app = self.app

        @app.middleware("http")
        async def guarded(request: Request, call: Any) -> Response:
            path, told = request.url.path, request.headers.get("Authorization")
            if self.key and path.startswith("/api/") and path != "/api/info" and told != f"Bearer {self.key}":
                return _refused(401, "a key is needed")
            answer: Response = await call(request)
            answer.headers["Content-Security-Policy"] = POLICY
            return answer

        @app.get("/")
        def index() -> Response:
            return FileResponse(STATIC / "index.html")

        @app.get("/api/info")
        def info(request: Request) -> Response:
            return JSONResponse(self.info(request.headers.get("Authorization")))

        @app.post("/api/pictures")
        async def upload(request: Request) -> Response:
            body = await request.body()
            with Image.open(io.BytesIO(body)) as picture:
                size = picture.size
                pixels = np.asarray(picture.convert("RGB").resize(SIZE))
            name = hashlib.sha256(body).hexdigest()[:16]
            self.pictures[name] = encoded(pixels, "JPEG")
            return JSONResponse({"id": name, "width": size[0], "height": size[1]})

        @app.get("/api/pictures/{name}")
        def picture(name: str) -> Response:
            if name not in self.pictures:
                return _refused(404, f"there is no picture {name}")
            return Response(self.pictures[name], media_type="image/jpeg")

        @app.get("/api/pictures/{name}/views")
        def views(name: str, model: str) -> Response:
            tiles = [
                {"number": at + 1, "yaw": yaw, "pitch": 0.0, "whole": False, "border": [rectangle(yaw, 0, 88, 80)]}
                for at, yaw in enumerate((-90.0, 0.0, 90.0, 180.0))
            ]
            whole = {"number": 5, "yaw": 0.0, "pitch": 0.0, "whole": True, "border": []}
            return JSONResponse({"views": [*tiles, whole]})

        @app.get("/api/pictures/{name}/boxes")
        def boxes(name: str, model: str) -> Response:
            return JSONResponse({"boxes": self.boxes(name)})

        @app.get("/api/pictures/{name}/mask")
        def mask(name: str, model: str) -> Response:
            pixels = uniform(255, 0, 0, 0)
            pixels[_distance(*_directions(), 180, 3) < 9] = (255, 60, 60, 150)
            return Response(encoded(pixels), media_type="image/png")

        @app.get("/api/pictures/{name}/similar")
        def similar(name: str, model: str, yaw: float, pitch: float) -> Response:
            warm = np.exp(-((_distance(*_directions(), yaw, pitch) / 40) ** 2))
            pixels = np.stack([255 * warm, 90 * warm, 160 * (1 - warm), np.full_like(warm, 255)], -1)
            return Response(encoded(pixels.astype(np.uint8)), media_type="image/png", headers={"X-Range": "0.12 1.00"})

        @app.post("/api/ask")
        async def ask(request: Request) -> Response:
            body = await request.json()
            self.asked.append(body)
            if body["question"] == "busy":
                return _refused(429, "the queue is full", **{"Retry-After": "7"})
            return StreamingResponse(self.pieces(body), media_type="text/event-stream")

        @app.post("/api/attention")
        async def attention(request: Request) -> Response:
            body = await request.json()
            if body["question"] == "no map":
                return _refused(400, "this model has no map of attention")
            headers = {"X-Range": "0.0 7.3"}
            return Response(encoded(uniform(255, 255, 0, 255)), media_type="image/png", headers=headers)

        app.mount("/static", StaticFiles(directory=STATIC))


def _event(**content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _refused(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "refused"}}, status, headers=headers)


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """Runs a stub on loopback while the block does, and gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        config = uvicorn.Config(stub.app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the stub did not start"
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stub.gate.set()
            server.should_exit = True
            thread.join(10)
