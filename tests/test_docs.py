"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

import pytest

from deployerp.domain.operations.lifecycles import Lifecycle
from deployerp.domain.tables import lifecycles

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATOR = runpy.run_path(str(DOCS / "generate.py"))
PAGES = sorted(DOCS.glob("*.md"))
EVERY_PAGE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    DOCS.rglob("*.md")
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    page = path.read_text()
    assert GENERATOR["fill"](page) == page, "run `make docs` and commit what it writes"


def test_every_part_is_in_a_page() -> None:
    used = [part for path in PAGES for part in GENERATOR["parts_of"](path.read_text())]
    assert sorted(used) == sorted(GENERATOR["PARTS"])


def test_every_error_code_of_the_package_is_listed() -> None:
    declared = {
        code
        for path in (ROOT / "deployerp").rglob("*.py")
        for code in re.findall(r'^    code(?:: ClassVar\[str\])? = "(\w+)"$', path.read_text(), re.MULTILINE)
    }
    assert {error.code for error in GENERATOR["error_classes"]()} == declared


@pytest.mark.parametrize("lifecycle", lifecycles().values(), ids=lifecycles())
def test_every_state_that_an_action_touches_is_drawn(lifecycle: Lifecycle) -> None:
    drawn = set(re.findall(r"\b[a-z]+\b", GENERATOR["diagram"](lifecycle)))
    for action in lifecycle.actions.values():
        assert {action.name, *action.from_states, action.transitional, action.end} <= drawn


@pytest.mark.parametrize("path", EVERY_PAGE, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.fault("16")
def test_pictures_are_small_and_shown() -> None:
    pictures = sorted((DOCS / "images").iterdir())
    pages = "".join(path.read_text() for path in EVERY_PAGE)
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 150_000, f"{picture.name} is too large"
        assert f"images/{picture.name})" in pages, f"no page shows {picture.name}"


def test_every_decision_is_in_the_index() -> None:
    decisions = DOCS / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (decisions / "README.md").read_text())
    assert listed == sorted(path.name for path in decisions.glob("[0-9]*.md"))


def test_the_changelog_has_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert re.search(rf"^## \[{re.escape(version[1])}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
