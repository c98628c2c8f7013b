"""Which headers users may add to what is sent to their receivers."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from deployerp.domain.webhooks.headers import Headers

HEADERS = TypeAdapter(Headers)
TOKEN = string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-"
SECRET = "hunter2"


def refusals(headers: object) -> list[tuple[tuple[object, ...], str]]:
    """Where, and by which rule, each in words without the value; none for headers that are fine."""
    try:
        HEADERS.validate_python(headers)
    except ValidationError as error:
        found: list[tuple[tuple[object, ...], str]] = [(each["loc"], each["msg"]) for each in error.errors()]
        assert SECRET not in str(found)
        return found
    return []


@pytest.mark.parametrize(
    "name", ["Authorization", "X-Api-Key", "x", TOKEN[:64], "x" * 64, "Content", "Webhooks-Id", "X-Host"]
)
def test_a_header_of_one_s_own(name: str) -> None:
    assert refusals({name: SECRET}) == []


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\x00", "é", "a/b", "x" * 65, '"a"', "a\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    assert [rule for _, rule in refusals({name: SECRET})] == [
        "Value error, must be the name of a header: at most 64 letters, digits and !#$%&'*+.^_`|~-"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "USER-AGENT", "accept-encoding", "Content-Type", "content-length", "Content-Encoding"),
        *("webhook-id", "Webhook-Signature", "webhook-timestamp", "webhook-whatever"),
        *("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Via", "Expect"),
        *("Proxy-Authorization", "proxy-connection", "Cookie", "cookie2"),
    ],
)
def test_what_is_not_for_users_to_set_is_refused_with_its_reason(name: str) -> None:
    ((where, rule),) = refusals({name: SECRET})
    assert name in where
    assert rule.startswith("Value error, cannot be set: ")


@pytest.mark.parametrize("value", ["x", "a  b", "a" * 1000, "".join(map(chr, range(33, 127)))])
def test_a_value_of_printable_ascii(value: str) -> None:
    assert refusals({"X-A": value}) == []


@pytest.mark.parametrize(
    "value",
    [
        *(SECRET + end for end in ("\r\nX-B: c", "\n", "\r", "\x00", "\t", "\x7f", "é", " ", "\ud800")),
        *(f" {SECRET}", "", SECRET * 143, None, 1, [SECRET], {SECRET: SECRET}),
    ],
)
def test_any_other_value_is_refused_and_not_repeated(value: object) -> None:
    ((where, _),) = refusals({"X-A": value})
    assert where == ("X-A",)


def test_names_are_the_same_in_any_case() -> None:
    assert refusals({"X-A": "1", "x-a": SECRET}) == [
        ((), "Value error, must name each header once: upper and lower case are the same")
    ]


def test_there_are_at_most_twenty() -> None:
    assert refusals({f"X-{n}": "1" for n in range(20)}) == []
    assert len(refusals({f"X-{n}": "1" for n in range(21)})) == 1


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    name=st.text(TOKEN + " :\r\n\0é", min_size=1, max_size=4),
    value=st.text(string.printable + "\0\x7fé\u2028", min_size=1, max_size=6),
)
def test_a_header_keeps_to_its_line_or_is_refused(name: str, value: str) -> None:
    in_line = set(name) <= set(TOKEN) and value.isascii() and value.isprintable() and value == value.strip()
    # No other name of so few letters is anything but the user's own.
    assert (refusals({name: value}) == []) is (in_line and name.lower() not in {"te", "via", "host"})
