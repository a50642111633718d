"""Manifests without their secrets: values of fields and of environment entries that look like one.

Must never change the manifest that it is given.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?i)(pass(word|wd|phrase)?|secret|token|credential|authorization|api[_-]?key|"
    r"access[_-]?key|private[_-]?key|(^|[_-])(key|pat|auth)$)"
)
_SECRET_VALUE = re.compile(
    r"(ix_[0-9a-f]{64}|hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|"
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^@\s]+@)"
)


def is_secret(name: str, value: object) -> bool:
    """Whether an environment entry looks like a secret, by its name or by its value."""
    if not isinstance(value, str) or not value:
        return False
    return _SECRET_NAME.search(name) is not None or _SECRET_VALUE.search(value) is not None


def redacted(manifest: Any) -> Any:
    """A copy of a manifest in which `envs` that look like secrets are ***."""
    spec = manifest.get("object", {}).get("spec") if isinstance(manifest, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("envs"), list):
        return manifest
    envs = spec["envs"]
    hidden = [_hide(entry) for entry in envs]
    return {**manifest, "object": {**manifest["object"], "spec": {**spec, "envs": hidden}}}


def _hide(entry: Any) -> Any:
    if isinstance(entry, list) and len(entry) == 2 and is_secret(str(entry[0]), entry[1]):
        return [entry[0], HIDDEN]
    return entry


def restored(manifest: dict[str, Any], stored: dict[str, Any] | None) -> dict[str, Any]:
    """A manifest that was read with *** in it and comes back: the values that are stored again.

    An entry that has no stored value stays as it is, for the caller to refuse.
    """
    envs = manifest.get("object", {}).get("spec", {}).get("envs")
    if not isinstance(envs, list) or not any(_is_hidden(entry) for entry in envs):
        return manifest
    spec = (stored or {}).get("object", {}).get("spec", {})
    known = {str(entry[0]): entry[1] for entry in spec.get("envs") or []}
    back = [
        [entry[0], known.get(str(entry[0]), HIDDEN)] if _is_hidden(entry) else entry
        for entry in envs
    ]
    inner = manifest["object"]
    return {**manifest, "object": {**inner, "spec": {**inner["spec"], "envs": back}}}


def _is_hidden(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[1] == HIDDEN


def hidden_names(manifest: dict[str, Any]) -> list[str]:
    """The environment entries whose value is *** itself."""
    spec = manifest.get("object", {}).get("spec")
    envs = spec.get("envs") if isinstance(spec, dict) else None
    return [str(entry[0]) for entry in envs or [] if _is_hidden(entry)]
