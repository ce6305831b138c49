"""The options of other tools are answered with the key that does it here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.errors import HydraException

from panollava.config.command_line import CONF, CommandLine, canonical, check_keys, names_of, split
from panollava.config.foreign import KEYS, SENTENCES, Names, example, plain, set_keys
from panollava.config.sweep_arguments import register_resolvers

COMMANDS = sorted(path.stem for path in Path(CONF).glob("*.yaml"))
ASKED = {
    "accumulate_grad_batches": "stage.finetune.accumulate=",
    "batch_size": "stage.finetune.batch_size=",
    "bf16": "trainer.precision=bf16",
    "checkpoint_dir": "output_dir=",
    "crop_strategy": "crop=",
    "csv_input": "data=csv data.dir=",
    "deepspeed": "trainer.parallel=fsdp",
    "devices": "torchrun",
    "early_stopping": "trainer.patience=",
    "fp16": "trainer.precision=",
    "freeze_layers": "stage.finetune.vision_trainable_blocks=",
    "gpus": "torchrun",
    "gradient_accumulation_steps": "stage.finetune.accumulate=",
    "gradient_checkpointing": "trainer.checkpoint_activations=true",
    "learning_rate": "stage.finetune.lr=",
    "lora_alpha": "lora.alpha=",
    "lora_r": "lora.rank=",
    "max_epochs": "stage.finetune.epochs=",
    "max_length": "stage.finetune.max_text_length=",
    "mm_projector_type": "projector=",
    "model_name_or_path": "language.name=",
    "num_train_epochs": "stage.finetune.epochs=",
    "num_workers": "trainer.num_workers=",
    "overlap_ratio": "crop.overlap=",
    "per_device_train_batch_size": "stage.finetune.batch_size=",
    "precision": "trainer.precision=",
    "report_to": "tracking.also=",
    "resampler_type": "resampler=",
    "resume_from_checkpoint": "resume=auto",
    "save_top_k": "trainer.keep_best",
    "use_lora": "lora=lora",
    "val_check_interval": "trainer.validations_per_epoch=",
    "vision_tower": "vision.name=",
    "wandb_project": "tracking.wandb_project=",
    "warmup_ratio": "optim.warmup_ratio=",
    "weight_decay": "optim.weight_decay=",
}
"""Name elsewhere -> what the answer of ``train`` has."""


def told(command: str, *typed: str) -> str:
    """What is said of a command line; nothing where it is right."""
    register_resolvers()
    try:
        check_keys(CommandLine(command, *split(canonical(typed, command=command), command)))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ASKED)
def test_every_form_of_a_name_is_answered_in_one_line(name: str) -> None:
    dashed = name.replace("_", "-")
    for typed in (
        [f"{name}=1"],
        [f"--{name}=1"],
        [f"--{name}", "1"],
        [f"--{dashed}=1"],
        [f"--{dashed}", "1"],
        [f"--{name}"],
    ):
        said = told("train", *typed)
        assert ASKED[name] in said, typed
        assert said.startswith(typed[0].partition("=")[0])
        assert "\n" not in said
        assert "There are:" not in said


@pytest.mark.parametrize("name", ["trainer.max_epochs", "training.max-epochs", "--trainer.max_epochs"])
def test_a_name_in_a_section_of_another_tool(name: str) -> None:
    assert "Here that is stage.finetune.epochs=3 (each stage has its own)." in told("train", f"{name}=2")


@pytest.mark.parametrize("row", KEYS)
def test_every_answer_is_right_in_a_command_that_has_its_keys(row: str) -> None:
    register_resolvers()
    typed = shlex.split(row.partition(" (")[0].replace("<path>", "a.csv"))
    having = [command for command in COMMANDS if all(names_of(command).has(key) for key in set_keys(row))]
    command = "train" if "train" in having else having[0]
    assert told(command, *typed) == ""
    CommandLine(command, *split(canonical(typed, command=command))).compose(canonical(typed, command=command))


def test_every_row_is_an_answer_somewhere() -> None:
    for row, names in KEYS.items():
        answers = {example(name, names_of(command)) for name in names.split() for command in COMMANDS}
        assert row in answers


def test_names_are_plain() -> None:
    for names in (*KEYS.values(), *SENTENCES.values()):
        assert names.split() == plain(names).split()


def test_the_same_name_means_the_key_of_each_command() -> None:
    assert (
        told("eval", "--batch-size", "4")
        == "--batch-size is no option of this command. Settings are key=value, without dashes: batch_size=4."
    )
    assert "Here that is checkpoint=runs/demo." in told("eval", "--checkpoint-dir", "runs/x")
    assert "csv_input=a.csv." in told("eval", "--csv-input=a.csv")
    assert "Here that is crop.overlap=0.5." in told("eval", "overlap_ratio=0.5")
    assert "Here that is generation.max_new_tokens=64." in told("predict", "max_length=8")
    assert "Here that is out=<path>." in told("explain", "output_dir=x")
    assert "Here that is results_dir=results." in told("eval", "output_dir=x")
    assert "Here that is question='what is behind?'." in told("predict", "--prompt", "what?")


def test_a_setting_of_training_given_to_another_command() -> None:
    said = told("predict", "--lora-r", "8")
    assert "Here that is a setting of training: python -m panollava.train lora.rank=16." in said
    assert "a setting of training: python -m panollava.train trainer.parallel=fsdp" in told("eval", "deepspeed=x.json")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--seed", "3"], "without dashes: seed=3."),
        (["--seed=3"], "without dashes: seed=3."),
        (["--seed"], "without dashes: seed=…."),
        (["--experiment-name", "my run"], "without dashes: experiment_name='my run'."),
        (["--lora.rank", "8"], "without dashes: lora.rank=8."),
        (["--resampler", "mlp"], "without dashes: resampler=mlp."),
        (["--output_dir", "x"], "without dashes: output_dir=x."),
        (["--max-new-tokens", "x"], "without dashes: max_new_tokens=x."),
        (["--tracking.uri", "http://me:secret@host"], "without dashes: tracking.uri=…."),
        (["--crop.overlp", "1"], "Did you mean crop.overlap?"),
        (["--config", "a.yaml"], "ambiguous option: --config"),
        (["--sweep"], "--hydra-help lists them"),
    ],
)
def test_a_key_with_dashes(typed: list[str], said: str) -> None:
    found = told("train", *typed)
    assert said in found
    assert "secret" not in found


def test_the_answer_depends_on_the_keys_that_there_are() -> None:
    names = Names({"trainer", "trainer.device", "crop", "crop.type", "loose"}, {"model/lora"})
    assert names.has("trainer.device")
    assert not names.has("trainer.precision")
    assert names.has("crop.overlap")  # of another crop
    assert names.has("loose.anything")
    assert names.has("lora")
    assert example("precision", names) == ""


def test_an_option_of_a_group_that_there_is_not_stays_hydras_message() -> None:
    with pytest.raises(HydraException):
        told("train", "resampler=mlpp")
