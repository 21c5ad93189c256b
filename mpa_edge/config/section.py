"""What all documents have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and values are not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
