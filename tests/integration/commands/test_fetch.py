"""``python -m panollava.fetch``: the pictures of a data file's addresses, and the data file that names them."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.picture_server import JPEG, PictureServer, picture, serving
from support.runs import QUICK, command

from panollava import check, fetch, train
from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.run.sources import open_source

LOCAL = "fetch.hosts=[127.0.0.1]"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "near.png").write_bytes(picture(9))
    with serving() as server:
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status and streams of the command."""

    def run(*typed: str, module: Any = fetch) -> tuple[int, str, str]:
        capsys.readouterr()
        status = command(monkeypatch, module, *typed)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def write(split: str, *images: str, folder: str = "data") -> Path:
    path = Path(folder, f"{split}.csv")
    rows = "".join(f'{image},what,"that, ""too""",extra {number}\n' for number, image in enumerate(images))
    path.write_text(f"url,query,annotation,note\n{rows}", encoding="utf-8-sig")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_training_reads_the_file_that_fetching_wrote(server: PictureServer, run: Run) -> None:
    path = write("train", *(server.url(f"/{number}") for number in (1, 2, 3, 4, 1)), "near.png")
    write("val", server.url("/moved/jpeg"))
    write("test", "near.png")
    status, out, _ = run("data=csv", LOCAL)
    assert status == 0
    assert "5 pictures in data/fetched, 0 failed." in out
    new = rows(Path("data/fetched/train.csv"))
    assert [{**row, "url": ""} for row in new] == [{**row, "url": ""} for row in rows_of(path)]
    assert [Path("data/fetched", row["url"]).read_bytes() for row in new] == [
        picture(number) for number in (1, 2, 3, 4, 1, 9)
    ]
    assert Path("data/fetched", rows(Path("data/fetched/val.csv"))[0]["url"]).read_bytes() == JPEG
    (keys,) = [line.removeprefix("Read them with ") for line in out.splitlines() if line.startswith("Read them")]
    asked = server.asked.copy()
    typed = [word for word in QUICK if not word.startswith("data.")]
    steps = ["trainer.max_steps=1", "stage=vision", "tracking=none", "experiment_name=far"]
    status, _, error = run("data=csv", *shlex.split(keys), *typed, *steps, module=train)
    assert status == 0, error
    assert server.asked == asked


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_training_and_checking_say_the_command_that_fetches(server: PictureServer, run: Run, on_error: str) -> None:
    Path("my data").mkdir()
    write("train", "../data/near.png", server.url("/1"), server.url("/2"), folder="my data")
    typed = ["data=csv", "data.train_csv=my data/train.csv", "data.image_column=url", f"data.on_error={on_error}"]
    for module, out_of in ((train, 2), (check, 1)):
        more = ["splits=[train]", "texts=0"] if module is check else ["tracking=none"]
        status, *streams = run(*typed, *more, module=module)
        assert status == 1
        said = streams[out_of - 1]
        assert "my data/train.csv: pictures are named by addresses (row 3, row 4), and only files are read" in said
        (line,) = [line for line in said.splitlines() if line.startswith("  python -m panollava.fetch")]
    assert not server.asked
    words = shlex.split(line)[3:]
    assert words == ["data=csv", "data.train_csv=my data/train.csv", "data.image_column=url", "splits=[train]"]
    status, _, _ = run(*words, LOCAL, "out=brought")
    assert (status, set(server.asked)) == (0, {"/1", "/2"})
    assert [Path("brought", row["url"]).is_file() for row in rows(Path("brought/train.csv"))] == [True] * 3


