"""Config: everything that a training is told, as a TOML file of tables, checked before anything is computed."""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.errors import BadInput
from model.training.tables import Data, Distil, Encoder, Loss, Optimiser, Projector, Qat, Run, Schedule, hyphened
from model.views import ViewRule


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config; every table is one of the classes above, [views] is `views.ViewRule`."""

    data: Data
    schedule: Schedule
    encoder: Encoder = dataclasses.field(default_factory=Encoder)
    views: ViewRule = dataclasses.field(default_factory=ViewRule)
    loss: Loss = dataclasses.field(default_factory=Loss)
    projector: Projector = dataclasses.field(default_factory=Projector)
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)
    qat: Qat = dataclasses.field(default_factory=Qat)
    distil: Distil = dataclasses.field(default_factory=Distil)
    run: Run = dataclasses.field(default_factory=Run)

    def __post_init__(self) -> None:
        native, stored = self.encoder.native_dims, self.encoder.profile.dims
        if self.distil.teacher and (self.distil.prefixes[-1] != native or stored not in self.distil.prefixes):
            # Values behind the last prefix would be trained by nothing, and stored all the same.
            raise BadInput(
                f"[distil] prefixes = {list(self.distil.prefixes)}: an embedding has {native} values, of which "
                f"{stored} are stored: the last prefix must be all of them, and one must be those"
            )

    def as_dict(self) -> dict[str, Any]:
        """Tables of values as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    def fixed(self) -> dict[str, Any]:
        """What two runs must share for one to go on where the other stopped: all but the free fields."""
        said = self.as_dict()
        for table in dataclasses.fields(self):
            for field in dataclasses.fields(getattr(self, table.name)):
                if field.metadata.get("free"):
                    said[table.name].pop(field.name)
        said["distil"]["used"] = bool(self.distil.teacher)
        return said

    @property
    def digest(self) -> str:
        """sha256 over `fixed`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.fixed(), sort_keys=True).encode()).hexdigest()


TABLES: Mapping[str, Any] = {
    "data": Data, "encoder": Encoder, "views": ViewRule, "loss": Loss, "projector": Projector, "optimiser": Optimiser,
    "schedule": Schedule, "qat": Qat, "distil": Distil, "run": Run,
}  # fmt: skip


def config_of(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config's TOML.

    Args:
      where: what messages call it.
      overrides: "table.name=value" in place of what the text says; a value as TOML has it, or plain text.

    Raises:
      BadInput: not TOML; a table or key that does not belong there, a value of another type, or one that cannot be.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise BadInput(f"{where}: {e}") from None
    for table in found:
        if table not in TABLES or not isinstance(found[table], dict):
            raise BadInput(f"{where}: {table!r} is none of its tables{_near(table, TABLES)}: {_tables()}")
    for override in overrides:
        table, key, value = _override(override)
        if table not in TABLES:
            raise BadInput(f"--set {override}: there is no table {table!r}{_near(table, TABLES)}: {_tables()}")
        found.setdefault(table, {})[key] = value
    for needed in ("data", "schedule"):
        if needed not in found:
            raise BadInput(f"{where}: no table [{needed}]")
    try:
        return Config(**{name: _table(name, values) for name, values in found.items()})
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from None


def _tables() -> str:
    return ", ".join(f"[{name}]" for name in TABLES)


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _override(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        raise BadInput(f"--set {text}: table.name=value is wanted, as in data.shards=shards")
    try:
        return table, key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return table, key, value.strip()


def _table(table: str, values: Mapping[str, Any]) -> Any:
    kind = TABLES[table]
    fields = {hyphened(f.name): f for f in dataclasses.fields(kind)}
    types_of = typing.get_type_hints(kind)
    given = {}
    for key, value in values.items():
        name = hyphened(key)
        if name not in fields:
            raise BadInput(f"[{table}] has no {key!r}{_near(name, fields)}: it has {', '.join(fields)}")
        given[fields[name].name] = _typed(value, types_of[fields[name].name], f"[{table}] {name}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            raise BadInput(f"[{table}] {name} is missing: give it in the file, or with --set {table}.{name}=..")
    try:
        return kind(**given)
    except BadInput as e:
        said = str(e)
        raise BadInput(said if said.startswith("[") else f"[{table}] {said}") from None


def _typed(value: Any, kind: Any, what: str) -> Any:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if isinstance(kind, types.UnionType):  # int | None: None is only ever a default
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        (inner, _) = typing.get_args(kind)
        if not isinstance(value, list):
            raise BadInput(f"{what} = {value!r}: a list is wanted, each {words[inner]}")
        return tuple(_typed(v, inner, what) for v in value)
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right:
        raise BadInput(f"{what} = {value!r}: {words[kind]} is wanted")
    return kind(value)
