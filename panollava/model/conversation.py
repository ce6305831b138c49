"""Several turns about one panorama, each asked in the knowledge of those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from panollava.generation import GenerationOptions
from panollava.model.processor import Picture

if TYPE_CHECKING:
    from panollava.model.facade import PanoLlava


class Conversation:
    """What ``PanoLlava.chat`` opens.

    Args:
        pano: the model.
        image: the panorama; its views are cut once.

    Attributes:
        turns: (question, answer) pairs so far; emptying the list forgets them.
    """

    def __init__(self, pano: PanoLlava, image: Picture) -> None:
        self._pano = pano
        self._views = pano.views(image)
        self.turns: list[tuple[str, str]] = []

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        generation: GenerationOptions | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Answers a question. Where all turns do not fit into the language model, the oldest ones are left out.

        Args:
            question: any text.
            max_new_tokens: see ``PanoLlava.generate``; likewise ``generation`` and ``on_text``.
            generation: how to decode.
            on_text: is given the answer piece by piece.

        Raises:
            ValueError: the question alone is too long.
            KeyboardInterrupt: Ctrl-C; what was said until then stays in ``turns``.
        """
        said: list[str] = []

        def listen(piece: str) -> None:
            said.append(piece)
            if on_text is not None:
                on_text(piece)

        options = self._pano.decoding(generation, max_new_tokens)
        encoded = self._pano.encode(question, self.turns, max_new_tokens=options.max_new_tokens)
        batch = self._pano.batch([self._views], [encoded])
        try:
            (answer,) = self._pano.answer(batch, generation=options, on_text=listen)
        except KeyboardInterrupt:
            if said:
                self.turns.append((question, "".join(said)))
            raise
        self.turns.append((question, answer))
        return answer
