"""The OpenAI form of chat completions: what a request asks, and how an answer is written.

Source: the API reference of OpenAI, "Create chat completion". Of it there is what one panorama, a conversation about it
and the decoding options need; what would change an answer and is not there is refused by its name.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panollava.generation import GenerationOptions
from panollava.server.engine import Answer
from panollava.server.guard import RefusedError

Form = TypeVar("Form", bound=BaseModel)
WITHOUT_EFFECT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
"""Keys that change no answer."""
NEUTRAL = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "logit_bias": {},
    "tools": [],
    "top_logprobs": 0,
}
"""Keys whose only possible value is the one that leaves answers as they are."""
STOPS, STOP_LENGTH = 4, 200
"""Most stop texts, and most characters of one."""
TURNS = 100
"""Most questions of a conversation."""


class ImageUrl(BaseModel):
    """A picture in a message."""

    url: str
    detail: str | None = None


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | str | None = None


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


@dataclass(frozen=True)
class Asked:
    """What a request asks."""

    model: str
    picture: bytes  # content of a file
    history: tuple[tuple[str, str], ...]
    question: str
    options: GenerationOptions
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_request(body: bytes, recorded: Mapping[str, GenerationOptions], system: Mapping[str, str | None]) -> Asked:
    """Reads a request.

    Args:
        body: JSON.
        recorded: by model its decoding options, of which a request changes those that it names.
        system: by model the system text with which it was trained.

    Raises:
        RefusedError: it is no such request; the message names the key.
    """
    request = parse_body(ChatRequest, body)
    for key, value in (request.model_extra or {}).items():
        if key not in WITHOUT_EFFECT and value is not None and (key not in NEUTRAL or value != NEUTRAL[key]):
            allowed = f"only {NEUTRAL[key]!r} is possible" if key in NEUTRAL else "this key is not known"
            raise RefusedError(400, f"{key}={json.dumps(value)[:60]}: {allowed}. Leave it out.")
    if request.model not in recorded:
        raise RefusedError(404, f"model={request.model!r}: there is {', '.join(recorded)}.")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > STOPS or not all(0 < len(one) <= STOP_LENGTH for one in stop):
        raise RefusedError(400, f"stop: allowed are up to {STOPS} texts of 1 to {STOP_LENGTH} characters.")
    picture, turns = _conversation(request.messages, system[request.model])
    *before, (question, _) = turns
    return Asked(
        model=request.model,
        picture=picture,
        history=tuple((asked, answer or "") for asked, answer in before),
        question=question,
        options=_options(request, recorded[request.model]),
        stop=stop,
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def parse_body(form: type[Form], body: bytes) -> Form:
    """A request's body, JSON, in a form. Raises RefusedError where it is none; the message names the key."""
    try:
        return form.model_validate(json.loads(body))
    except ValidationError as error:  # a ValueError too
        first = error.errors()[0]
        raise RefusedError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "The body is no JSON.") from error


def _options(request: ChatRequest, recorded: GenerationOptions) -> GenerationOptions:
    """The model's own decoding options with those of the request."""
    if request.temperature is not None and request.temperature == 0:
        recorded = recorded.without_sampling
    is_sampled = (recorded.temperature if request.temperature is None else request.temperature) > 0
    # Of a greedy answer the three have no effect, and clients send them always.
    top_k = 0 if request.top_k == -1 else request.top_k  # some clients write all tokens as -1
    sampling = {"top_p": request.top_p, "top_k": top_k, "seed": request.seed} if is_sampled else {}
    try:
        return recorded.changed(
            {
                "max_new_tokens": request.max_completion_tokens or request.max_tokens,
                "temperature": request.temperature,
                "repetition_penalty": request.repetition_penalty,
                **sampling,
            }
        )
    except ValueError as error:
        raise RefusedError(400, str(error).replace("generation.", "")) from error


def _conversation(messages: list[Message], system: str | None) -> tuple[bytes, list[tuple[str, str | None]]]:
    """The picture, and (question, answer) turns of which the last has no answer."""
    turns: list[tuple[str, str | None]] = []
    pictures: list[str] = []
    for number, message in enumerate(messages):
        words, urls = _read(message)
        pictures += [url for url in urls if url not in pictures]
        if message.role in ("system", "developer"):
            if number or words.strip() != (system or "").strip():
                own = "no system text" if system is None else f"the system text {system!r}"
                raise RefusedError(400, f"messages.{number}: the model was trained with {own}. Leave the message out.")
        elif message.role == "user" and (not turns or turns[-1][1] is not None):
            turns.append((words, None))
        elif message.role == "assistant" and turns and turns[-1][1] is None:
            turns[-1] = turns[-1][0], words
        else:
            raise RefusedError(400, f"messages.{number}: user and assistant take turns, user first.")
    if not turns or turns[-1][1] is not None:
        raise RefusedError(400, "messages: the last one must be of the user, the question to answer.")
    check_length(turns)
    if empty := [number for number, (words, _) in enumerate(turns, start=1) if not words.strip()]:
        raise RefusedError(400, f"messages: question {empty[0]} has no text.")
    if len(pictures) != 1:
        raise RefusedError(400, f"messages: a conversation is about one panorama, here are {len(pictures)} pictures.")
    return decode_picture(pictures[0]), turns


def check_length(turns: Sequence[object]) -> None:
    """Raises RefusedError for a conversation of too many turns."""
    if len(turns) > TURNS:
        raise RefusedError(400, f"The conversation has {len(turns)} questions, at most {TURNS} are taken. Begin anew.")


def _read(message: Message) -> tuple[str, list[str]]:
    """A message's text and the addresses of its pictures."""
    if isinstance(message.content, str):
        return message.content, []
    words = "\n".join(part.text or "" for part in message.content if part.type == "text")
    shown = [part.image_url for part in message.content if part.type == "image_url" and part.image_url is not None]
    return words, [one if isinstance(one, str) else one.url for one in shown]


def decode_picture(url: str) -> bytes:
    """The content of ``data:image/…;base64,…``. Raises RefusedError for addresses and anything else."""
    head, comma, data = url.partition(",")
    if not head.lower().startswith("data:"):
        raise RefusedError(400, f"image_url {url[:60]!r}: addresses are not fetched. Send data:image/jpeg;base64,…")
    if not comma or not head.lower().endswith(";base64"):
        raise RefusedError(400, f"image_url {head[:60]!r}: send data:image/jpeg;base64,… or data:image/png;base64,…")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"image_url: its data are no base64 ({error}).") from error


def completion(name: str, model: str, answer: Answer) -> dict[str, Any]:
    """A whole answer in the OpenAI form."""
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": usage(answer),
    }


def usage(answer: Answer) -> dict[str, int]:
    """Numbers of tokens; those of the panorama count to the prompt."""
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}


def chunk(name: str, model: str, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
    created = int(time.time())
    return {"id": name, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [choice]}
