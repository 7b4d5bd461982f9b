"""The common base of the sections of the settings: strict, frozen, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayal.errors import nearest
from rayal.settings.parameters import UnknownKeys

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(gt=0)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


def key(default: Any, description: str, **limits: Any) -> Any:
    """Return a field with a default, a description and bounds."""
    return Field(default=default, description=description, **limits)


class Section(BaseModel):
    """A mapping of the settings; unknown keys are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        known = cls.model_fields
        if cls.model_config.get("extra") == "forbid" and isinstance(given, Mapping):
            unknown = [str(key) for key in given if key not in known]
            if unknown:
                raise UnknownKeys([(key, nearest(key, known)) for key in unknown])
        return given


class Named(Section):
    """A section that may be written as a name alone, and takes further keys where it is open."""

    name: Text

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def params(self) -> dict[str, Any]:
        """The further keys: hyperparameters, checked by ``build``."""
        return dict(self.model_extra or {})
