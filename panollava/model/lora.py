"""LoRA on the language model alone: attach, switch, save, load and merge adapters.

No other module imports peft, and this one where it is used: a check of a config does without, and saves seconds.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from annotated_types import Interval
from torch import Tensor, nn, uint8

from panollava.checkpoint import check_weights, read_tensors
from panollava.disk import read_document, write_json
from panollava.model.components import seeded
from panollava.model.trainable import ENCODER, LANGUAGE_MODEL

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)

LORA = "lora_weights"  # folder of an adapter, beside the model it belongs to
ADAPTER_CONFIG, ADAPTER_WEIGHTS, BELONGS = "adapter_config.json", "adapter_model.safetensors", "belongs_to.json"
DEFAULT = "default"  # name of an adapter that was given none

# Keys of settings that name classes to import or pickled files to start from; trained weights do not need them.
_IGNORED = ("auto_mapping", "corda_config", "lora_ga_config", "eva_config", "loftq_config")
_REFUSED = {
    "megatron_config": "makes peft import code by name, which is not done here",
    "layer_replication": "makes a model of other layers, which is not done here",
}


class HasLanguageModel(Protocol):
    """``PanoLlavaForConditionalGeneration``, whose language model an adapter wraps."""

    language_model: Any

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in ``nn.Module``."""


