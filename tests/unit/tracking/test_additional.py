"""Which additional trackers the config may name, and how one that fails cannot harm a run."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from support.runs import config

from panollava.config.command_line import canonical
from panollava.run.sections import check_tracking
from panollava.run.tracker import open_tracker
from panollava.tracking import additional
from panollava.tracking.additional import AdditionalOptions, CompositeTracker, check_additional, project_name
from panollava.tracking.tracker import NullTracker, Tracker


class Kept(Tracker):
    """Keeps the names of its calls; those in ``broken`` fail."""

    def __init__(self, *broken: str) -> None:
        self.calls: list[str] = []
        self.broken = broken

    def start(self) -> None:
        self._note("start")

    def tags(self, values) -> None:
        self._note(f"tags {dict(values)}")

    def metrics(self, values, step) -> None:
        self._note("metrics")

    def flush(self) -> None:
        self._note("flush")

    def close(self, status="FINISHED") -> None:
        self._note(f"close {status}")

    def __exit__(self, kind, error, traceback) -> None:
        self._note("exit" if kind is None else f"exit {kind.__name__}")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call.split()[0] in self.broken:
            raise OSError(f"no {call}")


def test_calls_reach_all_and_an_additional_one_opens_with_the_first_record() -> None:
    main, other = Kept(), Kept()
    with CompositeTracker(main, [other], {"stage": "vision"}) as tracker:
        tracker.flush()
        assert (main.calls, other.calls) == (["start", "flush"], [])
        tracker.metrics({"loss": 1.0}, step=1)
        assert other.calls == ["start", "tags {'stage': 'vision'}", "metrics"]
        tracker.flush()
    assert other.calls[3:] == ["flush", "close FINISHED"]
    assert main.calls[2:] == ["metrics", "flush", "exit"]


def test_a_command_that_is_refused_opens_none() -> None:
    main, other = Kept(), Kept()
    with pytest.raises(ValueError), CompositeTracker(main, [other]):
        raise ValueError
    assert (main.calls, other.calls) == (["start", "exit ValueError"], [])


@pytest.mark.parametrize("call", ["start", "tags", "metrics", "flush", "close"])
def test_a_failure_is_a_warning_and_the_others_go_on(call: str, caplog: pytest.LogCaptureFixture) -> None:
    main, broken, other = Kept(), Kept(call), Kept()
    with caplog.at_level(logging.WARNING), CompositeTracker(main, [broken, other]) as tracker:
        for step in (1, 2, 3):
            tracker.metrics({"loss": 1.0}, step=step)
            tracker.flush()
    assert main.calls.count("metrics") == other.calls.count("metrics") == 3
    assert broken.calls.count("metrics") == (0 if call == "start" else 3)
    first = next(one for one in broken.calls if one.startswith(call))
    assert [record.getMessage() for record in caplog.records] == [
        f"Kept has failed (OSError: no {first}). The run continues, and is recorded elsewhere as before."
    ]


def test_a_failure_of_the_main_tracker_is_none_of_these() -> None:
    with pytest.raises(OSError, match="no metrics"), CompositeTracker(Kept("metrics"), [Kept()]) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)


@pytest.mark.parametrize("option", ["mlflow", "none"])
@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_named_with_what_installs_it(option: str, name: str, monkeypatch) -> None:
    find = additional.importlib.util.find_spec
    monkeypatch.setattr(additional.importlib.util, "find_spec", lambda one: None if one == name else find(one))
    problems = check_tracking({"type": option, "also": [name]})
    assert problems == [
        f"tracking.also=[{name}]: the package {name} is not installed here. Run pip install {name}, or leave it out, "
        "tracking.also=[]."
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"also": ["comet"]}, "tracking.also.0=\"comet\": allowed is 'wandb' or 'tensorboard'."),
        ({"also": "wandb"}, 'tracking.also="wandb": allowed is'),
        ({"alsoo": []}, "tracking.alsoo is not a key here. Did you mean 'also'? Keys of tracking: alias, also, "),
        ({"wandb_project": 3}, "tracking.wandb_project=3: allowed is a valid string."),
    ],
)
def test_what_is_no_tracker_is_refused(keys, message: str) -> None:
    (problem,) = check_tracking({"type": "none", **keys})
    assert problem.startswith(message)


@pytest.mark.parametrize("project", ["a/b/c", "a:b", "/x", "x" * 129])
def test_what_is_no_project_is_refused(project: str, monkeypatch) -> None:
    monkeypatch.setattr(additional.importlib.util, "find_spec", lambda name: name)
    (problem,) = check_additional(AdditionalOptions(also=("wandb",), wandb_project=project))
    assert problem.startswith(f"tracking.wandb_project={project!r} is no project of Weights & Biases: allowed is ")
    monkeypatch.setenv("WANDB_PROJECT", project)
    (problem,) = check_additional(AdditionalOptions(also=("wandb",)))
    assert problem.startswith(f"WANDB_PROJECT={project!r} is no project")
    assert check_additional(AdditionalOptions(also=("tensorboard",))) == []


def test_the_project_is_named_by_the_config_the_environment_or_nobody(monkeypatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert project_name(None) == "panollava"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert (project_name(None), project_name("team/mine")) == ("theirs", "team/mine")


def test_the_keys_are_read_from_a_command_line() -> None:
    section = config(*canonical(["tracking=none", "tracking.also=[wandb,tensorboard]", "tracking.wandb_project=a/b"]))
    assert list(section.tracking.also) == ["wandb", "tensorboard"]
    assert section.tracking.wandb_project == "a/b"


def test_without_additional_trackers_there_is_no_composite(tmp_path) -> None:
    section = {"type": "none", "run_name": None}  # of an overlay from before there were any
    assert type(open_tracker(section, run_name="demo", outbox=tmp_path)) is NullTracker


@pytest.mark.parametrize("module", ["panollava.train", "panollava.run.run", "panollava.run.tracker"])
def test_their_packages_are_not_imported_unless_they_are_named(module: str) -> None:
    code = f"import sys, {module}; print(*[one for one in ('wandb', 'tensorboard') if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
