"""The scripts of the docs that sign and verify webhooks, beside the library that signs ours.

They are the second implementation: plain hashes of openssl in a shell, no code of ours and none of the
library's.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from deployerp.domain.webhooks.endpoints import new_webhook_secret
from deployerp.drivers.web.http import WebhookSender
from tests.drivers.web.receivers import LOOPBACK, answering, receiver

DOCS = Path(__file__).parents[1] / "docs"
# Debian's, the one that most people use, and that of small images.
SHELLS = ["dash", "bash", "busybox sh"]
TOOLS = ["awk", "cat", "curl", "date", "dirname", "mktemp", "od", "openssl", "rm", "wc"]

SECRET = new_webhook_secret()
BODY = '{"type":"instance.deployed","data":{"name":"Größe ✓","statusMessage":null}}'


@dataclass(frozen=True)
class Outcome:
    """How a script has ended: its exit status and what it printed."""

    status: int
    output: str
    errors: str = ""


async def run(
    script: str,
    *arguments: str | Path,
    shell: str = "dash",
    secret: str = SECRET,
    stdin: bytes = b"",
    path: str = os.environ["PATH"],
) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        *shell.split(),
        DOCS / script,
        *arguments,
        env={"PATH": path, "WEBHOOK_SECRET": secret},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(stdin)
    return Outcome(await process.wait(), output.decode(), errors.decode())


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def sign(message_id: str = "msg_1", at: datetime | None = None, secret: str = SECRET) -> dict[str, str]:
    """The headers of a message with the body, as the library signs it."""
    at = at or datetime.now(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, at, BODY),
    }


@dataclass
class Files:
    """What a receiver has written down of a request."""

    folder: Path

    async def verify(self, headers: Mapping[str, str], body: str = BODY, *, shell: str = "dash") -> Outcome:
        lines = ["POST /hook HTTP/1.1", "Host: hooks.example", *(f"{k}: {v}" for k, v in headers.items())]
        (self.folder / "headers").write_text("\r\n".join([*lines, "", ""]), newline="")
        (self.folder / "body").write_text(body, newline="")
        return await run("verify-webhook.sh", self.folder / "headers", self.folder / "body", shell=shell)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# Signing.


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("length", [24, 32, 63, 64])
async def test_a_signature_is_the_hmac_of_the_standard(length: int, shell: str) -> None:
    key = bytes(range(256 - length, 256)) if length % 2 else bytes(range(length))
    for body in (b"", b"{}", b"\0\xff\r\n\n" * 50, b"%s\\n$(id)`id`" * 2000):
        expected = hmac.new(key, b"msg_%d.1700000000." + body, hashlib.sha256).digest()
        outcome = await run(
            "webhook-signature.sh", "msg_%d", "1700000000", stdin=body, secret=secret_of(key), shell=shell
        )
        assert outcome == Outcome(0, f"v1,{base64.b64encode(expected).decode()}\n")


@pytest.mark.parametrize("shell", SHELLS)
async def test_library_and_script_sign_alike(shell: str) -> None:
    headers = sign()
    outcome = await run(
        "webhook-signature.sh", "msg_1", headers["webhook-timestamp"], stdin=BODY.encode(), shell=shell
    )
    assert outcome.output.strip() == headers["webhook-signature"]


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_***", "not base64!", secret_of(b"k" * 23), secret_of(b"k" * 65)]
)
async def test_what_is_no_secret_signs_nothing(secret: str) -> None:
    outcome = await run("webhook-signature.sh", "msg_1", "1700000000", stdin=b"{}", secret=secret)
    assert (outcome.status, outcome.output) == (2, "")
    assert "WEBHOOK_SECRET" in outcome.errors


# Verifying.


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_genuine_message_is_verified(files: Files, shell: str) -> None:
    assert await files.verify(sign(), shell=shell) == Outcome(0, "Verified: msg_1\n")


async def test_names_of_headers_are_in_any_case(files: Files) -> None:
    outcome = await files.verify({name.title(): value for name, value in sign().items()})
    assert outcome.status == 0


@pytest.mark.parametrize("seconds", [-290, 290])
async def test_clocks_may_differ_a_little(files: Files, seconds: int) -> None:
    outcome = await files.verify(sign(at=datetime.now(UTC) + timedelta(seconds=seconds)))
    assert outcome.status == 0


@pytest.mark.parametrize("seconds", [-320, 320, -86_400])
async def test_a_stale_message_is_refused(files: Files, seconds: int) -> None:
    outcome = await files.verify(sign(at=datetime.now(UTC) + timedelta(seconds=seconds)))
    assert (outcome.status, outcome.output) == (1, "")
    assert "seconds old" in outcome.errors


@pytest.mark.parametrize("body", [BODY + "\n", BODY[:-1], BODY.replace("deployed", "deleted"), ""])
async def test_a_changed_body_is_refused(files: Files, body: str) -> None:
    outcome = await files.verify(sign(), body)
    assert (outcome.status, outcome.output) == (1, "")
    assert "no signature fits" in outcome.errors


async def test_another_secret_is_refused(files: Files) -> None:
    outcome = await files.verify(sign(secret=new_webhook_secret()))
    assert (outcome.status, outcome.output) == (1, "")


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "0x7fffffff"},
        {"webhook-timestamp": "9" * 40},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "*"},
        {"webhook-signature": "v1,* v1,?"},
    ],
)
async def test_changed_headers_are_refused(files: Files, changed: dict[str, str]) -> None:
    outcome = await files.verify(sign() | changed)
    assert (outcome.status, outcome.output) == (1, "")
    assert outcome.errors.startswith("Refused: ")


async def test_a_message_is_not_made_newer(files: Files) -> None:
    headers = sign(at=datetime.now(UTC) - timedelta(seconds=600))
    headers["webhook-timestamp"] = sign()["webhook-timestamp"]
    outcome = await files.verify(headers)
    assert outcome.status == 1
    assert "no signature fits" in outcome.errors


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
async def test_missing_headers_are_refused(files: Files, missing: str) -> None:
    headers = sign()
    del headers[missing]
    assert (await files.verify(headers)).status == 1


async def test_a_signature_counts_for_its_own_version(files: Files) -> None:
    headers = sign()
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1,", "v2,")
    assert (await files.verify(headers)).status == 1


@pytest.mark.parametrize("order", [1, -1])
async def test_either_secret_of_a_rotation_is_verified(files: Files, order: int) -> None:
    at = datetime.now(UTC)
    both = [sign(at=at, secret=each)["webhook-signature"] for each in (SECRET, new_webhook_secret())]
    headers = sign(at=at) | {"webhook-signature": " ".join(["v1a,AAAA", *both[::order]])}
    assert Webhook(SECRET).verify(BODY, headers)
    assert (await files.verify(headers)).status == 0


@pytest.mark.parametrize("shell", SHELLS)
async def test_files_that_are_not_there_are_not_verified(files: Files, shell: str) -> None:
    await files.verify(sign())
    there, gone = files.folder, files.folder / "gone"
    for arguments in ([gone, there / "body"], [there / "headers", gone], [there / "headers"], []):
        outcome = await run("verify-webhook.sh", *arguments, shell=shell)
        assert (outcome.status, outcome.output) == (2, "")


async def test_what_the_sender_sends_is_verified(files: Files) -> None:
    async def handle(request: web.Request) -> web.Response:
        outcome = await files.verify(request.headers, await request.text())
        return web.Response(status=204 if outcome.status == 0 else 401)

    async with receiver(handle) as port:
        sender = WebhookSender([LOOPBACK])
        answer = await sender.send(f"http://127.0.0.1:{port}/", BODY.encode(), sign())
        assert answer.status == 204
        forged = await sender.send(
            f"http://127.0.0.1:{port}/", BODY.encode(), sign(secret=secret_of(b"k" * 32))
        )
        assert forged.status == 401


# Trying one's own receiver.


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("body", [None, BODY])
async def test_a_test_webhook_is_as_ours(tmp_path: Path, body: str | None, shell: str) -> None:
    payloads: list[object] = []

    async def handle(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert headers["content-type"] == "application/json"
        payloads.append(Webhook(SECRET).verify(await request.text(), headers))
        return web.Response(status=202)

    (tmp_path / "body").write_text(body or "")
    async with receiver(handle) as port:
        arguments = [f"http://127.0.0.1:{port}/hook", *([str(tmp_path / "body")] if body else [])]
        outcome = await run("send-test-webhook.sh", *arguments, shell=shell)
    assert outcome == Outcome(0, "202\n")
    [payload] = payloads
    assert isinstance(payload, dict)
    assert payload["type"] == ("instance.deployed" if body else "test")


# The secret.


async def test_the_secret_is_in_nobodys_arguments(tmp_path: Path, files: Files) -> None:
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    seen.mkdir()
    for tool in TOOLS:
        # Whatever a script runs has to come by here: its PATH leads to nothing else.
        (tools / tool).write_text(f'#!/bin/sh\necho "$@" >>{seen / tool}\nexec {shutil.which(tool)} "$@"\n')
        (tools / tool).chmod(0o755)

    await files.verify(sign())
    async with receiver(answering()) as port:
        outcomes = [
            await run(script, *arguments, path=str(tools), shell="/bin/sh")
            for script, *arguments in (
                ("verify-webhook.sh", files.folder / "headers", files.folder / "body"),
                ("send-test-webhook.sh", f"http://127.0.0.1:{port}/"),
            )
        ]
    assert [outcome.status for outcome in outcomes] == [0, 0]
    arguments = {each.name: each.read_text() for each in seen.iterdir()}
    assert sorted(arguments) == TOOLS
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    for mask in (0x00, 0x36, 0x5C):
        masked = bytes(byte ^ mask for byte in key)
        for form in (masked.hex(), masked.hex(" "), base64.b64encode(masked).decode()[:40]):
            assert form not in "".join(arguments.values())
