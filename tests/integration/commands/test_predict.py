"""``python -m panollava.predict``: the answer alone, a folder of panoramas, a table, and what can go wrong."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from support.picture_server import serving
from support.runs import command

from panollava import predict
from panollava.data.fetch import FetchOptions
from panollava.data.world import WorldSource
from panollava.evaluation.predictions import read_predictions
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.run.image_commands import find_panoramas

Capture = pytest.CaptureFixture[str]
Ask = Callable[..., tuple[int, str, str]]
QUESTION = 'what\'s there, "무엇이" (보이나요)?'


@pytest.fixture
def photos(in_recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three panoramas, two files that are none, and a text, in a folder of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "runs").symlink_to(in_recorded / "runs")
    folder = tmp_path / "my photos, all"
    (folder / "deeper").mkdir(parents=True)
    world = WorldSource(split="test", scenes=3)
    for index, name in enumerate(("c.PNG", "a.jpg", "b.jpeg")):
        encoded = cv2.imencode(Path(name).suffix.lower(), world.panorama(index)[..., ::-1])[1]
        (folder / name).write_bytes(encoded.tobytes())
    (folder / "bb.jpg").write_bytes((folder / "a.jpg").read_bytes()[:3000])
    (folder / "d.png").write_text("no picture " * 20)
    (folder / "notes.txt").write_text("not asked about")
    return folder


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Ask:
    """``ask(*arguments)``: exit status, standard output, standard error."""

    def run(*arguments: str, question: str = QUESTION) -> tuple[int, str, str]:
        capsys.readouterr()
        typed = ["checkpoint=runs/recorded", f"question={question}", "device=cpu", *arguments]
        status = command(monkeypatch, predict, *typed)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("question", [QUESTION, "https://host/a?b=c&d=${e}, 'x'"])
def test_one_panorama(photos: Path, ask: Ask, question: str) -> None:
    pano = PanoLlava.from_pretrained("runs/recorded")
    expected = pano.generate(photos / "a.jpg", question, max_new_tokens=8)
    assert expected
    status, out, _ = ask(f"image={photos / 'a.jpg'}", "out=one.csv", question=question)
    assert (status, out) == (0, f"{expected}\n")
    assert rows("one.csv") == [[(photos / "a.jpg").as_posix(), question, expected]]


def test_decoding_is_the_runs_unless_the_command_says_otherwise(photos: Path, ask: Ask) -> None:
    image, pano = photos / "a.jpg", PanoLlava.from_pretrained("runs/recorded")
    assert pano.generation == GenerationOptions(max_new_tokens=8)  # typed as evaluation.max_new_tokens
    for typed, options in (
        (["max_new_tokens=3"], {"max_new_tokens": 3}),
        (["generation.num_beams=3"], {"num_beams": 3}),
        (["generation.temperature=1.5", "generation.seed=4"], {"temperature": 1.5, "seed": 4}),
    ):
        expected = pano.generate(image, QUESTION, generation=pano.generation.changed(options))
        assert ask(f"image={image}", *typed)[:2] == (0, f"{expected}\n")
    status, _, error = ask(f"image={image}", "generation.top_p=0.5")
    assert status == 1
    assert "generation.top_p=0.5 is for sampling" in error


def rows(path: str) -> list[list[str]]:
    """Rows below the header."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        header, *below = csv.reader(stream)
    assert header == ["image", "query", "prediction"]
    return below


def test_a_folder_is_read_by_content(photos: Path, ask: Ask) -> None:
    """Whatever the names; what is left out is counted."""
    for name in ("d.png", "bb.jpg"):
        (photos / name).unlink()
    for old, new in (("a.jpg", "a.jfif"), ("b.jpeg", "b"), ("c.PNG", "c.jpe")):
        (photos / old).rename(photos / new)
    (photos / "sound.wav").write_bytes(b"RIFF")
    status, out, error = ask(f"image={photos}")
    assert status == 0, error
    assert [line.split("\t")[0] for line in out.splitlines()] == ["a.jfif", "b", "c.jpe"]
    assert "left out, as they are no JPEG or PNG: 2, such as notes.txt." in error


def test_a_link_to_nothing_is_named(photos: Path) -> None:
    """Folders of links to a disk that is not there must not look smaller."""
    (photos / "z.jpg").symlink_to("nowhere")
    assert photos / "z.jpg" in find_panoramas(str(photos), FetchOptions())


