"""Opens pretrained backbones by hub name or local folder: safetensors only, no remote code.

transformers is imported where it is used: a check of a config reads the signatures here, and does without.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from panollava.disk import read_document

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

Attention = Literal["sdpa", "eager", "flash_attention_2"]
LANGUAGE_KEY = "model.language.name"
_TINY = Path(__file__).parents[1] / "tiny"
# Names of the miniature backbones inside the package, used like hub names.
SHIPPED = {
    "panollava/tiny-siglip": _TINY / "vision",
    "panollava/tiny-qwen3": _TINY / "language",
    "panollava/tiny-qwen3-boxes": _TINY / "language_boxes",
}
WITHOUT_BOXES = "panollava/tiny-qwen3"  # the shipped language model that has read no numbers but those of counts
NEWEST = "main"  # branch of the hub that is opened where no revision is named
PROBE_S = 5.0  # longest wait for the hub to answer at all
PROBED_FOR_S = 60.0  # how long that answer holds
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_probed: dict[str, tuple[float, bool]] = {}  # address of a hub -> when it was asked, and whether it answered
_READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")  # of model, tokenizer and preprocessing


def resolve_source(name: str | Path, key: str = LANGUAGE_KEY) -> str:
    """The hub name or folder to open; for a safetensors file its folder. Raises ValueError for a pickle."""
    path = SHIPPED.get(str(name)) or Path(name).expanduser()
    if not path.is_file():
        return str(path if path.is_dir() else name)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a safetensors file. {_convert_recipe(str(path.parent), key)}")
    return str(path.parent)


def hub_place(name: str, revision: str | None) -> dict[str, Any]:
    """Options of transformers that say where a model is: its revision, and whether its files are on this machine.

    They are if it is a folder. Else the hub is asked at most once a minute whether it answers; transformers would ask
    for each of a dozen files six times, and wait 23 seconds in between.

    Args:
        name: what ``resolve_source`` gave.
        revision: commit, branch or tag; None for the newest.
    """
    return {"revision": revision or NEWEST, "local_files_only": Path(name).is_dir() or not _hub_answers()}


def public_name(name: str | Path | None) -> str:
    """A backbone's name without places of this machine: a hub or shipped name as it is, of a folder its last part."""
    text = str(name or "")
    shipped = {str(folder): own for own, folder in SHIPPED.items()}
    if text in shipped or text in SHIPPED:
        return shipped.get(text, text)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text) and not Path(text).exists():
        return text
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else Path(text).resolve().name if text else ""


def backbone_record(name: str, revision: str | None, digest: Callable[[Path], str]) -> dict[str, Any] | None:
    """Digests of a folder's ``files`` by name, or the ``commit`` of a hub model; None for one not on this machine."""
    from transformers.utils import CONFIG_NAME
    from transformers.utils.hub import extract_commit_hash

    folder = Path(resolve_source(name))
    if folder.is_dir():
        files = {file.name: file for pattern in _READ for file in folder.glob(pattern)}
        return {"files": {file: digest(files[file]) for file in sorted(files)}}
    try:
        found = _file_of(name, CONFIG_NAME, revision=revision or NEWEST, local_files_only=True)
    except OSError:  # no name that the hub could have
        return None
    commit = None if found is None else extract_commit_hash(str(found), None)
    return None if commit is None else {"commit": commit}


def read_config(name: str, key: str, revision: str | None = None) -> PreTrainedConfig:
    """Configuration of a backbone; arguments as for ``load_pretrained``.

    Raises FileNotFoundError where neither a folder nor the hub has it, ValueError for a revision of a folder.
    """
    if revision is not None and Path(name).is_dir():
        raise ValueError(
            f"{key.removesuffix('name')}revision={revision!r} is for models of the Hugging Face hub, and "
            f"{key}={name!r} is a folder, which has no revisions. Leave it at null."
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{key}={name!r} is a folder without config.json, so it is no Hugging Face or timm model. Give a "
            "folder written by save_pretrained (or timm's save_for_hf), or a hub name."
        )
    from transformers import AutoConfig

    beside = Path(name).name if Path(name).is_absolute() else name
    try:
        return AutoConfig.from_pretrained(name, **hub_place(name, revision), trust_remote_code=False)
    except (OSError, ValueError) as error:
        unasked = "cache of the Hugging Face hub, which does not answer or is not to be asked (HF_HUB_OFFLINE)"
        hub = "Hugging Face hub" if _hub_answers() else unasked
        raise FileNotFoundError(
            f"{key}={name!r} could not be opened. Tried: a local folder {str(Path(name).absolute())!r} and the "
            f"{hub} ({_first_line(error)}). Check the spelling, the network and, for a gated model, `hf auth "
            f"login`; or download it elsewhere and give the folder: in training {key}=/path/to/folder; a trained run "
            f"finds a folder or link {beside!r} in the working directory or beside the run."
        ) from error


