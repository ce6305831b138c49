"""Open a trained run, ask about a panorama, look at the answers: python experiments/examples/basic_usage.py

Another run and another panorama: … basic_usage.py runs/mine panorama.jpg
"""

from __future__ import annotations

import logging
import sys

from panollava import PanoLlava
from panollava.data.world import WorldSource

logger = logging.getLogger("example")


def main(run: str = "runs/demo", image: str | None = None) -> None:
    pano = PanoLlava.from_pretrained(run)
    world = WorldSource(split="test", scenes=1)
    panorama = world.panorama(0) if image is None else image

    # Each question on its own:
    for asked in world.questions()[:4]:
        answer = pano.generate(panorama, asked.question, history=asked.history)
        right = f"  (right: {asked.references[0]})" if image is None else ""
        logger.info("%s\n    %s%s", asked.question, answer, right)

    # A conversation of several turns:
    conversation = pano.chat(panorama)
    for question in ("what is behind?", "how high is it?"):
        logger.info("%s\n    %s", question, conversation.ask(question, max_new_tokens=32))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(*sys.argv[1:])
