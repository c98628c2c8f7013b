"""Writes openapi.json, the contract that SDKs are generated from.

python docs/openapi.py           (`make openapi`)
"""

import json
from pathlib import Path

from deployerp.api.app import create_app
from deployerp.core.settings import Settings

DOCUMENT = Path(__file__).parent.parent / "openapi.json"


def document() -> str:
    """The contract as the committed file has it; no setting changes it."""
    app = create_app(Settings.model_construct())
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
