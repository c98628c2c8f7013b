"""The database's schema, step by step."""

from alembic.config import Config


def configuration(database_url: str) -> Config:
    """Alembic's configuration for a database, without a file."""
    config = Config()
    config.set_main_option("script_location", "deployerp:migrations")
    config.attributes["database_url"] = database_url
    return config
