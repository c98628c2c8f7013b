"""What is sent about an event: the event itself, or words that other people's text cannot abuse."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from deployerp.core.errors import PayloadTooLarge
from deployerp.database.base import new_id
from deployerp.domain.events.event import Event
from deployerp.domain.events.types import EVENT_TYPES
from deployerp.domain.webhooks.endpoints import WEBHOOK_FORMATS
from deployerp.domain.webhooks.formats import render

CHATS = [each for each in WEBHOOK_FORMATS if each != "raw"]
SHOP = {
    "id": "0199",
    "name": "shop",
    "slug": "shop",
    "status": "failed",
    "statusMessage": "It hangs.",
    "odooVersion": "19.0",
    "environmentType": "production",
    "url": "https://shop.example.com",
}
SHOP_LINES = [
    "Instance shop could not be deployed.",
    "Status: failed",
    "Environment: production",
    "Odoo: 19.0",
    "URL: https://shop.example.com",
    "Reason: It hangs.",
]
# Text that means something to at least one of the chats.
HOSTILE = [
    "@everyone",
    "@here",
    "<!channel>",
    "<!here|here>",
    "<@U012ABC>",
    "<@&123456789012345678>",
    "<#C012ABC>",
    "<at>Ada</at>",
    "<https://evil.example.com|click>",
    "[click](https://evil.example.com)",
    "*bold* _italic_ ~struck~ `code` ||spoiler||",
    "```\ncode",
    "> quoted",
    "# big\n- list\n1. list\n-# small",
    "&lt;!channel&gt;",
    "\\*not escaped\\*",
    "{{DATE(2026-11-21T12:00:00Z)}}",
    '"}],"text":"<!channel>',
    "one\r\n@everyone",
    "\u202egnp.exe\u2066",
    "a\x00b\x1b[31m\x07",
    "\u2028line",
]


def event(type: str = "instance.deploy_failed", **data: Any) -> Event:
    return Event(
        organization_id=new_id(),
        sequence=1,
        type=type,
        resource_type=type.partition(".")[0],
        resource_id=new_id(),
        data=data or SHOP,
        created_at=datetime(2026, 11, 21, 12, 0, 0, 5, UTC),
    )


def parsed(format: str, told: Event) -> Any:
    return json.loads(render(format, told))


def shown(format: str, told: Event) -> list[str]:
    """The lines that people see, once the chat has read its own way of escaping."""
    return READ[format](parsed(format, told))


def slack_lines(message: Any) -> list[str]:
    (block,) = message["blocks"]
    assert block["text"]["type"] == "plain_text"
    assert message["mrkdwn"] is False
    lines = [unescaped(line) for line in block["text"]["text"].split("\n")]
    assert unescaped(message["text"]) == lines[0]
    return lines


def unescaped(text: str) -> str:
    """As Slack reads it: without a control character of its own it is all text."""
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", text), text
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def teams_lines(message: Any) -> list[str]:
    (attachment,) = message["attachments"]
    assert (message["type"], attachment["contentType"]) == (
        "message",
        "application/vnd.microsoft.card.adaptive",
    )
    card = attachment["content"]
    # Whoever is to be mentioned would have to be listed there.
    assert card.keys() == {"$schema", "type", "version", "body"}
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    runs = [run for block in card["body"] for run in block["inlines"]]
    # The one kind of text that has no Markdown.
    assert {run["type"] for run in runs} == {"TextRun"}
    return [run["text"] for run in runs]


def discord_lines(message: Any) -> list[str]:
    assert message["allowed_mentions"] == {"parse": []}
    facts = [line for embed in message["embeds"] for line in embed["description"].split("\n")]
    lines = [message["content"], *facts]
    for line in lines:
        # What means something is escaped, each by its own backslash, and there is no backslash besides.
        assert re.fullmatch(r"(\\[\\*_~`|<>@#\[\]()]|[^\\*_~`|<>@#\[\]()])*", line), line
    return [re.sub(r"\\(.)", r"\1", line) for line in lines]


READ = {"slack": slack_lines, "teams": teams_lines, "discord": discord_lines}


def test_the_raw_format_is_the_event() -> None:
    assert (
        render("raw", event(id="0199", name="Größe"))
        == b'{"type":"instance.deploy_failed","timestamp":"2026-11-21T12:00:00.000005Z",'
        b'"data":{"id":"0199","name":"Gr\\u00f6\\u00dfe"}}'
    )


def test_the_raw_format_has_a_limit() -> None:
    rest = len(render("raw", event(name="")))
    assert len(render("raw", event(name="x" * (19_999 - rest)))) == 19_999
    with pytest.raises(PayloadTooLarge, match="/v1/events"):
        render("raw", event(name="x" * (20_000 - rest)))


@pytest.mark.parametrize("format", CHATS)
def test_a_chat_gets_a_sentence_and_the_facts(format: str) -> None:
    assert shown(format, event()) == SHOP_LINES


@pytest.mark.parametrize("format", CHATS)
def test_every_type_of_event_has_its_words(format: str) -> None:
    said = set()
    for name, kind in EVENT_TYPES.items():
        sentence, *_ = shown(format, event(name, **kind.sample.serialize()))
        assert "has news" not in sentence, f"webhook_formats.py: say what {name} means"
        assert name.partition(".")[0].replace("_", " ").capitalize() in sentence
        said.add(sentence)
    assert len(said) == len(EVENT_TYPES)


@pytest.mark.parametrize("format", CHATS)
def test_a_type_of_event_that_is_gone_is_told_by_its_name(format: str) -> None:
    assert shown(format, event("instance.mended", name="shop")) == [
        "Instance shop has news: instance.mended."
    ]


def test_what_has_no_name_is_called_by_its_description_or_else_by_its_id() -> None:
    pinged = event("webhook_endpoint.pinged", description="Tells our chat", disabledReason=None)
    assert shown("slack", pinged) == ["Webhook endpoint Tells our chat was pinged: this is a test."]
    nameless = event("backup.completed", status="completed")
    assert shown("slack", nameless) == [f"Backup {nameless.resource_id} was completed.", "Status: completed"]


@pytest.mark.parametrize("format", CHATS)
@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text_in_its_place(format: str, text: str) -> None:
    """Nothing but what was written is seen, on the line where it belongs."""
    seen = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    lines = shown(format, event(**SHOP | {"name": text, "statusMessage": text}))
    assert lines == [
        f"Instance {seen} could not be deployed.",
        *SHOP_LINES[1:-1],
        f"Reason: {seen}",
    ]


@pytest.mark.parametrize("format", CHATS)
@pytest.mark.parametrize("character", ["x", "&", "*", "\\", "🏭", '"'])
def test_however_long_the_text_every_chat_takes_it(format: str, character: str) -> None:
    long = event(**SHOP | {"name": character * 100, "statusMessage": character * 100_000})
    lines = shown(format, long)
    assert lines[:-1] == [f"Instance {character * 100} could not be deployed.", *SHOP_LINES[1:-1]]
    assert re.fullmatch(rf"Reason: {re.escape(character)}{{100,}}", lines[-1])
    message = parsed(format, long)
    if format == "slack":
        assert len(message["blocks"][0]["text"]["text"]) <= 3000
    if format == "discord":
        assert len(message["content"]) <= 2000
        assert len(message["embeds"][0]["description"]) <= 4096
    assert len(render(format, long)) < 20_000
