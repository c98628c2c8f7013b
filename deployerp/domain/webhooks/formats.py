"""What is sent to an endpoint: the event itself, or words about it as a chat wants them.

Names and status messages are other people's text. In a chat they call nobody and keep to their place, by each
chat's own means; here they lose line breaks and whatever cannot be seen.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from deployerp.core.errors import PayloadTooLarge
from deployerp.domain import tables  # noqa: F401  (registers every resource)
from deployerp.domain.events.event import Event
from deployerp.domain.operations.stateful import STATEFUL

# Standard Webhooks asks for payloads under 20 kB.
_LARGEST_BODY = 20_000
# Slack takes 3,000 characters, and an ampersand becomes five of them.
_LONGEST_TEXT = 590


def _phrases() -> dict[str, str]:
    """What has happened, in words, by the type of the event."""
    said = {
        "backup.completed": "was completed",
        "backup.failed": "failed",
        "operation.stalled": "keeps failing and is tried again",
        "webhook_endpoint.disabled": "was disabled",
        "webhook_endpoint.pinged": "was pinged: this is a test",
    }
    for table in STATEFUL.values():
        for action in table.lifecycle.actions.values():
            done = action.event.partition(".")[2]
            said[action.event] = f"was {done}"
            said[table.lifecycle.failure_event(action)] = f"could not be {done}"
    return said


_SAID = _phrases()
# What else is told, and how it is called. What others have written comes last: it may be long.
_FACTS = {
    "status": "Status",
    "environmentType": "Environment",
    "odooVersion": "Odoo",
    "address": "Address",
    "url": "URL",
    "failingSince": "Failing since",
    "disabledReason": "Reason",
    "statusMessage": "Reason",
}


def render(format: str, event: Event) -> bytes:
    """The body of a delivery in one of `WEBHOOK_FORMATS`, as JSON. Raises `PayloadTooLarge`."""
    return _FORMATS[format](event)


def _raw(event: Event) -> bytes:
    """`{"type", "timestamp", "data"}`, by Standard Webhooks (https://www.standardwebhooks.com)."""
    payload = {"type": event.type, "timestamp": _rfc3339(event.created_at), "data": event.data}
    body = json.dumps(payload, separators=(",", ":")).encode()
    if len(body) >= _LARGEST_BODY:
        raise PayloadTooLarge(
            f"The event is larger than webhooks may be ({_LARGEST_BODY} bytes): read it from /v1/events."
        )
    return body


def _slack(event: Event) -> bytes:
    """A message of Slack's incoming webhooks; the text beside the block is for notifications.

    Plain text knows no markup. `&`, `<` and `>` are escaped everywhere, and without them there is no way to
    write `<!channel>` (https://docs.slack.dev/messaging/formatting-message-text).
    """
    lines = [_escaped_for_slack(line) for line in _lines(event)]
    text = {"type": "plain_text", "text": "\n".join(lines)}
    return _json({"text": lines[0], "mrkdwn": False, "blocks": [{"type": "section", "text": text}]})


def _teams(event: Event) -> bytes:
    """An Adaptive Card, as workflows of Microsoft Teams take it from a webhook.

    Text runs have no Markdown (https://learn.microsoft.com/adaptive-cards/schema-explorer/text-run), and
    nobody is mentioned whom the card does not list.
    """
    first, *others = ({"type": "TextRun", "text": line} for line in _lines(event))
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [
            {"type": "RichTextBlock", "inlines": [run]} for run in (first | {"weight": "Bolder"}, *others)
        ],
    }
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": card,
    }
    return _json({"type": "message", "attachments": [attachment]})


def _discord(event: Event) -> bytes:
    """A message of Discord's webhooks, far below its 2,000 and 4,096 characters.

    Nobody is mentioned who is not allowed to be, and a backslash takes the meaning from Markdown
    (https://discord.com/developers/docs/resources/webhook#execute-webhook).
    """
    sentence, *facts = (_MARKDOWN.sub(r"\\\g<0>", line) for line in _lines(event))
    embeds = [{"description": "\n".join(facts)}] if facts else []
    return _json({"content": sentence, "embeds": embeds, "allowed_mentions": {"parse": []}})


# No line begins with other people's text: what means something there only, such as `-`, need not be in it.
_MARKDOWN = re.compile(r"[\\*_~`|<>@#\[\]()]")
_FORMATS: dict[str, Callable[[Event], bytes]] = {
    "raw": _raw,
    "slack": _slack,
    "teams": _teams,
    "discord": _discord,
}


def _lines(event: Event) -> list[str]:
    """A sentence about the event and then the facts, each in a line; all short enough for every chat."""
    kind = event.type.partition(".")[0].replace("_", " ").capitalize()
    called = _plain(event.data.get("name") or event.data.get("description") or event.resource_id)
    sentence = f"{kind} {called[:100]} {_SAID.get(event.type, f'has news: {event.type}')}."
    told = ((label, event.data.get(name)) for name, label in _FACTS.items())
    facts = (f"{label}: {_plain(value)}" for label, value in told if value)
    return "\n".join((sentence, *facts))[:_LONGEST_TEXT].split("\n")


def _plain(value: object) -> str:
    """One line of what can be seen: no controls, and nothing that turns the direction of writing."""
    seen = "".join(each if each.isprintable() else " " for each in str(value))
    return " ".join(seen.split())


def _escaped_for_slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _json(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def _rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