def test_failures_are_listed_and_the_others_go_on(server: PictureServer, run: Run) -> None:
    write("train", server.url("/1"), server.url("/gone"), server.url("/half-once"), server.url("/gone"), "ftp://x/a")
    status, out, error = run("data=csv", LOCAL, "fetch.tries=1")
    gone = f"{server.url('/gone')}: HTTP 404 Not Found"
    assert status == 1
    assert "test: there is no data/test.csv; left out." in out
    for line in (f"data/train.csv, row 3: {gone}", f"data/train.csv, row 5: {gone}", "row 4: ", "1 picture in data"):
        assert line in out
    assert "2 of the addresses gave no picture, so no data file was written" in error
    assert not Path("data/fetched/train.csv").exists()
    # The same command asks for what is missing alone.
    status, out, error = run("data=csv", LOCAL)
    assert (status, server.asked) == (1, {"/1": 1, "/gone": 2, "/half-once": 2})
    status, out, error = run("data=csv", LOCAL, "data.on_error=skip")
    assert (status, server.asked["/gone"]) == (0, 3)
    assert [row["note"] for row in rows(Path("data/fetched/train.csv"))] == ["extra 0", "extra 2", "extra 4"]
    manifest = [json.loads(line) for line in Path("data/fetched/manifest.jsonl").read_text("utf-8").splitlines()]
    known = {entry["address"].removeprefix(server.url("")): entry["status"] for entry in manifest}
    assert known == {"/1": "fetched", "/gone": "HTTP 404 Not Found", "/half-once": "fetched"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_conversations(server: PictureServer, run: Run, suffix: str) -> None:
    said = [{"from": "human", "value": "<image>\n무엇?"}, {"from": "gpt", "value": "공"}]
    entries: list[Any] = [
        {"image": f" {server.url('/1')} ", "id": 7, "conversations": said},
        {"image_path": server.url("/gone"), "conversations": said},
        {"url": "near.png", "conversations": said, "metadata": {"type": "colour"}},
        {"url": "near.png", "conversations": []},
        "no entry",
    ]
    text = json.dumps(entries) if suffix == ".json" else "\n".join(["{torn", *map(json.dumps, entries)])
    Path(f"data/train{suffix}").write_text(text, encoding="utf-8")
    key = f"data.train_json=data/train{suffix}"
    status, out, _ = run("data=json", key, LOCAL, "data.on_error=skip", "out=data/brought")
    assert (status, f"data.train_json=data/brought/train{suffix}" in out) == (0, True)
    new = Path(f"data/brought/train{suffix}").read_text("utf-8")
    assert "무엇" in new
    lines = new.splitlines()
    values = json.loads(new) if suffix == ".json" else [*map(json.loads, lines[1:])]
    assert suffix == ".json" or lines[0] == "{torn"
    image = values[0].pop("image")
    assert Path("data/brought", image).read_bytes() == picture(1)
    assert values[0] == {key: value for key, value in entries[0].items() if key != "image"}
    assert values[1:] == [{**entries[2], "url": "../near.png"}, {**entries[3], "url": "../near.png"}, entries[4]]
    data = {"type": "files", "name": "mine", "train_json": f"data/brought/train{suffix}", "dir": "data"}
    source = open_source({**data, "on_error": "skip"}, "train", Crop(ResizeCrop(), view_size=(32, 32)))
    assert len(source) == 2
    assert source.panorama(0).shape == (16, 32, 3)


def test_a_folder_of_pictures_that_was_named(server: PictureServer, run: Run) -> None:
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(picture(5))
    path = write("train", "a.png", server.url("/1"))
    status, out, _ = run("data=csv", "data.image_dir=pictures", LOCAL, "out=brought")
    assert status == 0
    assert [Path("brought", row["url"]).read_bytes() for row in rows(Path("brought/train.csv"))] == [
        picture(5), picture(1)
    ]  # fmt: skip
    assert f"data.train_csv=brought/train.csv data.dir={Path.cwd()} data.image_dir=null" in out
    status, _, error = run("data=csv", "data.image_dir=pictures", LOCAL, "out=data")
    assert status == 1
    assert f"out=data is the folder of {path}, which stays as it is" in error


def test_what_has_nothing_to_fetch(server: PictureServer, run: Run) -> None:
    assert run("data=world")[::2] == (1, "\nValueError: data=world has no data files. Choose csv, json or quic360.\n"
                                      "(HYDRA_FULL_ERROR=1 shows where it came from.)\n")  # fmt: skip
    assert "data.train_csv=data/train.csv, data.val_csv=data/val.csv" in run("data=csv")[2]
    write("train", "near.png")
    status, out, _ = run("data=csv")
    assert (status, out.splitlines()[-1]) == (0, "Nothing to fetch: data/train.csv name no addresses.")
    assert "fetch.folder=x: the folder of this command is given with out=" in run("data=csv", "fetch.folder=x")[2]
    assert not Path("data/fetched").exists()


@pytest.mark.parametrize("key", ["data.remote=true", "++data.remote=true", "data.remote_cache=x"])
def test_keys_of_before_are_refused_with_the_way_out(server: PictureServer, run: Run, key: str) -> None:
    write("train", server.url("/1"))
    status, _, error = run("data=csv", key, "tracking=none", module=train)
    assert status == 1
    assert "python -m panollava.fetch data=…, which also writes the data file to train on" in error
