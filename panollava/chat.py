"""python -m panollava.chat: several turns about a panorama, in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG, say

if TYPE_CHECKING:
    from panollava.data.fetch import FetchOptions
    from panollava.model.api import Conversation, PanoLlava

HELP = """\
/image <path>        look at another panorama, and begin anew; a file or an http(s) address
/view <yaw> <pitch>  save the view in a direction as a picture; degrees to the right and up
/reset               forget what was said
/help                these lines
/quit                leave, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass(frozen=True)
class ChatOptions:
    """Plain keys of ``conf/chat.yaml``; see there."""

    checkpoint: str
    image: str | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    allow: str | list[str]


@entrypoint("chat", positional=("checkpoint", "image"))
def main(cfg: DictConfig) -> None:
    """Opens a model and answers the lines of standard input."""
    from panollava.data.fetch import FetchOptions  # here, so that --help needs no PyTorch
    from panollava.model.api import PanoLlava
    from panollava.run.image_commands import command_compute
    from panollava.run.sections import RUN_EXAMPLE, read_config

    options, sections = read_config(cfg, ChatOptions, required=["checkpoint"], example=RUN_EXAMPLE)
    compute = command_compute(options.checkpoint, options.device, options.precision)
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(sections["generation"])
    chat = Chat(pano, fetch=FetchOptions(**sections["fetch"]))
    with compute.autocast():
        if options.image is not None:
            chat.open(options.image)
        chat.run()


class Chat:
    """Reads questions and commands, one a line.

    Attributes:
        image: the current panorama, None until there is one.
        conversation: about it.
    """

    def __init__(self, pano: PanoLlava, *, fetch: FetchOptions) -> None:
        self._pano, self._fetch = pano, fetch
        self.image: Path | None = None
        self.conversation: Conversation | None = None

    def run(self) -> None:
        """Reads standard input to its end, or to ``/quit``; an error of a line is logged, and the next line read."""
        prompt = "> " if sys.stdin.isatty() else ""
        if prompt:
            with suppress(ImportError):  # line editing and history; Windows has no such module
                import readline  # noqa: F401
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                LOG.info("\n(Ctrl-D or /quit leaves.)")
                continue
            if line == "/quit":
                return
            try:
                self.handle(line)
            except (ValueError, OSError) as error:
                LOG.error("%s", error)
        if prompt:
            say("")

    def handle(self, line: str) -> None:
        """Runs a command, or answers a question.

        Raises:
            OSError: a picture cannot be opened or written.
            ValueError: there is no such command, or it does not make sense.
        """
        word, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.open,
            "/view": self._view,
            "/reset": self._reset,
            "/help": lambda _: LOG.info("%s", HELP),
        }
        if word in commands:
            commands[word](rest.strip())
        elif word.startswith("/"):
            raise ValueError(f"{word} is no command. There are {', '.join(commands)} and /quit.")
        elif line:
            self._answer(line)

    def open(self, image: str) -> None:
        """Begins a conversation about a panorama; one that cannot be opened changes nothing."""
        from panollava.run.image_commands import named_panorama

        if not image:
            raise ValueError("/image needs the path of a panorama.")
        unquoted = image[1:-1] if len(image) > 1 and image[0] == image[-1] and image[0] in "'\"" else image
        path = named_panorama(unquoted, self._fetch)
        self.conversation = self._pano.chat(path)
        self.image = path
        LOG.info("Panorama: %s. /help lists the commands.", unquoted)

    def _answer(self, question: str) -> None:
        if self.conversation is None:
            raise ValueError("There is no panorama yet: /image <path> opens one.")
        try:
            self.conversation.ask(question, on_text=lambda piece: say(piece, end=""))
        except KeyboardInterrupt:
            say(" …", end="")
        say("")

    def _view(self, direction: str) -> None:
        from panollava.evaluation.drawing import encode_png
        from panollava.run.image_commands import look, write_out

        if self.image is None:
            raise ValueError("There is no panorama yet: /image <path> opens one.")
        try:
            yaw, pitch = map(float, direction.replace(",", " ").split())
        except ValueError:
            raise ValueError(f"/view {direction}: two numbers are needed, such as /view 90 -30.") from None
        picture = look(self.image, yaw, pitch, covered=self._pano.crop.panorama_fov_deg)
        out = Path(f"view_{yaw:g}_{pitch:g}.png")
        write_out(out, encode_png(picture))
        LOG.info("%s shows 90 degrees around yaw %g, pitch %g.", out, yaw, pitch)

    def _reset(self, _: str) -> None:
        if self.conversation is not None:
            self.conversation.turns.clear()
        LOG.info("The conversation is reset.")


if __name__ == "__main__":
    main()