def test_a_folder(photos: Path, ask: Ask) -> None:
    pano = PanoLlava.from_pretrained("runs/recorded")
    names = ["a.jpg", "b.jpeg", "c.PNG"]
    expected = {name: pano.generate(photos / name, QUESTION, max_new_tokens=8) for name in names}
    assert len(set(expected.values())) > 1
    status, out, error = ask(f"image={photos}", "out=deep/answers.csv", "batch_size=2")
    assert status == 1
    assert out.splitlines() == [f"{name}\t{' '.join(expected[name].split())}" for name in names]
    assert "bb.jpg: the JPEG is cut short" in error
    assert "d.png: neither a JPEG nor a PNG" in error
    assert "2 of 5 pictures in" in error
    assert "left out, as they are no JPEG or PNG: 1, such as notes.txt." in error
    assert rows("deep/answers.csv") == [[name, QUESTION, expected[name]] for name in names]
    for name in ("bb.jpg", "d.png"):
        (photos / name).unlink()
    assert ask(f"image={photos}", "batch_size=3")[:2] == (0, out)


def test_the_table_can_be_scored(photos: Path, ask: Ask) -> None:
    assert ask(f"image={photos}", "out=answers.csv")[0] == 1
    lines = [[*row, "a red cube"] for row in rows("answers.csv")]
    with Path("scored.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["image", "query", "prediction", "reference"], *lines])
    scored = read_predictions(Path("scored.csv"), "grouped")
    assert [(one.image_id, one.question, one.prediction) for one in scored] == [tuple(line[:3]) for line in lines]


def test_what_was_answered_before_a_stop_is_kept(photos: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, calls = PanoLlava.answer, []

    def second_call_stops(*arguments: object, **options: object) -> list[str]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PanoLlava, "answer", second_call_stops)
    status, _, error = ask(f"image={photos}", "out=answers.csv", "batch_size=1")
    assert status == 130
    assert "Interrupted" in error
    assert [row[0] for row in rows("answers.part.csv")] == ["a.jpg"]
    assert not Path("answers.csv").exists()


WRONG = [
    pytest.param(["image=nowhere.jpg"], "image=nowhere.jpg: there is no such file or folder", id="missing"),
    pytest.param(["image=my photos, all/d.png"], "d.png: neither a JPEG nor a PNG", id="no-picture"),
    pytest.param(["image=my photos, all/deeper"], "there is no JPEG or PNG picture in this folder", id="empty"),
    pytest.param(["image=https://10.0.0.1/c.jpg?d=e"], "fetch.hosts=[10.0.0.1]", id="address"),
    pytest.param(["image=x.jpg", "fetch.hosts=[]"], "fetch.hosts=[] allows no host", id="hosts"),
    pytest.param(["image=x.jpg", "data.remote=true"], "from the hosts of fetch.hosts", id="old-key"),
    pytest.param(["image="], "image=: there is no such file or folder", id="empty-path"),
    pytest.param([], "image is missing", id="no-image"),
    pytest.param(["image=x.jpg", "question= "], "question= is empty", id="no-question"),
    pytest.param(["image=my photos, all", "out=a.txt"], "out=a.txt: the answers are a CSV file", id="suffix"),
    pytest.param(["image=my photos, all", "out=runs.csv"], "out=runs.csv is a folder", id="folder"),
    pytest.param(["image=my photos, all", "batch_size=0"], "batch_size=0", id="range"),
    pytest.param(["image=my photos, all", "device=tpu"], "device=tpu is not a torch device", id="device"),
    pytest.param(["image=my photos, all", "max_new_token=3"], "Did you mean generation.max_new_tokens", id="key"),
    pytest.param(["image=my photos, all", "checkpoint=runs"], "runs is no run", id="no-run"),
    pytest.param(["image=my photos, all", "checkpoint=runs/recorded/vision/anyres-e2p_mlp"], "no language", id="stage"),
    pytest.param(["image=my photos, all", f"question={'many words ' * 300}"], "Shorten it", id="too-long"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG)
@pytest.mark.usefixtures("photos")
def test_wrong_input_is_one_message(ask: Ask, typed: list[str], said: str) -> None:
    Path("runs.csv").mkdir()
    status, out, error = ask(*typed)
    assert (status, out) == (1, "")
    assert said in error
    assert "trainer." not in error


@pytest.mark.usefixtures("photos")
def test_a_picture_is_fetched_where_that_is_allowed(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        address = server.url("/1?size=(2, 1)&name='무엇'")
        typed = [f"image={address}", "out=one.csv", "fetch.folder=kept"]
        status, out, error = ask(*typed)
        assert (status, out) == (1, "")
        assert "name the host: fetch.hosts=[127.0.0.1]" in error
        assert not server.asked
        status, out, _ = ask(*typed, "fetch.hosts=[127.0.0.1]")
        (file,) = Path("kept").glob("pictures/*.png")
        pano = PanoLlava.from_pretrained("runs/recorded")
        assert (status, out) == (0, f"{pano.generate(file, QUESTION, max_new_tokens=8)}\n")
        assert rows("one.csv") == [[address, QUESTION, out.strip()]]
    with pytest.raises(ValueError, match=r"pictures are not fetched here.*fetch_panorama"):
        pano.generate(address, QUESTION)


def test_the_questions_of_a_file(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Each picture is encoded once, whatever the order of the rows and the size of a batch."""
    asked = [("a.jpg", "what?"), ("c.PNG", "where is the ring?"), ("a.jpg", "무엇이, 보이나요?"), ("c.PNG", "what?")]
    lines = "".join(f'{number},{image},"{text}"\n' for number, (image, text) in enumerate(asked))
    (photos / "ask.csv").write_text(f"id,image,question\n{lines}", encoding="utf-8")
    pano = PanoLlava.from_pretrained("runs/recorded")
    expected = [pano.generate(photos / image, text) for image, text in asked]
    tower = type(pano.model.vision.tower)
    encoded, original = [], tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, pixels: encoded.append(len(pixels)) or original(self, pixels))
    for batch_size in (1, 3, 8):
        encoded.clear()
        arguments = ["checkpoint=runs/recorded", "device=cpu", f"batch_size={batch_size}", "out=answers.csv"]
        assert command(monkeypatch, predict, *arguments, f"questions='{photos / 'ask.csv'}'") == 0
        assert len(encoded) == 2
        header, *found = table("answers.csv")
        assert header == ["id", "image", "question", "prediction"]
        assert found == [
            [str(number), *one, answer] for number, (one, answer) in enumerate(zip(asked, expected, strict=True))
        ]
    assert capsys.readouterr().out.split("\n")[0] == "\t".join(("a.jpg", "what?", " ".join(expected[0].split())))


def test_a_file_of_questions_with_pictures_that_cannot_be_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        typed = ["checkpoint=runs/recorded", "device=cpu", *arguments]
        return command(monkeypatch, predict, *typed), capsys.readouterr().err

    ask = photos / "ask.json"
    ask.write_text('[{"image": "d.png", "query": "what?"}, {"image": "a.jpg", "query": "what?"}]', encoding="utf-8")
    status, error = run(f"questions='{ask}'", "out=answers.csv")
    assert status == 1
    assert "1 of 2 questions" in error
    assert [row[0] for row in table("answers.csv")] == ["image", "a.jpg"]
    ask.write_text('[{"image": "nowhere.jpg", "query": "what?"}]', encoding="utf-8")
    status, error = run(f"questions='{ask}'")
    assert (status, "1 of 1 pictures are not there" in error) == (1, True)
    csv_file = photos / "ask.csv"
    csv_file.write_text("image,query\na.jpg,what?\n", encoding="utf-8")
    status, error = run(f"questions='{csv_file}'", f"out='{csv_file}'")
    assert (status, "is the file of questions itself" in error) == (1, True)
    status, error = run(f"questions='{ask}'", "question=what?")
    assert (status, "both given" in error) == (1, True)
    status, error = run("question=what?")
    assert (status, "image is missing" in error) == (1, True)


def table(name: str) -> list[list[str]]:
    with Path(name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_panorama_of_any_name_is_not_overwritten(photos: Path, ask: Ask) -> None:
    """A folder's pictures are known by their content, so that one may be called as a table is."""
    picture = photos / "picture.csv"
    picture.write_bytes((photos / "a.jpg").read_bytes())
    for image in (photos, picture):
        status, out, error = ask(f"image={image}", f"out={picture}")
        assert (status, out) == (1, "")
        assert "is the panorama itself, which would be lost" in error
    assert picture.read_bytes() == (photos / "a.jpg").read_bytes()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, signal.SIGTERM])
def test_a_stopped_command_keeps_its_answers_beside_an_earlier_file(
    stop: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "ask.csv").write_text("image,query\n" + "a.jpg,what?\n" * 5, encoding="utf-8")
    Path("answers.csv").write_text("earlier")
    said = []

    def stopped(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            if stop is KeyboardInterrupt:
                raise KeyboardInterrupt
            os.kill(os.getpid(), stop)

    monkeypatch.setattr(predict, "say", stopped)
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["checkpoint=runs/recorded", "device=cpu", "batch_size=1", "out=answers.csv"]
    assert command(monkeypatch, predict, *arguments, f"questions='{photos / 'ask.csv'}'") == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert Path("answers.csv").read_text() == "earlier"
    assert len(table("answers.part.csv")) == 4


def test_an_out_that_cannot_be_written_is_refused_before_the_model_is_opened(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (photos / "ask.csv").write_text("image,query\na.jpg,what?\n", encoding="utf-8")
    monkeypatch.setattr(PanoLlava, "from_pretrained", lambda *_, **__: pytest.fail("the model was opened"))
    arguments = ["checkpoint=runs/recorded", "device=cpu", f"out='{photos / 'ask.csv' / 'x.csv'}'"]
    for asked in (f"questions='{photos / 'ask.csv'}'", f"image='{photos / 'a.jpg'}'"):
        assert command(monkeypatch, predict, *arguments, asked, *(["question=what?"] if "image" in asked else [])) == 1
        assert "cannot be written (Not a directory)" in capsys.readouterr().err