def load_pretrained(
    auto_class: Any, name: str, key: str, *, attn_implementation: str, revision: str | None = None, **options: Any
) -> PreTrainedModel:
    """A model of an Auto class, such as ``AutoModel``, with all its weights found in the checkpoint.

    Args:
        name: what ``resolve_source`` gave; ``key`` is its key in the config, for messages.
        revision: commit, branch or tag of a hub model; None for the newest.
        **options: others of transformers' ``from_pretrained``, such as ``config`` and ``dtype``.

    Raises:
        FileNotFoundError: there are no safetensors weights.
        ValueError: some weights would have stayed random, or transformers would have opened pickles.
    """
    place = hub_place(name, revision)
    refuse_pickles(name, f"{key}={name!r}", _convert_recipe(name, key), **place)
    try:
        with quiet_transformers():
            model, info = auto_class.from_pretrained(
                name,
                attn_implementation=attn_implementation,
                **place,
                # transformers looks for an adapter in the hub all the same, which refuse_pickles has ruled out.
                adapter_kwargs={"local_files_only": place["local_files_only"]},
                **options,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_all_loaded refuses them by name
            )
    except ImportError as error:
        part = key.removesuffix(".name")
        raise ValueError(
            f"{part}.attn_implementation={attn_implementation} is not installed here ({_first_line(error)}). "
            f"Use {part}.attn_implementation=sdpa, or install its package."
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{key}={name!r}: a file of its weights is not safetensors ({_first_line(error)}). It is damaged, or a "
            f"pickle under another name. Download it again. {_convert_recipe(name, key)}"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{key}={name!r}: its configuration opens but no safetensors weights do ({_first_line(error)}). "
            f"{_convert_recipe(name, key)}"
        ) from error
    check_all_loaded(info, f"{key}={name!r}")
    return model.eval()


def without_weights(
    auto_class: Any, config: PreTrainedConfig, *, dtype: torch.dtype, attn_implementation: str
) -> PreTrainedModel:
    """A model of an Auto class on the meta device: it has shapes, and computes nothing. Opens no file."""
    with torch.device("meta"), quiet_transformers():
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    model.config._attn_implementation = attn_implementation  # not given above, as it may not be installed here
    return model


def refuse_pickles(name: str, where: str, way_out: str, **place: Any) -> None:
    """Raises ValueError if transformers would open a pickle of a folder or hub model although safetensors are required.

    transformers opens any file that an index of shards names, and the adapter of a folder that holds one.
    ``where`` and ``way_out`` are its name and the advice in messages; ``place`` are options for the hub and its cache.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

    index = _file_of(name, SAFE_WEIGHTS_INDEX_NAME, **place)
    shards = read_document(index.resolve()).get("weight_map") if index is not None else {}
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {"no weight_map"}
    strange = sorted(shard for shard in names if not shard.endswith(".safetensors") or Path(shard).name != shard)
    if strange:
        raise ValueError(
            f"{where}: its {SAFE_WEIGHTS_INDEX_NAME} names {strange[0]!r}, which is no safetensors file beside it. "
            f"{way_out}"
        )
    if _file_of(name, "adapter_config.json", **place) is not None:
        raise ValueError(
            f"{where} holds a peft adapter (adapter_config.json), not a model. Give the model it was trained "
            "on, or merge the two with peft (merge_and_unload) and save them as one folder."
        )


def _file_of(name: str, file: str, **place: Any) -> Path | None:
    """A file of a folder or hub model, None where it has none."""
    from transformers.utils import cached_file

    reasons = ("missing_entries", "connection_errors", "gated_repo")
    found = cached_file(name, file, **{f"_raise_exceptions_for_{reason}": False for reason in reasons}, **place)
    return None if found is None else Path(found)


def check_all_loaded(info: dict[str, Any], where: str) -> None:
    """Raises ValueError for a load that left weights random, as keys were missing or of another shape."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    lacking = sorted(info["missing_keys"]) + sorted(mismatched)
    if lacking:
        raise ValueError(
            f"{where}: {len(lacking)} weights are missing from the checkpoint or have another shape there "
            f"({', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''}). transformers would fill them at "
            "random, so this is refused: the folder is damaged or belongs to another architecture."
        )


