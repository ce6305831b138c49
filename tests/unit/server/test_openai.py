"""The OpenAI form over HTTP: the same answers as in Python, and a sentence for what is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from support.served import complete, data_url, events, listening, messages, panorama, png, said, served, talkative

from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava

Backbone = Callable[[str], Path]
QUESTIONS = ["what?", "what is the colour of the cube to the right?", "무엇이 보이나요, red or blue?"]
PICTURE = png(panorama(1))


@pytest.fixture(scope="module")
def pano(backbone: Backbone) -> PanoLlava:
    return talkative(backbone)


@pytest.fixture(scope="module")
def address(pano: PanoLlava) -> Iterator[str]:
    with listening(served(pano)) as address:
        yield address


def test_many_clients_get_the_answers_of_python(pano: PanoLlava, address: str) -> None:
    pictures = [panorama(seed) for seed in range(3)]
    cases = [(picture, question) for picture in pictures for question in QUESTIONS] * 3
    with ThreadPoolExecutor(len(cases)) as pool:
        got = list(pool.map(lambda case: said(complete(address, png(case[0]), case[1])), cases))
    expected = [pano.generate(picture, question) for picture, question in cases[:9]]
    assert got == expected * 3
    assert len(set(got)) > 3


def test_a_conversation_is_the_same_as_in_python(pano: PanoLlava, address: str) -> None:
    picture = panorama(1)
    first = pano.generate(picture, QUESTIONS[0])
    second = pano.generate(picture, QUESTIONS[1], history=[(QUESTIONS[0], first)])
    assert said(complete(address, PICTURE, QUESTIONS[0], first, QUESTIONS[1])) == second
    assert second != pano.generate(picture, QUESTIONS[1])


def test_a_stream_gives_the_same_text_in_pieces(pano: PanoLlava, address: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, last, usage = events(complete(address, PICTURE, QUESTIONS[1], **options))
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == pano.generate(panorama(1), QUESTIONS[1])
    assert len([piece for piece in pieces if piece["choices"][0]["delta"].get("content")]) > 1
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]


def test_length_and_stop_texts_end_an_answer(pano: PanoLlava, address: str) -> None:
    whole = said(complete(address, PICTURE, QUESTIONS[1]))
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    stopped = complete(address, PICTURE, QUESTIONS[1], stop=[middle]).json()["choices"][0]
    assert stopped["message"]["content"] == whole[: whole.index(middle)].strip()
    assert stopped["finish_reason"] == "stop"
    streamed = events(complete(address, PICTURE, QUESTIONS[1], stop=[middle], stream=True))
    assert (
        "".join(piece["choices"][0]["delta"].get("content", "") for piece in streamed).strip()
        == whole[: whole.index(middle)].strip()
    )
    short = complete(address, PICTURE, QUESTIONS[1], max_tokens=2).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    assert short["choices"][0]["message"]["content"] == pano.generate(panorama(1), QUESTIONS[1], max_new_tokens=2)


def test_sampling_is_that_of_python_whoever_else_asks(pano: PanoLlava, address: str) -> None:
    options = {"temperature": 1.5, "seed": 3, "top_p": 0.95}
    sampled = GenerationOptions(max_new_tokens=9, **options)  # type: ignore[arg-type]
    expected = [pano.generate(panorama(1), question, generation=sampled) for question in QUESTIONS]
    with ThreadPoolExecutor(9) as pool:
        got = list(pool.map(lambda question: said(complete(address, PICTURE, question, **options)), QUESTIONS * 3))
    assert got == expected * 3
    # What clients send with a greedy answer has no effect.
    greedy = complete(address, PICTURE, QUESTIONS[0], temperature=0, top_p=0.5, seed=7, top_k=-1, n=1, user="me")
    assert said(greedy) == pano.generate(panorama(1), QUESTIONS[0])


@pytest.mark.parametrize("language", ["qwen2", "mistral", "qwen3"])
def test_beams_and_other_families(language: str, backbone: Backbone) -> None:
    pano = talkative(backbone, language, num_beams=2)
    with listening(served(pano)) as address:
        picture = panorama(1)
        for count in (9, 3):
            answer = said(complete(address, PICTURE, QUESTIONS[1], max_tokens=count))
            assert answer == pano.generate(picture, QUESTIONS[1], max_new_tokens=count)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "there is model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "what?"}]}, 400, "one panorama, here are 0"),
    ({"messages": [*messages(PICTURE, "a", "b")]}, 400, "last one must be of the user"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "take turns"),
    ({"messages": [{"role": "system", "content": "Be rude."}, *messages(PICTURE, "a")]}, 400, "system text"),
    ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
    ({"messages": messages(PICTURE, " ")}, 400, "no text"),
    ({"messages": messages(PICTURE, "long " * 5000)}, 400, "does not fit"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 10**9}, 400, "tokens"),
    ({"n": 2}, 400, "n=2"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"tools": [{}]}, 400, "tools"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"max_token": 5}, 400, "max_token=5"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
    ({"stop": ""}, 400, "stop"),
    ({"stop": "z" * 201}, 400, "200 characters"),
    ({"temperature": 1e-40}, 400, "0.001"),
    ({"messages": messages(PICTURE, *["a"] * 203)}, 400, "at most 100"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said(body: dict[str, Any], status: int, words: str, address: str) -> None:
    answer = requests.post(
        f"{address}/v1/chat/completions",
        json={"model": "model", "messages": messages(PICTURE, QUESTIONS[0]), **body},
        timeout=60,
    )
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
URLS: list[tuple[str, str]] = [
    ("http://127.0.0.1:1/a.jpg", "not fetched"),
    ("file:///etc/passwd", "not fetched"),
    ("/etc/passwd", "not fetched"),
    ("data:image/png,abc", "base64"),
    ("data:image/png;base64,!!!", "no base64"),
    ("data:image/png;base64,", "empty"),
    (data_url(SVG, "svg+xml"), "neither a JPEG nor a PNG"),
    (data_url(b"GIF89a" + bytes(100), "gif"), "neither a JPEG nor a PNG"),
    (data_url(PICTURE[:-40]), "cut short"),
    (data_url(PICTURE[:300] + bytes(40) + PICTURE[340:]), "damaged"),
    (data_url(png(panorama(0)[:, :100])), "2:1"),
]


@pytest.mark.parametrize(("url", "words"), URLS, ids=lambda value: value[:30])
def test_nothing_but_a_panorama_is_opened(url: str, words: str, address: str) -> None:
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    body = {"model": "model", "messages": [{"role": "user", "content": shown}]}
    answer = requests.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_bombs_and_large_bodies(address: str) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    refused = complete(address, bomb, "what?")
    assert refused.status_code == 400
    assert "20000 x 10000" in refused.json()["error"]["message"]
    large = complete(address, bytes(3 * 2**20), "what?")
    assert large.status_code == 413
    assert "upload_mb" in large.json()["error"]["message"]

    def pieces() -> Iterator[bytes]:  # without a stated length
        for _ in range(40):
            yield bytes(2**17)

    streamed = requests.post(f"{address}/api/pictures", data=pieces(), timeout=60)
    assert streamed.status_code == 413


def test_hosts_origins_and_headers(address: str) -> None:
    def status(**headers: str) -> int:
        return requests.get(f"{address}/v1/models", headers=headers, timeout=60).status_code

    assert status() == status(host="localhost:1") == status(host="my-server") == status(host="[::1]:8360") == 200
    assert status(host="evil.example") == status(host="127.0.0.1.evil.example") == status(host="") == 403
    assert status(origin=address) == 200
    assert status(origin="http://evil.example") == status(origin="null") == status(origin="http://[") == 403
    assert status(**{"sec-fetch-site": "cross-site"}) == status(**{"sec-fetch-site": "same-site"}) == 403
    assert status(**{"sec-fetch-site": "same-origin"}) == status(**{"sec-fetch-site": "none"}) == 200
    for header in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        refused = requests.get(f"{address}/v1/models", headers=header, timeout=60).json()["error"]["message"]
        assert "Open this server's own page, or ask it by a program" in refused
    followed = requests.get(f"{address}/", headers={"sec-fetch-site": "cross-site"}, timeout=60)
    assert followed.status_code == 200  # a link on another page leads here
    answer = requests.get(f"{address}/", timeout=60)
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in answer.headers)
    for path in ("/docs", "/openapi.json", "/static/../app.py", "/static/%2e%2e/app.py", "/api/pictures/..%2f..%2fx"):
        assert requests.get(f"{address}{path}", timeout=60).status_code == 404


def test_the_key(pano: PanoLlava) -> None:
    with listening(served(pano), key="geheim") as address:
        assert complete(address, PICTURE, "what?").status_code == 401
        assert requests.get(f"{address}/v1/models", timeout=60).status_code == 401
        assert requests.get(f"{address}/api/pictures/seed-0", timeout=60).status_code == 401
        wrong = {"authorization": "Bearer gehei"}
        assert requests.get(f"{address}/v1/models", headers=wrong, timeout=60).status_code == 401
        right = {"authorization": "Bearer geheim"}
        listed = requests.get(f"{address}/v1/models", headers=right, timeout=60).json()
        assert [one["id"] for one in listed["data"]] == ["model"]
        info = requests.get(f"{address}/api/info", timeout=60).json()
        assert (info["key_needed"], info["models"], info["pictures"]) == (True, [], [])
        assert requests.get(f"{address}/api/info", headers=right, timeout=60).json()["pictures"]


def test_a_full_queue_refuses(pano: PanoLlava) -> None:
    model = served(pano, batch_size=1, queue_limit=2)
    release = threading.Event()
    with listening(model) as address:
        held = model.engine.call(release.wait)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(complete, address, PICTURE, QUESTIONS[0]) for _ in range(6)]
            while sum(one.done() for one in asked) < 4:
                threading.Event().wait(0.02)
            release.set()
            answers = [one.result() for one in asked]
        assert held.result()
        assert sorted(one.status_code for one in answers) == [200, 200, 429, 429, 429, 429]
        refused = next(one for one in answers if one.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "queue=2" in json.dumps(refused.json())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(stream: bool, backbone: Backbone) -> None:
    pano = talkative(backbone)
    steps = []
    original = pano.model.language_model.forward

    def slow(*arguments: Any, **options: Any) -> Any:
        steps.append(time.monotonic())
        time.sleep(0.02)
        return original(*arguments, **options)

    pano.model.language_model.forward = slow
    with listening(served(pano)) as address:
        body = {"model": "model", "messages": messages(PICTURE, QUESTIONS[0]), "max_tokens": 900, "stream": stream}
        # The answer is of tokens that never end it.
        pano.model.generation_config.eos_token_id = None
        with suppress(requests.exceptions.RequestException):
            response = requests.post(f"{address}/v1/chat/completions", json=body, timeout=0.5, stream=stream)
            next(response.iter_lines())
            response.close()
        assert said(complete(address, PICTURE, QUESTIONS[1], max_tokens=2)) == pano.generate(
            panorama(1), QUESTIONS[1], max_new_tokens=2
        )
        assert len(steps) < 200


def test_the_longest_conversation_is_answered(address: str) -> None:
    texts = [f"what is {number}?" for number in range(199)]
    assert complete(address, PICTURE, *texts).status_code == 200