def add_lora(
    model: HasLanguageModel,
    *,
    rank: Annotated[int, Interval(ge=1)] = 16,
    alpha: Annotated[float, Interval(gt=0)] = 32,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
    target_modules: list[str] | Literal["all-linear"] = "all-linear",
    use_rslora: bool = False,
    use_dora: bool = False,
    seed: int = 0,
) -> None:
    """Wraps the language model, and nothing else, with a new adapter in fp32; the base weights freeze.

    Args:
        alpha: scale; twice the rank is usual.
        target_modules: last names of the linear layers to adapt, or all of them but the output layer.
        use_rslora: scale by 1/sqrt(rank). Source: Kalajdzievski 2023, arXiv:2312.03732.
        use_dora: learn magnitudes apart. Source: Liu et al. 2024, arXiv:2402.09353.

    Raises:
        ValueError: LoRA is attached already, or a target is no linear layer of this language model.
    """
    from peft import LoraConfig, get_peft_model

    _refuse_wrapped(model)
    if target_modules != "all-linear":
        check_targets(model.language_model, target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    with seeded(seed, "lora"):
        model.language_model = get_peft_model(model.language_model, config)


def lora_arguments(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``add_lora`` in a ``model.lora`` section."""
    return {key: value for key, value in section.items() if key not in ("enabled", "save_only")}


def check_targets(language_model: Any, target_modules: Sequence[str]) -> None:
    """Raises ValueError unless each target is a linear layer whose adapter can be merged; there must be one at least.

    Targets are names of layers, or the last parts of their names, with adapters on the model or without.
    """
    linear = {
        name.removesuffix(".base_layer"): module  # its name where another adapter is attached
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    output, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    available = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear if linear[name] is not output}))
    if not target_modules:
        raise ValueError(
            f"lora.target_modules=[] selects no layer. Available: {available}, or all-linear; lora=none trains "
            "without an adapter."
        )
    meant = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in target_modules}
    if unknown := [target for target, names in meant.items() if not names]:
        raise ValueError(
            f"lora.target_modules: {', '.join(map(repr, unknown))} not found among the linear layers of the language "
            f"model. Available: {available}, or all-linear."
        )
    tied = [target for target, names in meant.items() if any(linear[name].weight is embedding.weight for name in names)]
    if tied:
        raise ValueError(
            f"lora.target_modules: {tied[0]!r} shares its weights with the embeddings of this language model, so that "
            f"merging its adapter would change what the model reads. Leave it out. Available: {available}, or "
            "all-linear."
        )


def has_lora(model: HasLanguageModel) -> bool:
    """Whether an adapter is attached."""
    return _is_wrapped(model.language_model)


def _is_wrapped(language_model: Any) -> bool:
    from peft import PeftModel

    return isinstance(language_model, PeftModel)


def lora_names(model: HasLanguageModel) -> list[str]:
    """Names of the adapters that are attached, active or not."""
    return list(model.language_model.peft_config) if has_lora(model) else []


def lora_in_use(model: HasLanguageModel) -> str | None:
    """Name of the active adapter, None without one."""
    if not has_lora(model):
        return None
    is_off = any(getattr(module, "disable_adapters", False) is True for module in model.language_model.modules())
    return None if is_off else str(model.language_model.active_adapter)


def use_lora(model: HasLanguageModel, name: str | None) -> None:
    """Activates an adapter, none with None; keeps ``requires_grad``. Raises ValueError for one that is not attached."""
    if name is not None and name not in lora_names(model):
        attached = ", ".join(lora_names(model)) or "none"
        raise ValueError(f"There is no LoRA adapter {name!r}. Attached: {attached}.")
    if not has_lora(model):
        return
    trained = {parameter: parameter.requires_grad for parameter in model.language_model.parameters()}
    if name is None:
        model.language_model.base_model.disable_adapter_layers()
    else:
        model.language_model.base_model.enable_adapter_layers()
        model.language_model.set_adapter(name)
    for parameter, trains in trained.items():
        parameter.requires_grad_(trains)


def merge_lora(model: HasLanguageModel) -> None:
    """Adds the active adapter to the base weights and removes all adapters; does nothing without one."""
    name = lora_in_use(model)
    if name is not None:
        model.language_model = model.language_model.merge_and_unload(adapter_names=[name])
    elif has_lora(model):
        model.language_model = model.language_model.unload()


@contextmanager
def without_lora(model: HasLanguageModel) -> Iterator[None]:
    """Removes all adapters inside, and attaches them again afterwards."""
    names, used = lora_names(model), lora_in_use(model)
    with TemporaryDirectory() as kept:
        for name in names:
            use_lora(model, name)
            save_lora(model, Path(kept) / name)
        if names:
            model.language_model = model.language_model.unload()
        try:
            yield
        finally:
            for name in names:
                load_lora(model, Path(kept) / name, name=name)
            use_lora(model, used)


def save_lora(
    model: HasLanguageModel,
    folder: str | Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    base: str | None = None,
) -> None:
    """Writes the active adapter, as plain peft opens it. Raises ValueError without one.

    ``belongs_to.json`` beside it identifies the resampler and the projector that it was trained with. ``tensors``, by
    their names in the model, replace its weights. ``base`` names the language model in place of where it was opened.
    """
    name = lora_in_use(model)
    if name is None:
        raise ValueError("There is no LoRA to save: no adapter is attached, or none is active (see use_lora).")
    target = Path(folder)
    own = {k.removeprefix(LANGUAGE_MODEL): v for k, v in (tensors or {}).items() if k.startswith(LANGUAGE_MODEL)}
    options = {"safe_serialization": True, "save_embedding_layers": False, "state_dict": own if tensors else None}
    model.language_model.save_pretrained(str(target), selected_adapters=[name], **options)
    if name != DEFAULT:  # peft writes it into a folder of its name
        for file in (target / name).iterdir():
            file.replace(target / file.name)
        (target / name).rmdir()
    (target / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if base is not None:
        settings = read_document(target / ADAPTER_CONFIG)
        write_json(target / ADAPTER_CONFIG, {**settings, "base_model_name_or_path": base})
    write_json(target / BELONGS, {"sight": _vision_digest(model, tensors)})


def load_lora(model: HasLanguageModel, folder: str | Path, *, name: str = DEFAULT) -> None:
    """Attaches an adapter that ``save_lora`` or plain peft wrote, beside those there are, and makes it active.

    Logs a warning where it was trained on a language model of another name or with another resampler or projector.

    Raises:
        FileNotFoundError: the folder holds no adapter in safetensors.
        ValueError: the name is taken, settings and weights are inconsistent, or are not of this language model.
    """
    if name in lora_names(model):
        _refuse_wrapped(model)
    if not name.isidentifier():
        raise ValueError(f"name={name!r}: an adapter's name has letters, digits and underscores, such as 'indoors'.")
    path = Path(folder)
    config, tensors = _read_adapter(path)
    if isinstance(config.target_modules, set | list):
        try:
            check_targets(model.language_model, sorted(config.target_modules))
        except ValueError as error:
            raise ValueError(f"The LoRA adapter in {path} cannot be attached. {error}") from error
    _warn_of_another_model(model, config, path)
    stored = set(tensors) - _vocabulary_copies(model.language_model, config, tensors, path)
    model.language_model = _attach(model, path, name, config, stored)
    use_lora(model, name)


def _read_adapter(path: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and weights of the adapter in a folder; opens nothing that they name. Errors as for ``load_lora``."""
    if lacking := [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (path / file).is_file()]:
        raise FileNotFoundError(
            f"{path} holds no LoRA adapter: {' and '.join(lacking)} not found. Pickled adapters (adapter_model.bin) "
            "are never opened; load one with peft where you trust it and save it with safe_serialization=True."
        )
    config = _read_config(path / ADAPTER_CONFIG)
    tensors = read_tensors((path / ADAPTER_WEIGHTS).resolve())  # the hub's cache keeps links
    check_weights(tensors, path / ADAPTER_WEIGHTS)
    # peft would allocate any rank that the settings name.
    held = {int(tensor.shape[0]) for name, tensor in tensors.items() if ".lora_A." in name and tensor.ndim == 2}
    pattern: dict[str, Any] = config.rank_pattern or {}
    ranks = [config.r, *pattern.values()] if isinstance(pattern, dict) else [config.r]
    are_right = all(type(rank) is int and 0 < rank <= max(held, default=0) for rank in ranks)
    if not are_right or (not pattern and held != {config.r}):
        shown = ", ".join(map(str, sorted(held))) or "none"
        raise ValueError(
            f"The LoRA adapter in {path} is inconsistent: {ADAPTER_CONFIG} states rank "
            f"{', '.join(str(rank)[:40] for rank in ranks[:5])}, {ADAPTER_WEIGHTS} has {shown}. The two are of "
            "different adapters, or damaged."
        )
    return config, tensors


def _read_config(path: Path) -> LoraConfig:
    from peft import LoraConfig

    document = read_document(path.resolve())
    if document.get("peft_type") != "LORA":
        raise ValueError(f"{path} is of {document.get('peft_type')!r}, not of LORA, the only kind that is read.")
    for key, reason in _REFUSED.items():
        if document.get(key):
            raise ValueError(f"{path}: {key} {reason}. Merge the adapter with peft where you trust it.")
    known = LoraConfig.__dataclass_fields__.keys() - set(_IGNORED)
    kept = {key: value for key, value in document.items() if key in known}
    try:
        return LoraConfig(**kept | {"task_type": "CAUSAL_LM"})
    except Exception as error:  # peft checks little, and fails anywhere
        raise ValueError(f"{path} is not a LoRA's settings ({type(error).__name__}: {error}).") from error


def _warn_of_another_model(model: HasLanguageModel, config: LoraConfig, path: Path) -> None:
    """Warns of a base model of another name, which is never opened, and of another resampler or projector."""
    base = str(model.language_model.config.name_or_path or "")
    trained_on = str(config.base_model_name_or_path or "")
    ends = [re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in (base, trained_on)]
    if base and trained_on and ends[0] != ends[1]:
        logger.warning(
            f"The LoRA adapter in {path} was trained on {trained_on} and is attached to {base}: its answers are right "
            "only if the two are the same model."
        )
    belongs = read_document((path / BELONGS).resolve()) if (path / BELONGS).is_file() else {}  # plain peft writes none
    if belongs.get("sight") not in (None, _vision_digest(model)):
        logger.warning(
            f"The LoRA adapter in {path} was trained with another resampler and projector than this model has: its "
            "answers are right only with those of its own run."
        )


def _vision_digest(model: HasLanguageModel, tensors: Mapping[str, Tensor] | None = None) -> str:
    """Digest of the weights between encoder and language model; ``tensors`` replace those of the model by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name.startswith((ENCODER, LANGUAGE_MODEL)) or (tensors is not None and name not in tensors):
            continue
        value = weight if tensors is None else tensors[name]
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _vocabulary_copies(language_model: Any, config: LoraConfig, tensors: Mapping[str, Tensor], path: Path) -> set[str]:
    """Names of an adapter's weights that are the language model's own embeddings or output layer.

    peft saves these beside an adapter on one of them, or of a model whose vocabulary was resized; they must be equal.
    """
    base: Any = language_model.get_base_model() if _is_wrapped(language_model) else language_model
    layers = {id(layer): layer for layer in (base.get_input_embeddings(), base.get_output_embeddings())}
    own = {name: layers[id(module)].weight for name, module in base.named_modules() if id(module) in layers}
    trained = tuple(config.modules_to_save or ())
    copies = set()
    for stored, tensor in tensors.items():
        name = stored.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer")
        if name not in own or name.endswith(trained):
            continue
        if tensor.shape != own[name].shape or not tensor.to(own[name]).equal(own[name]):
            raise ValueError(
                f"The LoRA adapter in {path} comes with {name} {tuple(tensor.shape)} of the model that it was trained "
                f"on, which is not that of this language model, {tuple(own[name].shape)}. Give the model it was "
                "trained on, or merge the two with peft (merge_and_unload) and save them as one folder."
            )
        copies.add(stored)
    return copies


def _attach(model: HasLanguageModel, path: Path, name: str, config: LoraConfig, stored: set[str]) -> PeftModel:
    """The language model with one more adapter; if that does not fit, it is removed again."""
    from peft import PeftModelForCausalLM, get_peft_model_state_dict

    base: Any = model.language_model
    config.inference_mode = True
    wrapped: Any = base if has_lora(model) else None
    try:
        if wrapped is None:
            wrapped = PeftModelForCausalLM(base, config, name)
        else:
            wrapped.add_adapter(name, config)
        wrapped.load_adapter(str(path), adapter_name=name)  # which has its settings already
        differing = stored ^ set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
        if differing:
            raise ValueError(
                f"{len(differing)} weights are in only one of them ({', '.join(sorted(differing)[:3])}). It was "
                "trained on another model, or the file is damaged."
            )
    except Exception as error:  # peft raises errors of any kind for settings that do not fit
        if wrapped is base:
            if name in base.peft_config:
                base.delete_adapter(name)
        elif wrapped is not None:
            wrapped.unload()
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The LoRA adapter in {path} does not fit this language model: {reason}") from error
    return wrapped


def _refuse_wrapped(model: HasLanguageModel) -> None:
    if has_lora(model):
        raise ValueError(
            f"The language model has LoRA already ({', '.join(lora_names(model))}). Load another under a name of "
            "its own, or call pano.merge_lora_weights() first."
        )
