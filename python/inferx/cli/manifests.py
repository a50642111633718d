"""Manifests from files, folders and standard input, in the order in which they can be created.

Must never send anything; a broken manifest is found before the first one is applied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inferx.domain import codec
from inferx.domain.meta import Object
from inferx.errors import BadRequest

SUFFIXES = (".json", ".yaml", ".yml")
# An object can only be created after those it refers to.
ORDER = ("tenant", "namespace", "funcpolicy", "function")
# What the aliases of one YAML document may stand for: a few nested ones are billions of values.
ALIASED_VALUES_MAX = 100_000
YAML_DEPTH_MAX = codec.DEPTH_MAX + 1  # one more, for the list that an object may stand in


@dataclass(frozen=True)
class Manifest:
    """One checked document: what it holds, where it came from and what was odd about it."""

    origin: str
    obj: Object[Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """The manifest to send; the revision of an exported one is not sent."""
        document = codec.dump_manifest(self.obj)
        document.pop("revision", None)
        return document


def load(sources: Iterable[str], defaults: dict[str, str]) -> list[Manifest]:
    """All manifests of `sources` (files, folders, - for standard input), sorted for creation.

    `defaults` fills a missing tenant or namespace. Raises `BadRequest` naming file and path.
    """
    found = [
        _check(document, origin, defaults)
        for source in sources
        for text, origin in _texts(source)
        for document, origin in _documents(text, origin)
    ]
    if not found:
        raise BadRequest(f"no manifest in {', '.join(sources)}")
    last = len(ORDER)
    rank = {kind: position for position, kind in enumerate(ORDER)}
    return sorted(found, key=lambda manifest: rank.get(manifest.obj.kind, last))


def _texts(source: str) -> Iterator[tuple[str, str]]:
    if source == "-":
        yield sys.stdin.read(), "standard input"
        return
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise BadRequest(f"{source}: no .json or .yaml file in this folder")
    for file in files:
        try:
            yield file.read_text(encoding="utf-8-sig"), str(file)
        except OSError as error:
            raise BadRequest(f"{file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadRequest(f"{file}: not UTF-8 text (byte {error.start})") from error


class _Strict(yaml.SafeLoader):
    """Refuses what the reader of JSON refuses, too (a field that is given twice, endless nesting),
    and aliases that stand for more than anybody means, before their values are made."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values: dict[yaml.Node, int] = {}  # with those that aliases in it stand for
        self._aliased = 0

    def compose_document(self) -> yaml.Node | None:
        self._values, self._aliased = {}, 0
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth >= YAML_DEPTH_MAX:
            raise _problem(f"nested too deeply, more than {YAML_DEPTH_MAX} levels", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._values:
                raise _problem(f"alias {event.anchor!r} is part of what it stands for", event)
            self._aliased += self._values[node]
            if self._aliased > ALIASED_VALUES_MAX:
                problem = f"aliases stand for more than {ALIASED_VALUES_MAX} values"
                raise _problem(problem, event)
        else:
            self._values[node] = 1 + sum(self._values[part] for part in _parts(node))
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _problem(f"field {key.value!r} is given twice", key)
            seen.add(key.value)
        return node


def _problem(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _documents(text: str, origin: str) -> Iterator[tuple[Any, str]]:
    """Each document with its origin; JSON first, because its errors and types are stricter."""
    looks_like_json = text.lstrip()[:1] in ("{", "[")
    if looks_like_json:
        try:
            value = codec.parse_json(text)
        except BadRequest as error:
            if not origin.endswith((".yaml", ".yml")):
                raise BadRequest(f"{origin}: {error.message}") from error
        else:
            yield from _items(value, origin)
            return
    try:
        loaded = yaml.load_all(text, _Strict)  # nosec B506 - a SafeLoader
        documents = [document for document in loaded if document is not None]
    except yaml.YAMLError as error:
        raise BadRequest(f"{origin}: not JSON or YAML: {' '.join(str(error).split())}") from error
    for number, document in enumerate(documents, 1):
        where = f"{origin} document {number}" if len(documents) > 1 else origin
        yield from _items(document, where)


def _items(value: Any, origin: str) -> Iterator[tuple[Any, str]]:
    if not isinstance(value, list):
        yield value, origin
        return
    for number, item in enumerate(value, 1):
        yield item, f"{origin} item {number}"


def _check(document: Any, origin: str, defaults: dict[str, str]) -> Manifest:
    if not isinstance(document, dict):
        raise BadRequest(f"{origin}: expected an object with type, name and object")
    if document.get("type") not in ("tenant", "namespace", "node"):
        document = {**defaults, **document}
    try:
        obj, warnings = codec.parse_manifest(document)
    except BadRequest as error:
        raise BadRequest(f"{origin}: {error.message}") from error
    return Manifest(origin, obj, warnings)
