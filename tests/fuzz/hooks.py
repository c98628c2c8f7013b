"""Loaded by Schemathesis: how it finds its way in the API, and what the document cannot say of it."""

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import requests
import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import positive_data_acceptance

ADDRESS, OWN_KEY = os.environ["FUZZ_ADDRESS"], os.environ["FUZZ_OWN_KEY"]
KEY, OTHER_KEY = os.environ["FUZZ_KEY"], os.environ["FUZZ_OTHER_KEY"]
ENDED = {"succeeded", "failed", "cancelled"}
# A key that was revoked: the audit log names it.
STILL_SEEN = {"/v1/api-keys/{id}"}
# Fields with rules beyond JSON Schema, by which a request that keeps to the document may still be refused.
RULED_BEYOND = re.compile(
    r"cursor|odooVersion|odooEdition|expiresAt|organization|credentials(\..*)?|envVars\..*|headers(\..*)?"
    r"|types?(\.\d+)?|url|since|after|Last-Event-ID",
    re.DOTALL,
)
# Where a call finds something that it can be about: by the field of its body, or else by its path.
FOUND_BY_FIELD = {"serverId": "/v1/servers?status=running", "providerId": "/v1/providers"}
FOUND_BY_CALL = {
    "POST /v1/operations/{id}/cancel": "/v1/operations?state=pending",
    "POST /v1/operations/{id}/retry": "/v1/operations?state=failed",
    "DELETE /v1/providers/{id}": "/v1/providers?q=unused",
    "POST /v1/webhook-endpoints/{id}/ping": "/v1/webhook-endpoints?enabled=true",
    "POST /v1/webhook-endpoints/{id}/replay": "/v1/webhook-endpoints?enabled=true",
}
_turns = count()


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Calls what lists hold by the names in `serverId` and `/servers/{id}`, by which ids find their use."""
    schemas = raw_schema["components"]["schemas"]
    for name in [*schemas]:
        plain = name.removesuffix("Read").removesuffix("Summary")
        if plain in schemas or (name.endswith("Read") and f"{plain}Summary" in schemas):
            continue
        schemas[plain] = schemas.pop(name)
        _refer(raw_schema, f"#/components/schemas/{name}", f"#/components/schemas/{plain}")


def _refer(node: Any, old: str, new: str) -> None:
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for each in below:
        _refer(each, old, new)
    if isinstance(node, dict) and node.get("$ref") == old:
        node["$ref"] = new


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Has valid requests do what they are for, where the document cannot say what that takes."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _make_meaningful(case, case.meta.phase.name)
    if case.method == "DELETE" and case.path_parameters.get("id") == OWN_KEY:
        # Without it nothing more would be found out.
        case.path_parameters["id"] = str(uuid4())


def _make_meaningful(case: Case, phase: TestPhase) -> None:
    if "page" in case.query:
        case.query.pop("cursor", None)
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
    if phase != TestPhase.COVERAGE:
        case.headers.pop("If-Match", None)
    if isinstance(case.body, dict) and "since" in case.body:
        # Events are kept for some days, and no document says since when.
        case.body = {**case.body, "since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}
        case.body.pop("until", None)
    if str(case.path_parameters.get("id", "")) == "None":
        # A link goes by a field that is null here.
        case.path_parameters["id"] = str(uuid4())
    if phase in (TestPhase.COVERAGE, TestPhase.FUZZING):
        _make_found(case)
    elif case.method == "GET":
        # Links go on from what a list holds, and most filters leave it empty.
        case.query.clear()


def _make_found(case: Case) -> None:
    """Puts the ids of what there is in place of those that were made up."""
    if "id" in case.path_parameters:
        call = f"{case.method} {case.path}"
        default = case.path.partition("/{id}")[0]
        case.path_parameters["id"] = _id_from(FOUND_BY_CALL.get(call, default), case.path_parameters["id"])
    for field in FOUND_BY_FIELD.keys() & set(case.body if isinstance(case.body, dict) else ()):
        case.body[field] = _id_from(FOUND_BY_FIELD[field], case.body[field])


def _id_from(path: str, default: str) -> str:
    """One after the other of what a list holds."""
    found = _got(path).json()["data"]
    return found[next(_turns) % len(found)]["id"] if found else default


@schemathesis.hook
def after_call(context: HookContext, case: Case, response: Response) -> None:
    """Waits for a deletion that goes on after its 202: only then is the resource to be gone."""
    if case.method != "DELETE" or response.status_code != 202:
        return
    operation = response.headers["location"][0]
    until = time.monotonic() + 10
    while _got(operation).json()["data"]["state"] not in ENDED:
        if time.monotonic() > until:
            raise TimeoutError(f"{operation} has not ended")
        time.sleep(0.01)


def _got(path: str, key: str = KEY) -> requests.Response:
    return requests.get(f"{ADDRESS}{path}", headers={"Authorization": f"Bearer {key}"}, timeout=5)


@schemathesis.check
def what_is_deleted_is_gone(context: CheckContext, response: Response, case: Case) -> None:
    if case.method != "DELETE" or response.status_code >= 300 or case.path in STILL_SEEN:
        return
    found = _got(case.formatted_path)
    assert found.status_code == 404, f"{case.formatted_path} is deleted and answers {found.status_code}"


@schemathesis.check
def what_is_pointed_at_is_there(context: CheckContext, response: Response, case: Case) -> None:
    for path in response.headers.get("location", ()):
        found = _got(path)
        assert found.status_code == 200, (
            f"{path} is the Location of an answer and answers {found.status_code}"
        )


@schemathesis.check
def what_is_ours_is_not_theirs(context: CheckContext, response: Response, case: Case) -> None:
    if case.method != "GET" or "{id}" not in case.path or response.status_code != 200:
        return
    found = _got(case.formatted_path, OTHER_KEY)
    assert found.status_code == 404, (
        f"another organization gets {found.status_code} for {case.formatted_path}"
    )


@schemathesis.check
def documented_data_acceptance(context: CheckContext, response: Response, case: Case) -> None:
    """What keeps to the document is accepted, but for the rules that it cannot tell."""
    if not _refused_beyond(response):
        positive_data_acceptance(context, response, case)


def _refused_beyond(response: Response) -> bool:
    if response.status_code != 422:
        return False
    details = json.loads(response.content)["error"]["details"]
    fields = [each["field"] for each in details.get("fields", ())]
    return bool(fields) and all(RULED_BEYOND.fullmatch(field) for field in fields)
