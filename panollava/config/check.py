"""The strict check of a composed config: unknown keys, types and ranges, all reported together.

The signature of the component that a section configures says what is allowed, so arguments are declared once.
"""

import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from panollava.component import closest


def check_section(
    values: Mapping[str, Any], target: Callable[..., Any], key: str, given: Iterable[str] = ()
) -> list[str]:
    """Problems of one config section against the signature it will be passed to.

    Args:
        values: the section, plain Python values.
        target: class or function that takes them as keywords.
        key: full key of the section, such as ``model.resampler``.
        given: arguments of ``target`` that the program supplies and the config must not.

    Returns:
        One sentence per problem, with full key, value and what is allowed.
    """
    try:
        schema = _schema(target, frozenset(given))
    except ValueError as error:  # a class of another package that is not a component
        return [f"{key}: {error}"]
    return differences(values, schema, key)


def differences(values: Mapping[str, Any], schema: type[BaseModel], key: str) -> list[str]:
    """What of a section a schema does not allow, as ``check_section`` says it."""
    try:
        schema.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        return list(dict.fromkeys(_sentence(problem, schema, key) for problem in error.errors()))
    return []


def check_component(
    section: Mapping[str, Any], key: str, find: Callable[[str], type], given: Iterable[str] = ()
) -> list[str]:
    """Problems of a section with the ``type`` and keywords of a component; ``find`` returns the class of a type.

    ``key`` and ``given`` are those of ``check_section``.
    """
    options = dict(section)
    kind = str(options.pop("type", None))
    try:
        component = find(kind)
    except ValueError as error:
        return [str(error)]
    if lacking := [name for name in given if name not in inspect.signature(component).parameters]:
        return [f"{key}.type={kind} takes no {', '.join(lacking)}, with which the program builds it."]
    return check_section(options, component, key, given=given)


def error_lines(check: Callable[..., object], *values: Any, **options: Any) -> list[str]:
    """The message of the ``ValueError`` that a call raises; empty where it raises none."""
    try:
        check(*values, **options)
    except ValueError as error:
        return [str(error)]
    return []


def refuse(problems: list[str]) -> None:
    """Raises ValueError if a config has problems, with one line for each."""
    if problems:
        raise ValueError("\n  ".join(["the config is invalid:", *problems]))


@functools.cache
def _schema(target: Callable[..., Any], given: frozenset[str]) -> type[BaseModel]:
    signature = inspect.signature(target)
    # An __init__ may be inherited from another module, whose names its annotations use.
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(target)
    names = getattr(function, "__globals__", None) or vars(sys.modules[target.__module__])
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"{target.__name__} takes {name} by position alone; arguments are given by name.")
        if name in given or name in ("self", "cls"):
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ValueError(f"{target.__name__} takes {parameter}; a component names all its arguments.")
        default = ... if parameter.default is parameter.empty else parameter.default
        hint = parameter.annotation
        # One by one: an argument that the program gives may have a type that only the type checker imports.
        try:
            kind = eval(hint, names) if isinstance(hint, str) else Any if hint is parameter.empty else hint
        except NameError as error:
            raise ValueError(
                f"{target.__name__}: {name} is annotated {hint}, which cannot be read ({error})."
            ) from error
        fields[name] = (kind, default)
    with warnings.catch_warnings():
        # A key may have the name of a method of pydantic's, such as `register`; nothing calls that of a schema.
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
        return create_model(
            getattr(target, "__name__", "Section"),
            __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()),
            **fields,
        )


def _sentence(problem: Any, schema: type[BaseModel], key: str) -> str:
    where = ".".join([key, *(str(part) for part in problem["loc"] if not _is_branch(part))]).lstrip(".")
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        allowed = sorted(schema.model_fields)
        close = closest(name, allowed)
        hint = f" Did you mean {close!r}?" if close else ""
        return f"{where} is not a key here.{hint} Keys of {key or 'the config'}: {', '.join(allowed)}."
    if problem["type"] == "missing":
        return f"{where} is missing; it has no default."
    message = problem["msg"].replace("Input should be", "allowed is")
    return f"{where}={_shown(problem.get('input'))}: {message}."


def _is_branch(part: Any) -> bool:
    """Pydantic names the branch of a union or the length check in ``loc``; a user's key is a plain name or index."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("float", "int", "str", "bool"))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
