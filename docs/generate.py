"""Writes the parts of the documentation that the code knows best, between markers in the pages.

    python docs/generate.py          (`make docs`)

A page asks for a part with `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

import deployerp.core
import deployerp.domain
import deployerp.drivers
from deployerp.core.errors import DeployError, tree
from deployerp.core.settings import Settings
from deployerp.domain.events.types import EVENT_TYPES, EventType
from deployerp.domain.instances import INSTANCE
from deployerp.domain.operations.lifecycles import FAILED, Lifecycle
from deployerp.domain.operations.steps import STEPS
from deployerp.domain.permissions import LEVEL_PERMISSIONS, PERMISSIONS, ROLE_PERMISSIONS
from deployerp.domain.servers import SERVER
from deployerp.domain.tables import lifecycles
from deployerp.drivers.clouds.cloud import credential_fields, provider_kinds

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    return table(
        ("Variable", "Default", "Meaning"),
        (
            (f"`DEPLOYERP_{name.upper()}`", _default(field), field.description)
            for name, field in Settings.model_fields.items()
        ),
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value)}`" if isinstance(value, list) else f"`{value}`"


def errors() -> str:
    return table(
        ("Code", "Status", "Retryable", "Meaning"),
        (
            (f"`{error.code}`", str(error.status), "yes" if error.retryable else "no", _meaning(error))
            for error in sorted(error_classes(), key=lambda error: (error.status, error.code))
        ),
    )


def error_classes() -> set[type[DeployError]]:
    """One class per code: the whole tree, also the leaves that drivers declare."""
    for package in (deployerp.core, deployerp.domain, deployerp.drivers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    by_code: dict[str, type[DeployError]] = {}
    for error in tree():
        # Tests have some of their own.
        if error.__module__.startswith("deployerp."):
            by_code.setdefault(error.code, error)
    return set(by_code.values())


# Of those whose name is all that the code needs to say.
_MEANINGS = {
    "unauthorized": "No valid API key or access token came with the request.",
    "forbidden": "The key's level or the user's role does not include the permission that `message` names.",
    "not_found": "The resource does not exist, or it belongs to another organization.",
    "method_not_allowed": "The path does not support the method.",
    "conflict": "The request conflicts with existing data, such as a name in use.",
    "payload_too_large": "The body has more bytes than `DEPLOYERP_MAX_BODY_BYTES` allows.",
    "internal_error": "Something unexpected went wrong on our side; the log has it under the request's id.",
}


def _meaning(error: type[DeployError]) -> str:
    if error.code in _MEANINGS or error.__doc__ is None:
        return _MEANINGS[error.code]
    return inspect.cleandoc(error.__doc__).partition("\n\n")[0].replace("\n", " ")


def events() -> str:
    return table(("Type", "When"), ((f"`{each.name}`", each.when) for each in EVENT_TYPES.values()))


def event_data() -> str:
    """What events tell of each kind of resource, with one of them as an example."""
    return "\n".join(_told(each) for each in {each.facts: each for each in EVENT_TYPES.values()}.values())


def _told(example: EventType) -> str:
    fields = example.json_schema["properties"]["data"]["properties"].items()
    told = ((f"`{name}`", _kind(field), field.get("description")) for name, field in fields)
    body = json.dumps(example.example, indent=2, ensure_ascii=False)
    resource = example.name.partition(".")[0]
    return f"### `{resource}.*`\n\n{table(('Field', 'Type', 'Meaning'), told)}\n```json\n{body}\n```\n"


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f"`{each}`" for each in schema["enum"])
    return str(schema.get("format", schema["type"]))


def credentials() -> str:
    """What each kind of provider asks for."""
    return table(
        ("Kind", "Field", "Required", "Secret", "Meaning"),
        (
            (f"`{kind}`", f"`{field.name}`", _yes(field.required), _yes(field.secret), field.meaning)
            for kind in provider_kinds()
            for field in credential_fields(kind)
        ),
    )


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def steps() -> str:
    return table(("Step", "Title"), ((f"`{name}`", title) for name, title in STEPS.items()))


def actions() -> str:
    return table(
        ("Action", "From", "On the way", "In the end", "Permission", "Workflow", "Event"),
        (
            (
                f"{lifecycle.resource_type} {action.name}",
                ", ".join(action.from_states),
                action.transitional,
                action.end,
                f"`{action.permission}`",
                f"`{action.workflow}`",
                f"`{action.event}`",
            )
            for lifecycle in lifecycles().values()
            for action in lifecycle.actions.values()
        ),
    )


def permissions() -> str:
    """Who may read, manage and delete what."""
    holders = {f"key: {level}": held for level, held in LEVEL_PERMISSIONS.items()} | dict(
        ROLE_PERMISSIONS.items()
    )
    resources = dict.fromkeys(each.partition(":")[2] for each in sorted(PERMISSIONS))
    verbs = ("read", "manage", "delete")
    return table(
        ("", *holders),
        (
            (
                f"`{resource}`",
                *(" ".join(v for v in verbs if f"{v}:{resource}" in held) for held in holders.values()),
            )
            for resource in resources
        ),
    )


def server_states() -> str:
    return diagram(SERVER)


def instance_states() -> str:
    return diagram(INSTANCE)


def diagram(lifecycle: Lifecycle) -> str:
    """A Mermaid state diagram; any action on its way can fail."""
    first = lifecycle.first.from_states[0]
    arrows = [f"[*] --> {first}"]
    for action in lifecycle.actions.values():
        arrows += [f"{state} --> {action.transitional}: {action.name}" for state in action.from_states]
        left = (FAILED,) if action.on_failure == "failed" else action.from_states
        arrows += [f"{action.transitional} --> {state}" for state in (action.end, *left)]
    arrows.append("deleted --> [*]")
    return (
        "```mermaid\nstateDiagram-v2\n"
        + "".join(f"    {arrow}\n" for arrow in dict.fromkeys(arrows))
        + "```\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join((cell or "").replace("|", r"\|") for cell in line) + " |\n" for line in lines
    )


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (
        settings,
        errors,
        events,
        event_data,
        permissions,
        credentials,
        steps,
        actions,
        server_states,
        instance_states,
    )
}


def fill(page: str) -> str:
    """The page with its generated parts as the code has them now. Raises KeyError for an unknown part."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", page)


def parts_of(page: str) -> list[str]:
    return [part[2] for part in _PART.finditer(page)]


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text()
        if fill(page) != page:
            path.write_text(fill(page))
            sys.stdout.write(f"wrote {path.relative_to(DOCS.parent)}\n")


if __name__ == "__main__":
    main()
