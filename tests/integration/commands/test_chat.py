"""``python -m panollava.chat`` with piped input: turns, commands, mistakes, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import command

from panollava import chat
from panollava.chat import Chat
from panollava.data.fetch import FetchOptions
from panollava.data.world import WorldSource
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.run.image_commands import look

Capture = pytest.CaptureFixture[str]
Talk = Callable[..., tuple[int, list[str], str]]
TOKENS = 8


@pytest.fixture
def talk(in_recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Talk:
    """``talk(lines, *arguments)``: exit status, lines of standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    Path("runs").symlink_to(in_recorded / "runs")
    for index, name in enumerate(("one.jpg", "two (2).jpg")):
        cv2.imwrite(name, WorldSource(split="test", scenes=2).panorama(index)[..., ::-1])

    def run(lines: str, *arguments: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        typed = ["checkpoint=runs/recorded", f"max_new_tokens={TOKENS}", "device=cpu", *arguments]
        status = command(monkeypatch, chat, *typed)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out.splitlines(), captured.err

    return run


def test_turns_know_each_other_until_a_reset(talk: Talk) -> None:
    status, out, _ = talk("what is there?\n\nwhere is it, 어디?\n/reset\nwhere is it, 어디?\n", "image=one.jpg")
    pano = PanoLlava.from_pretrained("runs/recorded")
    first = pano.generate("one.jpg", "what is there?", max_new_tokens=TOKENS)
    history = [("what is there?", first)]
    second = pano.generate("one.jpg", "where is it, 어디?", history=history, max_new_tokens=TOKENS)
    third = pano.generate("one.jpg", "where is it, 어디?", max_new_tokens=TOKENS)
    assert second != third
    assert (status, out) == (0, "\n".join((first, second, third)).splitlines())


def test_another_panorama_begins_another_conversation(talk: Talk) -> None:
    lines = "what is there?\n/image 'two (2).jpg'\nwhat is there?\n/quit\nwhat is there?\n"
    status, out, error = talk(lines, "image=one.jpg")
    pano = PanoLlava.from_pretrained("runs/recorded")
    expected = [pano.generate(name, "what is there?", max_new_tokens=TOKENS) for name in ("one.jpg", "two (2).jpg")]
    assert expected[0] != expected[1]
    assert (status, out) == (0, "\n".join(expected).splitlines())
    assert "Panorama: two (2).jpg" in error


def test_a_view_is_saved(talk: Talk) -> None:
    status, out, error = talk("/view 90 -30\n/view -22.5, 0\n", "image=one.jpg")
    assert (status, out) == (0, [])
    assert "view_90_-30.png shows 90 degrees around yaw 90, pitch -30" in error
    saved = cv2.imread("view_90_-30.png")
    assert saved is not None
    assert (np.asarray(saved)[..., ::-1] == look(Path("one.jpg"), 90, -30)).all()
    assert Path("view_-22.5_0.png").is_file()


def test_mistakes_do_not_end_the_chat(talk: Talk) -> None:
    Path("no.jpg").write_text("no picture " * 20)
    lines = [
        "what is there?",
        "/view 0 0",
        "/image",
        "/image one.jpg",
        "/image nowhere.jpg",
        "/image no.jpg",
        "/image https://10.0.0.1/c.jpg",
        "/imgae one.jpg",
        "/view up",
        "/view 0 100",
        "many words " * 300,
        "/help",
        "what is there?",
    ]
    status, out, error = talk("\n".join(lines))
    pano = PanoLlava.from_pretrained("runs/recorded")
    answer = pano.generate("one.jpg", "what is there?", max_new_tokens=TOKENS)
    assert (status, out) == (0, answer.splitlines())
    said = [
        "There is no panorama yet: /image <path> opens one.",
        "/image needs the path",
        "nowhere.jpg: there is no such file",
        "no.jpg: neither a JPEG nor a PNG",
        "which is not a public address",
        "/imgae is no command. There are /image",
        "/view up: two numbers",
        "pitch 100 is no direction",
        "Shorten it",
        "/reset               forget",
    ]
    places = [error.find(part) for part in said]
    assert -1 not in places
    assert places == sorted(places)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A shell that starts the tests in the background lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_the_answer_only(talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    talk("")  # for its folder
    pano = PanoLlava.from_pretrained("runs/recorded")
    pano.generation = GenerationOptions(max_new_tokens=TOKENS)
    session = Chat(pano, fetch=FetchOptions())
    session.open("one.jpg")
    assert session.conversation is not None
    spoken: list[str] = []

    def speak(text: str, end: str = "\n") -> None:
        spoken.append(text + end)
        if len(spoken) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("panollava.chat.say", speak)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is there?\nwhere?\n"))
    session.run()
    whole = pano.generate("one.jpg", "what is there?", max_new_tokens=TOKENS)
    (stopped, second) = session.conversation.turns
    assert whole.startswith(stopped[1])
    assert len(stopped[1]) < len(whole)
    assert spoken[: len(spoken)][1:3] == [" …", "\n"]
    assert second == ("where?", pano.generate("one.jpg", "where?", history=[stopped], max_new_tokens=TOKENS))


WRONG = [
    pytest.param(["image=nowhere.jpg"], "nowhere.jpg: there is no such file", id="image"),
    pytest.param(["checkpoint=nowhere"], "nowhere is no run", id="run"),
    pytest.param(["max_new_tokens=0"], "max_new_tokens=0", id="range"),
    pytest.param(["imgae=one.jpg"], "Did you mean image", id="key"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG)
def test_a_start_that_cannot_be_is_one_message(talk: Talk, typed: list[str], said: str) -> None:
    status, out, error = talk("what?\n", *typed)
    assert (status, out) == (1, [])
    assert said in error
