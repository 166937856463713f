"""What a person wants to be told of: rules, as they stand in a YAML file."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from resources.mlflow.model_registry import SERVING_STAGE

SCHEMA_FILE = "docs/alert_rules.schema.json"
NO_ADDRESS = "an address, which belongs into an environment variable"

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .-]*$", max_length=100)]
ReceiverName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]


class AlertRule(BaseModel):
    """Which predictions somebody is told of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Tells the rule apart: with another name it is another rule, and alerts anew.")
    labels: list[str] | None = Field(default=None, min_length=1, description="Predicted labels; any where left out.")
    minimum_probability: Probability | None = Field(default=None, description="The least probability that is told of.")
    maximum_probability: Probability | None = Field(default=None, description="The greatest that is told of.")
    stage: Literal["Production", "Staging", "Archived", "None"] = Field(
        default=SERVING_STAGE, description="The stage of the model version that predicts."
    )
    first_time_only: bool = Field(
        default=False, description="One alert for each file, ever; else one for each content and model version."
    )
    send_to: list[ReceiverName] = Field(
        min_length=1, description="Receivers; the address of `oncall` is in IMAGE_ASSETS_ALERT_ONCALL."
    )

    @model_validator(mode="after")
    def _can_match(self) -> Self:
        least, most = self.minimum_probability, self.maximum_probability
        if least is not None and most is not None and least > most:
            raise ValueError(f"minimum_probability {least} is above maximum_probability {most}: nothing would match")
        if repeated := _repeated(self.send_to):
            raise ValueError(f"send_to names {repeated} twice")
        if "rules" in self.send_to:
            raise ValueError("send_to names rules, whose address would be in the variable of this file: choose another")
        return self


class ReceiverOptions(BaseModel):
    """What is known of a receiver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deduplicates: bool = Field(
        default=False, description="A webhook that takes a message once, told by its Idempotency-Key."
    )


class AlertRules(BaseModel):
    """The rules, and what is known of the receivers that they name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[AlertRule] = []
    receivers: dict[ReceiverName, ReceiverOptions] = Field(
        default={}, description="Only those of which there is something to say."
    )

    @property
    def receiver_names(self) -> list[str]:
        """The receivers that the rules send to."""
        return sorted({name for rule in self.rules for name in rule.send_to})

    def deduplicates(self, receiver: str) -> bool:
        """Whether the receiver takes a message once, however often it comes."""
        return self.receivers.get(receiver, ReceiverOptions()).deduplicates

    @model_validator(mode="after")
    def _names_are_one(self) -> Self:
        if repeated := _repeated([rule.name for rule in self.rules]):
            raise ValueError(f"two rules are named {repeated}: give each a name of its own")
        if unknown := sorted(set(self.receivers) - set(self.receiver_names)):
            raise ValueError(f"receivers: no rule sends to {', '.join(unknown)}")
        return self


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def to_rules(text: str, source: str) -> AlertRules:
    """The rules that a YAML text says; a ValueError names the rule, the field and what was expected."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"the alert rules in {source} are no YAML: {problem}{where}") from None
    try:
        return AlertRules.model_validate({} if content is None else content)
    except ValidationError as error:
        problems = "; ".join(_problems(error, content))
    # What somebody wrote where it does not belong may be a password: it is not repeated, also not by a cause.
    raise ValueError(f"the alert rules in {source} are wrong: {problems}")


def _problems(error: ValidationError, content: Any) -> Iterator[str]:  # whatever YAML can say
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
            return f"is unknown: expected some of {', '.join(model.model_fields)}"
        case "string_type":
            return f"expected a text, found {_without_address(repr(detail['input']))}: put it in quotes"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
    return f"{detail['msg']}, found {_without_address(repr(detail['input']))}"


def _without_address(content: str) -> str:
    return NO_ADDRESS if "://" in content else content


def schema() -> str:
    """The JSON schema of the rules, by which editors complete and check them."""
    return json.dumps(AlertRules.model_json_schema(), indent=2) + "\n"
