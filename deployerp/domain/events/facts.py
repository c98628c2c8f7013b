"""What events tell of their resources."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from deployerp.core.fields import Id


class Facts(BaseModel):
    """What an event tells of its resource, spelled as in the API; secrets have no place here."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)

    id: Id

    def serialize(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", by_alias=True)


def sample_id(number: int) -> UUID:
    """An id for examples."""
    return UUID(f"01932a7c-8f4e-7c3a-9b2d-{number:012x}")
