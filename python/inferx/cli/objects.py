"""apply, get, list and delete: objects by manifest and by name.

Must never change an object that somebody else changed in between; the revision guards it.
"""

from __future__ import annotations

import json
from typing import Any

import click

from inferx.cli.client import Gateway, path
from inferx.cli.manifests import Manifest, load
from inferx.cli.options import (
    Scope,
    object_key,
    object_type,
    output_option,
    scope_options,
    server_option,
)
from inferx.cli.output import emit
from inferx.domain.meta import SYSTEM
from inferx.errors import AlreadyExists, Conflict, InferxError, NotFound

APPLY_TRIES = 5
Document = dict[str, Any]

files_option = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE|DIR|-",
    help="A JSON or YAML file (of one or many manifests), a folder of them, or - for stdin.",
)


@click.command()
@files_option
@scope_options
@server_option
def apply(files: tuple[str, ...], tenant: str, namespace: str | None, gateway: Gateway) -> None:
    """Create or update objects from manifests.

    Everything is checked first; then tenants, namespaces, policies and functions are written in
    this order. A manifest without a tenant or namespace gets those of -t and -n. What is stored
    already is left alone.
    """
    if not files:
        raise click.UsageError("say what to apply: -f FILE, -f DIR or -f -")
    defaults = {"tenant": tenant} | ({"namespace": namespace} if namespace else {})
    manifests = load(files, defaults)
    failed = 0
    for manifest in manifests:
        try:
            done, warnings = _apply(gateway, manifest)
        except InferxError as error:
            if not 400 <= error.http_status < 500:
                raise
            failed += 1
            click.echo(f"error: {manifest.origin}: {error.message}", err=True)
        else:
            for warning in dict.fromkeys((*manifest.warnings, *warnings)):
                click.echo(f"warning: {manifest.origin}: {warning}", err=True)
            click.echo(f"{manifest.obj.meta} {done}")
    if failed:
        raise InferxError(f"{failed} of {len(manifests)} manifests were not applied")


def _apply(gateway: Gateway, manifest: Manifest) -> tuple[str, list[str]]:
    """created, updated or unchanged, and the platform's warnings.

    Tries again when somebody else writes at the same time.
    """
    meta, document = manifest.obj.meta, manifest.document
    for _ in range(APPLY_TRIES):
        try:
            stored = gateway.json("GET", path("object", meta.kind, *meta.key))
        except NotFound:
            try:
                written = gateway.json("PUT", "/object/", document)
            except AlreadyExists:
                continue
            return "created", written.get("warnings", [])
        if _same(stored, document):
            return "unchanged", []
        newer = {**document, "revision": stored["revision"]}
        try:
            written = gateway.json("POST", "/object/", newer)
        except (Conflict, NotFound):
            continue
        if written["revision"] == stored["revision"]:
            return "unchanged", []  # secrets are read as ***; the platform has compared them
        return "updated", written.get("warnings", [])
    raise Conflict(f"{meta} is being changed by others all the time; try again")


def _same(stored: Document, wanted: Document) -> bool:
    optional: Document = {"labels": {}, "annotations": {}}
    names = wanted.keys() | stored.keys() - {"revision"} | optional.keys()
    return all(
        stored.get(name, optional.get(name)) == wanted.get(name, optional.get(name))
        for name in names
    )


@click.command()
@click.argument("kind", metavar="TYPE", callback=object_type)
@click.argument("name", required=False)
@scope_options
@output_option
@server_option
def get(
    kind: str, name: str | None, tenant: str, namespace: str | None, output: str, gateway: Gateway
) -> None:
    """Show one object, or all of a TYPE.

    TYPE is tenant, namespace, function, funcpolicy, pod, node or snapshot. NAME may be
    NAMESPACE/NAME or TENANT/NAMESPACE/NAME.
    """
    scope = Scope(tenant, namespace)
    if name is None:
        _show(kind, find(gateway, kind, scope), output, scope)
        return
    document = gateway.json("GET", path("object", kind, *object_key(kind, name, scope)))
    if output == "table":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        emit(output, document, (), (), "")


@click.command("list")
@click.argument("kind", metavar="TYPE", callback=object_type)
@scope_options
@output_option
@server_option
def list_(kind: str, tenant: str, namespace: str | None, output: str, gateway: Gateway) -> None:
    """List the objects of a TYPE: in one namespace (-n) or in all of the tenant."""
    scope = Scope(tenant, namespace)
    _show(kind, find(gateway, kind, scope), output, scope)


def find(gateway: Gateway, kind: str, scope: Scope) -> list[Document]:
    """The manifests of a type, in the scope's namespace or in all of its tenant."""
    if kind == "node":
        return list(gateway.json("GET", path("nodes")))
    if kind == "tenant":
        return list(gateway.json("GET", path("objects", kind, SYSTEM, SYSTEM)))
    if kind == "namespace":
        return list(gateway.json("GET", path("objects", kind, scope.tenant, SYSTEM)))
    inside = (scope.tenant, scope.namespace) if scope.namespace else (scope.tenant,)
    route = ("pods",) if kind == "pod" else ("objects", kind)
    return list(gateway.json("GET", path(*route, *inside)))


def _show(kind: str, documents: list[Document], output: str, scope: Scope) -> None:
    where = f"{scope.tenant}/{scope.namespace}" if scope.namespace else f"tenant {scope.tenant}"
    rows = [
        (item["tenant"], item["namespace"], item["name"], item.get("revision", ""))
        for item in documents
    ]
    headers = ("TENANT", "NAMESPACE", "NAME", "REVISION")
    emit(output, documents, headers, rows, f"no {kind} in {where}")


@click.command()
@click.argument("kind", metavar="[TYPE]", callback=object_type, required=False)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@files_option
@scope_options
@server_option
def delete(
    kind: str | None,
    names: tuple[str, ...],
    files: tuple[str, ...],
    tenant: str,
    namespace: str | None,
    gateway: Gateway,
) -> None:
    """Delete objects: TYPE NAME..., or those of manifests (-f), functions first."""
    scope = Scope(tenant, namespace)
    if files and not kind:
        defaults = {"tenant": tenant} | ({"namespace": namespace} if namespace else {})
        targets = [(item.obj.kind, item.obj.key) for item in reversed(load(files, defaults))]
    elif kind and names and not files:
        targets = [(kind, object_key(kind, name, scope)) for name in names]
    else:
        raise click.UsageError("say what to delete: TYPE NAME..., or -f FILE")
    for each, key in targets:
        label = f"{each} {'/'.join(key)}"
        try:
            gateway.json("DELETE", path("pod" if each == "pod" else "object", *_home(each, key)))
        except NotFound:
            if not files:
                raise
            click.echo(f"{label} was not there")
        else:
            click.echo(f"{label} deleted")


def _home(kind: str, key: tuple[str, str, str]) -> tuple[str, ...]:
    return key if kind == "pod" else (kind, *key)
