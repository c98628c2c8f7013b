"""The configuration and the database that an Odoo is given."""

from configparser import RawConfigParser

import pytest

from deployerp.drivers.odoo import odoo


def options(environment_type: str) -> dict[str, str]:
    configuration = odoo.Configuration(odoo.CAPACITIES[environment_type], "database", "master")
    parser = RawConfigParser()
    parser.read_string(configuration.render().decode())
    return dict(parser["options"])


@pytest.mark.fault("13")
@pytest.mark.parametrize("environment_type", odoo.CAPACITIES)
def test_installing_apps_has_the_time_that_it_takes(environment_type: str) -> None:
    """Odoo's own limits are 60 s of CPU and 120 s, for requests and jobs alike."""
    given = options(environment_type)
    assert int(given["limit_time_cpu"]) >= 600
    assert int(given["limit_time_real"]) >= int(given["limit_time_cpu"])
    assert int(given["limit_time_real_cron"]) > int(given["limit_time_real"])


@pytest.mark.fault("13")
def test_reports_are_fetched_from_the_container_itself() -> None:
    assert "('report.url', 'http://127.0.0.1:8069')" in odoo.personalise_sql(
        "secret", "https://a.example.com"
    )


@pytest.mark.fault("13")
@pytest.mark.parametrize("environment_type", odoo.CAPACITIES)
def test_shared_memory_is_in_proportion_and_not_the_64_mb_of_an_engine(environment_type: str) -> None:
    capacity = odoo.CAPACITIES[environment_type]
    assert capacity.shared_memory_bytes >= max(256 << 20, capacity.memory_bytes // 4)
