"""Alert rules, read from a YAML file: which predictions are sent to whom."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from resources.mlflow.model_registry import SERVING_STAGE

SCHEMA_FILE = "docs/alert_rules.schema.json"
NO_ADDRESS = "an address (addresses belong in environment variables)"

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .-]*$", max_length=100)]
ReceiverName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]


class AlertRule(BaseModel):
    """Which predictions are sent, and to whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Identifies the rule. A renamed rule is a new rule, so it alerts again.")
    labels: list[str] | None = Field(
        default=None, min_length=1, description="Predicted labels that match; any label by default."
    )
    minimum_probability: Probability | None = Field(default=None, description="The lowest probability that matches.")
    maximum_probability: Probability | None = Field(default=None, description="The highest probability that matches.")
    stage: Literal["Production", "Staging", "Archived", "None"] = Field(
        default=SERVING_STAGE, description="The stage of the model version whose predictions match."
    )
    first_time_only: bool = Field(
        default=False, description="Whether each file alerts only once, instead of once per content and model version."
    )
    send_to: list[ReceiverName] = Field(
        min_length=1, description="Receivers. IMAGE_ASSETS_ALERT_ONCALL holds the address of `oncall`."
    )

    @model_validator(mode="after")
    def _can_match(self) -> Self:
        least, most = self.minimum_probability, self.maximum_probability
        if least is not None and most is not None and least > most:
            raise ValueError(f"minimum_probability {least} is above maximum_probability {most}, so nothing can match")
        if repeated := _repeated(self.send_to):
            raise ValueError(f"send_to names {repeated} twice")
        if "rules" in self.send_to:
            raise ValueError("send_to names `rules`, but IMAGE_ASSETS_ALERT_RULES is the path of this file: rename it")
        return self


class ReceiverOptions(BaseModel):
    """Options of a receiver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deduplicates: bool = Field(
        default=False,
        description="Whether the receiver is a webhook that ignores repeated messages by their Idempotency-Key.",
    )


class AlertRules(BaseModel):
    """The alert rules, and options of the receivers they name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[AlertRule] = []
    receivers: dict[ReceiverName, ReceiverOptions] = Field(
        default={},
        description="Options of receivers that need them. Their addresses are in IMAGE_ASSETS_ALERT_<NAME>.",
    )

    @property
    def receiver_names(self) -> list[str]:
        """The names of all receivers, sorted."""
        return sorted({name for rule in self.rules for name in rule.send_to})

    def deduplicates(self, receiver: str) -> bool:
        """Whether the receiver ignores repeated messages."""
        return self.receivers.get(receiver, ReceiverOptions()).deduplicates

    @model_validator(mode="after")
    def _names_are_one(self) -> Self:
        if repeated := _repeated([rule.name for rule in self.rules]):
            raise ValueError(f"two rules are named {repeated}: rule names must be unique")
        if unknown := sorted(set(self.receivers) - set(self.receiver_names)):
            raise ValueError(f"receivers: no rule sends to {', '.join(unknown)}")
        return self


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def to_rules(text: str, source: str) -> AlertRules:
    """Parses alert rules from YAML.

    Raises:
        ValueError: The rules are invalid; names the rule, the field and what was expected.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"the alert rules in {source} are not valid YAML: {problem}{where}") from None
    try:
        return AlertRules.model_validate({} if content is None else content)
    except ValidationError as error:
        problems = "; ".join(_problems(error, content))
    # Raised outside the except block, because the cause would show values that may be passwords.
    raise ValueError(f"the alert rules in {source} are invalid: {problems}")


def _problems(error: ValidationError, content: Any) -> Iterator[str]:  # any parsed YAML
    for detail in error.errors(include_url=False):
        where = list(detail["loc"])
        model = (
            {"rules": AlertRule, "receivers": ReceiverOptions}.get(str(where[0]), AlertRules) if where else AlertRules
        )
        if model is AlertRule and len(where) > 1:
            rule = content["rules"][where[1]]
            where[:2] = [f"rule {(rule.get('name') if isinstance(rule, dict) else None) or int(where[1]) + 1}"]
        yield ": ".join([*(_without_address(str(part)) for part in where), _problem(detail, model)])


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    match detail["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"is not a field: expected one of {', '.join(model.model_fields)}"
        case "string_type":
            return f"expected a string, found {_without_address(repr(detail['input']))}: put it in quotes"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
    return f"{detail['msg']}, found {_without_address(repr(detail['input']))}"


def _without_address(content: str) -> str:
    return NO_ADDRESS if "://" in content else content


def schema() -> str:
    """The JSON schema of the rules, which editors use for completion and validation."""
    return json.dumps(AlertRules.model_json_schema(), indent=2) + "\n"
