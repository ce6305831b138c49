"""A misspelt key is answered with the one that was meant."""

from __future__ import annotations

import re

import pytest

from panollava.config.command_line import CommandLine, _unknown, canonical, check_keys, names_of, split
from panollava.config.sweep_arguments import register_resolvers


def told(*typed: str) -> str:
    """What is said of the keys of a training command line; nothing where they are right."""
    register_resolvers()
    try:
        check_keys(CommandLine("train", *split(canonical(typed))))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["crop.overlp=0.3"], "crop.overlap"),
        (["resampler=bimamba", "resampler.with=3"], "model.resampler.width"),
        (["stage.vison.lr=1"], "stage.vision.lr"),
        (["sed=1"], "seed"),
        (["trainer.wrokers=2"], "trainer.num_workers"),
        (["trainer.log_every_n_steps=2"], "trainer.log_every_steps"),
        (["trainer.process_timeout=2"], "trainer.process_timeout_s"),
        (["crop.fov=60"], "crop.fov_deg"),
        (["overlap=0"], "crop.overlap"),
        (["warmup_steps=10"], "optim.warmup_steps"),
        (["lora.rnak=4"], "model.lora.rank"),
        (["stage.finetune.epoch=3"], "stage.finetune.epochs"),
        (["-m", "crop.overlp=0,1"], "crop.overlap"),
        (["--cfg", "job", "crop.overlp=0"], "crop.overlap"),
    ],
)
def test_the_meant_key_is_named(arguments: list[str], meant: str) -> None:
    assert f"Did you mean {meant}?" in told(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["crop=cubemap", "crop.poles=true"],
        ["resampler=bimamba", "lora.rank=4", "experiment_name=a=b"],
        ["+crop.new=1"],
        ["-m", "crop.overlap=0,1", "hydra.verbose=true"],
        ["+experiment=overlap_sweep", "crop=e2p"],
    ],
)
def test_what_is_right_or_hydras_business_passes(arguments: list[str]) -> None:
    assert told(*arguments) == ""


FOREIGN = """
    trainer.save_top_k trainer.num_gpus trainer.gpus trainer.accelerator trainer.strategy trainer.num_nodes logger
    trainer.max_epochs trainer.min_epochs trainer.accumulate_grad_batches trainer.gradient_clip_val trainer.callbacks
    trainer.val_check_interval trainer.limit_train_batches trainer.fast_dev_run trainer.deterministic trainer.profiler
    trainer.check_val_every_n_epoch trainer.overfit_batches trainer.benchmark trainer.sync_batchnorm trainer.amp
    learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs lr_scheduler_type
    batch_size lr epochs name
    bf16 fp16 report_to save_strategy save_total_limit eval_steps logging_steps model_name_or_path optimizer scheduler
    wandb.project ckpt_path resume_from_checkpoint max_seq_length dataloader_num_workers local_rank deepspeed fsdp
    gradient_checkpointing image_size patch_size hidden_size num_hidden_layers vocab_size vision_tower mm_projector_type
    mm_vision_select_layer tune_mm_mlp_adapter freeze_backbone image_aspect_ratio group_by_modality_length
    dropout model.hidden_dim model.num_layers model.pretrained model.dropout model.backbone data.batch_size data.root
    data.shuffle data.num_classes data.transform optim.lr optim.momentum optim.name lora.r lora.lora_alpha lora.bias
    language.load_in_8bit language.max_length vision.select_layer crop.size crop.grid
"""
"""Keys of other tools, none of which is a slip of a key here."""


def test_another_tools_key_is_answered_or_given_no_hint() -> None:
    register_resolvers()
    names = names_of("train")
    answered = 0
    for key in canonical([f"{word}=1" for word in FOREIGN.split()]):
        message = _unknown(key.removesuffix("=1"), names)
        assert re.search(r"is not a key of this config\. (There are: |Here )", message)
        answered += "Here " in message
    assert answered > len(FOREIGN.split()) / 2


@pytest.mark.parametrize(
    "typed",
    [
        ("resampler=qformer,perceiver", "resampler.heads=4"),
        ("crop=cubemap,cubemap", "crop.poles=true"),
        ("crop=e2p,anyres_e2p", "crop.overlap=0,0.5", "resampler=mlp,bimamba", "resampler.width=8,16"),
        ("model/resampler=choice(qformer,perceiver)", "resampler.heads=4"),
        ("crop=glob([e2p*,anyres_e2p])", "crop.fov_deg=60"),
    ],
)
def test_a_key_that_all_options_of_a_swept_group_have(typed: tuple[str, ...]) -> None:
    assert told("-m", *typed) == ""


@pytest.mark.parametrize(
    "typed", [("crop=cubemap,e2p", "resampler=mlp,pool"), ("resampler=mlp,pool", "crop=e2p,cubemap")]
)
def test_a_key_that_some_options_lack_is_told_with_them(typed: tuple[str, ...]) -> None:
    assert "crop.poles=true: crop=e2p has no such key, crop=cubemap has. Give it in a start" in told(
        "-m", "crop.poles=true", *typed
    )