def load_language_model(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: Attention = "sdpa",
    load_in_4bit: bool = False,
    revision: str | None = None,
    weights: bool = True,
) -> PreTrainedModel:
    """The causal language model of ``model.language.name``, in eval mode.

    Arguments as for ``load_pretrained``. ``load_in_4bit`` keeps the matrices in four bits (NF4, scales quantised too),
    which frees memory and leaves only adapters to train; ``dtype`` is then that of the computation with them. Source:
    Dettmers et al. 2023, arXiv:2305.14314. Without ``weights`` only the configuration is opened; the model is on the
    meta device, never in four bits.

    Raises:
        FileNotFoundError: no such model, or no safetensors weights.
        ValueError: the model is no causal language model, its weights are incomplete, or bitsandbytes is missing.
    """
    if weights and load_in_4bit and find_spec("bitsandbytes") is None:
        raise ValueError(
            "model.language.load_in_4bit=true needs bitsandbytes, which is not installed: pip install "
            '".[4bit]" in the repository, or use load_in_4bit=false.'
        )
    nf4: dict[str, Any] = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = resolve_source(name, LANGUAGE_KEY)
    config = read_config(source, LANGUAGE_KEY, revision)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{LANGUAGE_KEY}={source!r} is a {config.model_type!r} model, which transformers does not know as a causal "
            "language model. Choose one of the Llama, Vicuna, Mistral, Qwen2.5 or Qwen3 families."
        )
    if not weights:
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        return without_weights(AutoModelForCausalLM, config, **options)
    return load_pretrained(
        AutoModelForCausalLM,
        source,
        LANGUAGE_KEY,
        config=config,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4) if load_in_4bit else None,
    )


def load_tokenizer(name: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of ``model.language.name``. Raises FileNotFoundError where there is none."""
    source = resolve_source(name, LANGUAGE_KEY)
    read_config(source, LANGUAGE_KEY, revision)
    from transformers import AutoTokenizer

    try:
        # The tokenizer of mistral-common, which transformers prefers where it is installed, has no chat template.
        options = {"mistral_format": False, "trust_remote_code": False}
        return AutoTokenizer.from_pretrained(source, **hub_place(source, revision), **options)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{LANGUAGE_KEY}={source!r} has no tokenizer that opens ({_first_line(error)}). Copy the model's tokenizer "
            "files (tokenizer.json, tokenizer_config.json) into the folder."
        ) from error


def is_hub_name(name: str | Path) -> bool:
    """Whether a text has the form of a hub name, ``user/repo``, and no folder here begins like it."""
    text = str(name)
    return HUB_NAME.fullmatch(text) is not None and not Path(text.partition("/")[0]).exists()


def fetch_export(name: str, revision: str | None, model_type: str) -> Path:
    """The folder of an export of the hub, ``user/repo``, in the cache; only files that an export is read from.

    Raises:
        FileNotFoundError: neither the hub nor its cache has it, or this user may not read it.
        ValueError: it is no export: its ``config.json`` states another ``model_type``.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError

    place = hub_place(name, revision)
    try:
        config = hf_hub_download(name, "config.json", **place)
        found = read_document(Path(config).resolve()).get("model_type")
        if found == model_type:
            folder = snapshot_download(name, allow_patterns=list(_READ), **place)
    except (OSError, HFValidationError) as error:
        at = f" at revision={revision!r}" if revision else ""
        raise FileNotFoundError(
            f"The Hugging Face hub and its cache have no {name!r}{at} either ({_first_line(error)}). Check the "
            "spelling, the network and, for a private or gated model, `hf auth login`."
        ) from error
    if found != model_type:
        raise ValueError(
            f"{name} of the Hugging Face hub is a model of type {found!r}, and only exports of panollava "
            f"({model_type!r}) can be opened by name."
        )
    return Path(folder)


def _hub_answers() -> bool:
    """Whether the hub can be reached; asked again after ``PROBED_FOR_S``, as a notebook may get a network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = constants.ENDPOINT
    asked, did_answer = _probed.get(address, (-PROBED_FOR_S, True))
    if time.monotonic() - asked < PROBED_FOR_S:
        return did_answer
    answers = _answers(address)
    _probed[address] = time.monotonic(), answers
    if did_answer and not answers:
        logger.warning(
            "%s does not answer: models of the hub are opened from its cache. HF_HUB_OFFLINE=1 skips this check.",
            address,
        )
    return answers


def _answers(address: str) -> bool:
    import requests

    try:
        requests.head(address, timeout=PROBE_S).close()
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
        return True  # the library has settings of its own for these
    except (requests.ConnectionError, requests.Timeout):
        return False
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides bars and the load report, which lists a dual encoder's unused half; missing weights are an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _convert_recipe(name: str, key: str) -> str:
    language = {LANGUAGE_KEY: ("AutoModelForCausalLM", "AutoTokenizer")}
    model, beside = language.get(key, ("AutoModel", "AutoImageProcessor"))
    return (
        "Pickled weights (.bin, .pt, .pth) are never opened, as opening one runs code from it. If you trust their "
        f'source, convert them once: python -c "from transformers import {model}, {beside}; '
        f"{model}.from_pretrained('{name}', use_safetensors=False).save_pretrained('converted'); "
        f"{beside}.from_pretrained('{name}').save_pretrained('converted')\" and set {key}=converted."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
