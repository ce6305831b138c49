"""What the options of other tools are called here: those of Lightning, transformers, LLaVA and argparse scripts.

A name is answered only where no key of this project has it. Every key is tested against ``conf/``.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

KEYS = {
    "checkpoint=runs/demo": """checkpoint_dir checkpoint_path ckpt ckpt_path model model_path model_name_or_path
        pretrained resume_from_checkpoint run run_dir""",
    "image=panorama.jpg": "image_path image_file image_folder img input input_path panorama picture",
    "question='what is behind?'": "prompt query text instruction",
    "csv_input=my_data/test.csv": "csv csv_file csv_path data_dir data_path data_root dataset_path test_csv test_file",
    "data=csv data.dir=my_data": """csv csv_file csv_input csv_path csv_train data_dir data_path data.path data_root
        data.root dataset dataset_path train_csv train_file""",
    "data=csv data.image_dir=pictures": "image_dir image_folder images_dir image_root",
    "data.augment=true": "augment augmentation use_augmentation",
    "model=siglip_qwen": "backbone model_type",
    "vision.name=google/siglip-base-patch16-224": """image_encoder mm_vision_tower vision_backbone vision_encoder
        vision_model vision_model_name vision_name vision_tower""",
    "language.name=Qwen/Qwen2.5-0.5B": """base_model language_model language_model_name language_name llm llm_name
        model_id model_name model_name_or_path pretrained_model_name_or_path""",
    "language.load_in_4bit=true": "bits load_in_4bit load_in_8bit q_lora qlora",
    "language.system='Answer briefly.'": "system_message system_msg system_prompt",
    "resampler=bimamba": "mm_resampler_type pooler resampler_name resampler_type",
    "projector=mlp": "mm_projector_type projector_type",
    "model.latent_width=768": "latent_dim latent_dimension resampler_dim",
    "lora=lora (the default; lora=none is without)": "enable_lora lora_enable use_lora use_peft",
    "lora.rank=16": "lora_r lora.r lora_rank",
    "lora.alpha=32": "lora_alpha lora.lora_alpha",
    "lora.dropout=0.1": "lora_dropout lora.lora_dropout",
    "lora.target_modules=[q_proj,v_proj]": "lora_target_modules target_modules",
    "crop=anyres_e2p": "crop_mode crop_strategy crop_type image_aspect_ratio image_crop_strategy",
    "crop.overlap=0.5": "crop_overlap overlap_ratio tile_overlap",
    "crop.fov_deg=90": "fov fov_deg hfov",
    "crop.view_size=224": "image_resolution image_size img_size input_size resolution view_size",
    "trainer.keep_best=3": "save_top_k save_total_limit",
    "objective=vicreg": "loss loss_type vision_loss vision_loss_type",
    "stage.run=[resampler,finetune]": "stages stage_order training_stages",
    "stage=resampler": "pretrain tune_mm_mlp_adapter",
    "stage.finetune.epochs=3 (each stage has its own)": "epochs max_epochs n_epochs num_epochs num_train_epochs",
    "stage.finetune.lr=1e-4 (each stage has its own)": "base_lr learning_rate lr optim.lr optimizer.lr",
    "stage.finetune.batch_size=8 (each stage has its own)": """batch batch_size bs micro_batch_size
        per_device_train_batch_size per_gpu_train_batch_size train_batch_size""",
    "evaluation.batch_size=8": "eval_batch_size per_device_eval_batch_size val_batch_size",
    "batch_size=8": """batch bs eval_batch_size per_device_eval_batch_size per_device_train_batch_size
        val_batch_size""",
    "stage.finetune.accumulate=4 (each stage has its own)": """accumulate_grad_batches accumulation_steps grad_accum
        grad_accum_steps gradient_accumulation gradient_accumulation_steps""",
    "stage.finetune.max_text_length=256 (each stage has its own)": """cutoff_len max_length max_seq_len max_seq_length
        max_text_length model_max_length""",
    "generation.max_new_tokens=64": "max_length max_output_tokens max_tokens",
    "stage.finetune.vision_trainable_blocks=2 (0: frozen; each stage has its own)": """freeze_backbone freeze_encoder
        freeze_layers freeze_vision freeze_vision_tower num_trainable_layers tune_vision_tower unfreeze_layers
        unfreeze_mm_vision_tower vision_trainable_blocks""",
    "stage.finetune.language_trainable_blocks=2 (0: frozen)": """freeze_language_model freeze_llm
        language_trainable_blocks tune_language_model""",
    "trainer.max_steps=1000 (of each stage)": "max_train_steps num_train_steps num_training_steps total_steps",
    "trainer.precision=bf16": "amp bf16 dtype fp16 half mixed_precision precision torch_dtype",
    "precision=bf16": "amp bf16 dtype fp16 half mixed_precision torch_dtype",
    "trainer.device=cuda": "accelerator device no_cuda use_cpu",
    "device=cuda": "accelerator no_cuda use_cpu",
    "trainer.parallel=fsdp (it needs torchrun)": "deepspeed fsdp strategy zero_stage",
    "trainer.checkpoint_activations=true": """activation_checkpointing gradient_checkpointing
        use_gradient_checkpointing""",
    "trainer.compile=true": "torch_compile use_compile",
    "trainer.auto_batch=true": "auto_find_batch_size auto_scale_batch_size",
    "trainer.clip_norm=1.0": "clip_grad clip_grad_norm grad_clip gradient_clip gradient_clip_val max_grad_norm",
    "trainer.num_workers=4": "dataloader_num_workers num_workers workers",
    "num_workers=4": "dataloader_num_workers workers",
    "trainer.validations_per_epoch=2": """check_val_every_n_epoch eval_interval eval_steps eval_strategy
        evaluation_strategy val_check_interval val_interval""",
    "trainer.patience=3 (in validations; 0: never)": "early_stop early_stopping early_stopping_patience patience",
    "trainer.save_every_steps=500": "checkpoint_interval every_n_train_steps save_interval save_steps save_strategy",
    "trainer.log_every_steps=10": "log_freq logging_steps print_freq",
    "optim.weight_decay=0.01": "weight_decay wd",
    "optim.warmup_ratio=0.1": "warmup warmup_proportion warmup_ratio",
    "optim.warmup_steps=100": "num_warmup_steps",
    "optim.schedule=cosine": "lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "optim.betas=[0.9,0.98]": "adam_beta1 adam_beta2 adam_betas",
    "optim.eps=1e-8": "adam_eps adam_epsilon",
    "seed=0": "manual_seed random_seed seed_everything",
    "resume=auto (the default: the same command resumes)": """auto_resume ckpt_path resume_from
        resume_from_checkpoint""",
    "init_from=runs/demo": "init_checkpoint load_from pretrain_mm_mlp_adapter pretrained pretrained_checkpoint",
    "dry_run=true": "fast_dev_run",
    "experiment_name=demo": "exp_name experiment_id",
    "output_dir=runs": """checkpoint_dir default_root_dir log_dir logdir logging_dir out out_dir output output_folder
        save_dir work_dir""",
    "results_dir=results": "out out_dir output output_dir save_dir",
    "out=<path>": "out_dir output output_csv output_dir output_file output_path save_path",
    "tracking=mlflow (or none)": "log_to logger",
    "tracking.also=[wandb,tensorboard] (beside MLflow)": "report_to use_tensorboard use_wandb wandb",
    "tracking.wandb_project=my_project": "wandb.project wandb_project",
    "tracking.experiment=my_project": "mlflow_experiment project project_name",
    "tracking.run_name=first": "run_name wandb_name wandb_run_name",
    "tracking.uri=http://host:5000": "mlflow_tracking_uri mlflow_uri tracking_uri",
    "evaluation.max_samples=200": "limit limit_test_batches max_eval_samples max_samples",
    "max_samples=200": "limit limit_test_batches max_eval_samples num_samples",
}
"""Arguments that do what is meant, and perhaps a remark -> the names of it elsewhere.

