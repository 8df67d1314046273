"""What a person writes as settings: frozen pydantic models that know which of their fields decide rows."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from ptk.files import sha256_of_file

__all__ = [
    "COLUMN",
    "MODEL",
    "REFERENCE",
    "UNKEYED",
    "Column",
    "ModelName",
    "ModelReference",
    "OutputFolder",
    "Params",
    "PathSetting",
    "SourceFiles",
    "Unkeyed",
    "canonical",
    "existing_file",
    "marked_fields",
    "named_columns",
    "problems",
    "suggestion",
]


class Params(BaseModel):
    """Base of every settings model: frozen, unknown keys forbidden, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def unread(self) -> frozenset[str]:
        """Return the fields that name columns which are not read, as other settings are: what they name need not be there."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class Unkeyed:
    """Marks a field that cannot change rows (a batch size, a timeout, a folder), so it stays out of every key."""


@dataclass(frozen=True, slots=True)
class Column:
    """Marks a field that names a column, or several, of the step's first input."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """Marks a field that names an entry under `models`; the model's identity takes its place in the key."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Marks a field that leads to files of a model, which a step of the same spec may make: `step:NAME`."""


UNKEYED = Unkeyed()
COLUMN = Column()
MODEL = ModelName()
REFERENCE = ModelReference()


def marked_fields(params: Params | type[Params], mark: type) -> Iterator[str]:
    """Yield the names of the fields annotated with an instance of `mark`."""
    model = params if isinstance(params, type) else type(params)
    for name, field in model.model_fields.items():
        if any(isinstance(meta, mark) for meta in field.metadata):
            yield name


def named_columns(params: Params) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where in the settings a column is named, and the column; settings inside settings count too."""
    marked = set(marked_fields(params, Column)) - params.unread()
    for field in type(params).model_fields:
        value = getattr(params, field)
        if field in marked:
            for index, column in enumerate((value,) if isinstance(value, str) else value or ()):
                yield (field,) if isinstance(value, str) else (field, index), column
        for index, inner in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(inner, Params):
                for place, column in named_columns(inner):
                    yield (field, *((index,) if isinstance(value, tuple) else ()), *place), column


def canonical(value: Any) -> Any:
    """Return `value` as plain JSON data with every unkeyed field left out: what a key is made of.

    Objects with a `canonical()` method of their own (source files, prompts) give the digest of their content, never their path.
    """
    if hasattr(value, "canonical"):
        return value.canonical()
    if isinstance(value, Params):
        left_out = {*marked_fields(value, Unkeyed), *marked_fields(value, ModelName)}
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields if name not in left_out}
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the known names where none is near, or nothing where there are none."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there is {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else ""


def problems(model: type[Params], error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where and what is wrong with settings of `model`, in words for the user."""
    found = error.errors(include_url=False)
    for problem in found:
        place = problem["loc"]
        inside = any(other["loc"][: len(place)] == place != other["loc"] for other in found)
        if problem["type"] == "too_short" and inside:
            continue  # items were left out because they are wrong themselves
        if problem["type"] == "default_factory_not_called":
            continue  # a default that hangs on another option, which is wrong itself
        yield _written_place(place), _plain_words(model, problem)


def _written_place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return `location` without the names that pydantic gives to the members of a union, such as `tuple[str, ...]`."""
    return tuple(part for part in location if isinstance(part, int) or "[" not in part)


def _plain_words(model: type[Params], problem: Mapping[str, Any]) -> str:
    kind, location, given = problem["type"], problem["loc"], problem.get("input")
    name = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        return f"unknown option '{name}'{suggestion(name, _options(model, location[:-1]))}"
    if kind == "missing":
        return f"'{name}' is missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "too_short":
        return "must not be empty"
    shown = orjson.dumps(given, default=str).decode()
    message = str(problem["msg"]).removeprefix("Input ").strip()
    message = message[0].lower() + message[1:]
    return f"{message}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _options(model: type[Params], location: tuple[Any, ...]) -> list[str]:
    """Return the options of the settings at `location`, which may lie in a sequence or a mapping of settings."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = next((item for item in (field.annotation, *get_args(field.annotation)) if _is_settings(item)), None)
            if inner is None:
                return []
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Params)


class PathSetting:
    """Base of settings that are written as a path, relative to the spec's folder, and validated into what lies there."""

    @classmethod
    def from_text(cls, text: str, root: Path) -> Any:
        """Return the setting for `text`. Raises ValueError with a sentence for the user."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any, info: ValidationInfo) -> Any:
            root = (info.context or {}).get("root", Path.cwd())
            try:
                return cls.from_text(value, root)
            except OSError as error:
                raise ValueError(f"'{value}' can't be looked at: {error.strerror}") from error

        return core_schema.with_info_after_validator_function(validate, core_schema.str_schema(strict=True, min_length=1))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class SourceFiles(PathSetting):
    """Data files named by a path or a glob; what counts is their content."""

    written: str
    paths: tuple[Path, ...]

    @classmethod
    def from_text(cls, text: str, root: Path) -> SourceFiles:
        pattern = str(root / Path(text).expanduser())
        if Path(pattern).is_file():
            return cls(text, (Path(pattern),))
        if Path(pattern).is_dir():
            raise ValueError(f"'{text}' is a folder; name its files, such as '{text.rstrip('/')}/*.jsonl'")
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        paths = tuple(Path(path) for path in sorted(matches) if Path(path).is_file())
        if not paths:
            kind = "no file matches" if glob.has_magic(text) else "no such file:"
            raise ValueError(f"{kind} '{text}' (looked for {pattern}){_near_file(Path(pattern))}")
        return cls(text, paths)

    def canonical(self) -> list[str]:
        return [sha256_of_file(path) for path in self.paths]


@dataclass(frozen=True, slots=True)
class OutputFolder(PathSetting):
    """A folder that a step writes, inside the folder of the spec; where it lies does not decide rows."""

    written: str
    path: Path

    @classmethod
    def from_text(cls, text: str, root: Path) -> OutputFolder:
        path = Path(text)
        if path.is_absolute() or text.startswith("~") or ".." in path.parts or path == Path():
            raise ValueError(f"'{text}' is not inside the folder of this file; write a relative path without '..'")
        inside = (root / path).resolve()
        if not inside.is_relative_to(root.resolve()):
            raise ValueError(f"'{text}' leads to {inside}, which is not inside the folder of this file")
        return cls(text, root / path)

    def canonical(self) -> None:
        return None


def existing_file(text: str, root: Path) -> Path:
    """Return the path that `text` names relative to `root`. Raises ValueError, with a near name, where no file is there."""
    path = root / Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"no such file: '{text}' (looked for {path}){_near_file(path)}")
    return path


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
