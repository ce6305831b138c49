"""The server with small random models, on a free port of this machine."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import torch
import uvicorn

from panollava.crop.crop import Crop
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava, VisionPart
from panollava.prompt import ChatPrompt
from panollava.server.app import Served, create_app
from panollava.server.engine import Engine
from panollava.server.overlays import Overlays
from panollava.server.pictures import Offered, Pictures
from panollava.training.precision import Compute
from support.models import composite

Backbone = Callable[[str], Path]
CPU = Compute(torch.device("cpu"), torch.float32)


def panorama(seed: int = 0, height: int = 64) -> np.ndarray:
    """Noise, so that two pictures are far apart."""
    return np.random.default_rng(seed).integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def talkative(backbone: Backbone, language: str = "llama", **options: Any) -> PanoLlava:
    """A model whose weights are large enough that what it says depends on what it is asked."""
    model, tokenizer = composite(backbone("siglip"), backbone(language))
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    crop = Crop.from_spec(model.config.crop, view_size=(32, 32))
    generation = GenerationOptions(**{"max_new_tokens": 9, **options})
    return PanoLlava(model, ChatPrompt(tokenizer), crop, generation=generation)


def served(pano: PanoLlava, name: str = "model", *, batch_size: int = 8, queue_limit: int = 64) -> Served:
    engine = Engine(pano, CPU, batch_size=batch_size, queue_limit=queue_limit)
    part = VisionPart(name, pano.model.vision, pano.crop, pano)
    return Served(name, pano.summary, part, engine, Overlays(part.vision, part.crop))


@contextmanager
def listening(*models: Served, key: str | None = None, upload_bytes: int = 2**20, limit: int = 2**30) -> Iterator[str]:
    """The address of a server of these models; the panorama ``seed-0`` is offered."""
    offered = [Offered("seed-0", "noise", "what?", panorama)]
    pictures = Pictures([model.part.crop for model in models], offered, limit=limit)
    app = create_app(models, pictures, hosts=["my-server"], key=key, upload_bytes=upload_bytes, version="test")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for model in models:
            model.engine.close()
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def messages(picture: bytes, *texts: str) -> list[dict[str, Any]]:
    """Question, answer, question, …; the picture is in the first."""
    shown = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    first = {"role": "user", "content": [shown, {"type": "text", "text": texts[0]}]}
    roles = ["assistant", "user"] * len(texts)
    return [first, *({"role": role, "content": text} for role, text in zip(roles, texts[1:], strict=False))]


def complete(address: str, picture: bytes, *texts: str, **body: Any) -> requests.Response:
    """A request of ``/v1/chat/completions``."""
    document = {"model": "model", "messages": messages(picture, *texts), **body}
    return requests.post(f"{address}/v1/chat/completions", json=document, timeout=60, stream=bool(body.get("stream")))


def said(response: requests.Response) -> str:
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def events(response: requests.Response) -> list[Mapping[str, Any]]:
    """Documents of an event stream, without its last line ``[DONE]``."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines(decode_unicode=True) if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]
