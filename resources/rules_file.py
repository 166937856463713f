"""The file in which a person writes what they want to be told."""

from pathlib import Path

import dagster as dg
from pydantic import Field


class RulesFile(dg.ConfigurableResource):
    """The file of the alert rules."""

    path: str
    required: bool = Field(default=False, description="Whether the file must be there: somebody named it.")

    def text(self) -> str:
        """What the file says; nothing where nobody wrote it."""
        if not self.required and not Path(self.path).exists():
            return ""
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the alert rules in {self.path} cannot be read ({error}): write them there, or let "
                "IMAGE_ASSETS_ALERT_RULES name another file"
            ) from error
