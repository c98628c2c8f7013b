"""Who may do what, cell by cell."""

import pytest

from deployerp.domain.permissions import LEVEL_PERMISSIONS, LEVELS, PERMISSIONS, ROLE_PERMISSIONS, ROLES

# What each may do: r(ead), m(anage), d(elete).
GRID = """
                    | keys: read  write  delete  admin | roles: owner  admin  developer  billing  viewer
servers             |       r     rm     rmd     rmd   |        rmd    rmd    rm         -        r
instances           |       r     rm     rmd     rmd   |        rmd    rmd    rmd        -        r
providers           |       r     rm     rmd     rmd   |        rmd    rmd    r          -        r
operations          |       r     rm     rm      rm    |        rm     rm     rm         -        r
events              |       r     r      r       r     |        r      r      r          -        r
webhook-endpoints   |       r     rm     rmd     rmd   |        rmd    rmd    rmd        -        r
webhook-deliveries  |       r     rm     rm      rm    |        rm     rm     rm         -        r
api-keys            |       -     -      -       rmd   |        rmd    rmd    -          -        -
users               |       -     -      -       rmd   |        rmd    rmd    -          r        -
audit-log           |       -     -      -       r     |        r      r      -          -        -
billing             |       -     -      -       rm    |        rm     r      -          rm       -
"""
HEAD, *ROWS = [line.replace("|", " ").split() for line in GRID.strip().splitlines()]
VERBS = {"read": "r", "manage": "m", "delete": "d"}
HOLDERS = [("key", level, LEVEL_PERMISSIONS[level]) for level in LEVELS] + [
    ("role", role, ROLE_PERMISSIONS[role]) for role in ROLES
]
CELLS = [
    (*holder, f"{verb}:{resource}", letter in cell)
    for resource, *cells in ROWS
    for holder, cell in zip(HOLDERS, cells, strict=True)
    for verb, letter in VERBS.items()
]


def test_the_grid_is_about_all_there_is() -> None:
    assert [name for name in HEAD if not name.endswith(":")] == [*LEVELS, *ROLES]
    assert {permission for *_, permission, granted in CELLS if granted} == PERMISSIONS
    assert LEVEL_PERMISSIONS.keys() == set(LEVELS)
    assert ROLE_PERMISSIONS.keys() == set(ROLES)


@pytest.mark.parametrize(
    ("kind", "name", "permissions", "permission", "granted"),
    CELLS,
    ids=[f"{kind} {name} {permission}" for kind, name, _, permission, _ in CELLS],
)
def test_cell(kind: str, name: str, permissions: frozenset[str], permission: str, granted: bool) -> None:
    assert (permission in permissions) is granted


@pytest.mark.fault("22")
def test_an_admin_key_may_do_everything() -> None:
    assert LEVEL_PERMISSIONS["admin"] == PERMISSIONS