A name in several rows is answered by the first whose key the command has, so those of other commands than ``train`` may
stand beside its own. ``<path>`` is left to the user.
"""

SENTENCES = {
    "a GPU more is a process more: torchrun --standalone --nproc-per-node=2 -m panollava.train; trainer.device=cuda "
    "takes one": "devices gpus local_rank n_gpu n_gpus ngpus nproc_per_node num_devices num_gpus num_nodes world_size",
    "the optimiser is AdamW, whose keys are optim.betas, optim.eps and optim.weight_decay": "optim_name optimizer "
    "optimizer_name optimizer_type optim.name",
}
"""Answers where no key does what is meant -> the names."""


@dataclass(frozen=True)
class Names:
    """The keys and groups of a command; sections count as keys."""

    keys: Collection[str]
    groups: Collection[str]

    def has(self, key: str) -> bool:
        """Whether there is a key or group, perhaps below ``model``, or may be with another option of its group."""
        return any(self._has(each) for each in (key, f"model.{key}", f"model/{key}"))

    def _has(self, key: str) -> bool:
        section = key.rpartition(".")[0]
        is_open = section in self.keys and not any(other.startswith(f"{section}.") for other in self.keys)
        return key in self.keys or key in self.groups or f"{section}.type" in self.keys or is_open


def plain(name: str) -> str:
    """A name as the tables have it: without leading dashes, with underscores."""
    return name.lstrip("-").replace("-", "_").lower()


def is_foreign(name: str) -> bool:
    """Whether another tool has an option of this name."""
    return any(plain(name) in names.split() for names in (*KEYS.values(), *SENTENCES.values()))


def example(name: str, names: Names) -> str:
    """What does here what an option of another tool does; empty where there is nothing, or the command has not got it.

    Args:
        name: as it was typed, perhaps with dashes or in a section, as in ``trainer.max_epochs``.
        names: those of the command.
    """
    first = plain(name).partition(".")[0]
    for tail in _tails(name):
        found = [row for row, others in KEYS.items() if tail in others.split()]
        for row in sorted(found, key=lambda row: not row.startswith(f"{first}.")):  # those of its own section first
            if all(names.has(key) for key in set_keys(row)):
                return row
        if found:
            return ""
    return ""


def sentence(name: str) -> str:
    """What to say of an option of another tool that no key replaces."""
    tails = _tails(name)
    return next((said for said, names in SENTENCES.items() if any(tail in names.split() for tail in tails)), "")


def set_keys(row: str) -> list[str]:
    """The keys that an example sets."""
    return re.findall(r"(?:^| )([\w.]+)=", row.partition(" (")[0])


def _tails(name: str) -> list[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    parts = plain(name).split(".")
    return [".".join(parts[index:]) for index in range(len(parts))]
