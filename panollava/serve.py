"""python -m panollava.serve: a web page with a 360° viewer and a chat, and a server in the OpenAI form."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.config.job import INTERRUPTED
from panollava.logs import LOG

if TYPE_CHECKING:
    from panollava.server.app import Served

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeOptions:
    """Plain keys of ``conf/serve.yaml``; see there."""

    checkpoint: str
    beside: str | None
    pictures: str | None
    host: str
    port: Annotated[int, Interval(ge=0, le=65535)]
    hosts: list[str]
    batch_size: Annotated[int, Interval(ge=1)]
    queue: Annotated[int, Interval(ge=1)]
    upload_mb: Annotated[float, Interval(gt=0)]
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    allow: str | list[str]


@entrypoint("serve", positional=("checkpoint",))
def main(cfg: DictConfig) -> None:
    """Serves one model, or two side by side."""
    from panollava.run.sections import RUN_EXAMPLE, read_config  # here, so that --help needs no PyTorch

    options, sections = read_config(cfg, ServeOptions, required=["checkpoint"], example=RUN_EXAMPLE)
    listener = _listen(options.host, options.port)
    key = _key(os.environ.get("PANOLLAVA_API_KEY", ""))
    if options.host not in LOOPBACK and key is None:
        LOG.warning("host=%s: everybody in the network can ask. Set PANOLLAVA_API_KEY to ask for a key.", options.host)

    from panollava import __version__
    from panollava.data.fetch import FetchOptions
    from panollava.run.image_commands import find_panoramas
    from panollava.server.app import create_app
    from panollava.server.pictures import Pictures, file_pictures, world_pictures

    folder = options.pictures
    offered = world_pictures() if folder is None else file_pictures(find_panoramas(folder, FetchOptions(), "pictures"))
    names = _names(options.checkpoint, options.beside)
    models = [_open(path, name, options, sections["generation"]) for name, path in names.items()]
    app = create_app(
        models,
        Pictures([model.part.crop for model in models], offered),
        hosts=[*options.hosts, socket.gethostname()],
        key=key,
        upload_bytes=int(options.upload_mb * 2**20),
        version=__version__,
    )
    _run(app, listener, models)


def _key(value: str) -> str | None:
    """The key that clients must send, None for none."""
    key = value.strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise ValueError(
            "PANOLLAVA_API_KEY has other characters than printable ASCII, which a header cannot have. "
            "Choose another key."
        )
    return key or None


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address, before any model is opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"host={host} port={port}: the server cannot listen there ({error}). Choose another port, or port=0 for "
            "one that is free."
        ) from error


def _names(checkpoint: str, beside: str | None) -> dict[str, str]:
    """Folders by the names of their models: of the experiment, else of the folder."""
    names: dict[str, str] = {}
    for path in (checkpoint, beside):
        if path is None:
            continue
        name = _experiment(Path(path).expanduser())
        names[name if name not in names else f"{name} (beside)"] = path
    return names


def _experiment(path: Path) -> str:
    from panollava.run_folder import find_trained, is_run, read_metadata

    return str(read_metadata(find_trained(path)[0])["experiment_name"]) if is_run(path) else path.name


def _open(path: str, name: str, options: ServeOptions, generation: Mapping[str, Any]) -> Served:
    """Opens a model as its evaluation does: on the device, in the precision of its training."""
    from panollava.model.api import VisionPart
    from panollava.run.image_commands import command_compute
    from panollava.run_folder import is_run
    from panollava.server.app import Served
    from panollava.server.engine import Engine
    from panollava.server.overlays import Overlays
    from panollava.server.weights import MappedWeights

    folder, compute = Path(path).expanduser(), command_compute(path, options.device, options.precision)
    weights = MappedWeights(None if is_run(folder) or compute.device.type != "cpu" else folder)
    part = VisionPart.from_pretrained(path, device=compute.device, dtype=compute.dtype, allow=options.allow)
    summary = part.crop.summary
    if part.pano is not None:
        part.pano.generation = part.pano.generation.changed(generation)
        summary = f"{part.pano.summary}; {summary}"
    limits = {"batch_size": options.batch_size, "queue_limit": options.queue}
    engine = Engine(part.pano, compute, **limits, check=weights.check)
    return Served(name, summary, part, engine, Overlays(part.vision, part.crop))


def _run(app: Any, listener: socket.socket, models: Sequence[Served]) -> None:
    """Serves until Ctrl-C."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            names = " and ".join(model.name for model in models)
            LOG.info("Serving %s at %s (the page) and %s/v1 (OpenAI form). Ctrl-C ends it.", names, address, address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for model in models:  # first, so that no client waits for an answer
                model.engine.close()
            await super().shutdown(sockets=sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
    )
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        LOG.info("Interrupted.")
        logging.shutdown()
        os._exit(INTERRUPTED)  # at once: threads that read a large picture would be waited for


if __name__ == "__main__":
    main()
