"""Rules are read as they are documented, and a wrong one is refused by name, field and what was expected."""

import re
from pathlib import Path

import pytest

from image_assets.predictions.alert_rules import SCHEMA_FILE, AlertRule, schema, to_rules
from tests.support.receivers import SECRET

ROOT = Path(__file__).parents[3]
DOCUMENT = "docs/alerts.md"
DOCUMENTED = re.findall(r"```yaml\n(# yaml-language-server.*?)```", (ROOT / DOCUMENT).read_text(), re.DOTALL)


def rule(fields: str) -> str:
    """A file with one rule."""
    return f"rules: [{{name: sure roses, send_to: [oncall], {fields}}}]"


def test_a_rule_has_defaults() -> None:
    assert to_rules(rule(""), "rules.yaml").rules == [
        AlertRule(
            name="sure roses",
            labels=None,
            minimum_probability=None,
            maximum_probability=None,
            stage="Production",
            first_time_only=False,
            send_to=["oncall"],
        )
    ]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "rules: []"])
def test_no_rule_is_no_fault(text: str) -> None:
    assert to_rules(text, "rules.yaml").rules == []


def test_the_documented_rules_are_rules() -> None:
    assert len(DOCUMENTED) == 1
    assert len(to_rules(DOCUMENTED[0], DOCUMENT).rules) == 2
    assert f"$schema=../{SCHEMA_FILE}\n" in DOCUMENTED[0], "as seen from a home in this folder"


def test_the_schema_is_the_one_of_the_rules() -> None:
    program = "from image_assets.predictions.alert_rules import schema; print(schema(), end='')"
    assert (ROOT / SCHEMA_FILE).read_text() == schema(), f'.venv/bin/python -c "{program}" > {SCHEMA_FILE}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule("minimum_probability: 97"), "rule sure roses: minimum_probability: .* less than or equal to 1, found 97"),
        (rule("maximum_probability: yes"), "rule sure roses: maximum_probability: .* valid number, found True"),
        (rule("minimum_probability: .9, maximum_probability: .5"), "0.9 is above maximum_probability 0.5, so nothing"),
        (rule("label: roses"), "rule sure roses: label: is not a field: expected one of name, labels, minimum_prob"),
        (rule("labels: [no]"), "rule sure roses: labels: 0: expected a string, found False: put it in quotes"),
        (rule("labels: []"), "rule sure roses: labels: .* at least 1 item"),
        (rule("stage: Serving"), "stage: .* 'Production', 'Staging', 'Archived' or 'None', found 'Serving'"),
        (rule("first_time_only: perhaps"), "rule sure roses: first_time_only: .* found 'perhaps'"),
        ("rules: [{name: a, send_to: [b]}, {send_to: [b]}]", "rule 2: name: is missing"),
        (
            "rules: [{name: a, send_to: [b]}, {name: a, send_to: [b]}]",
            "two rules are named a: rule names must be unique",
        ),
        ("rules: [{name: a}]", "rule a: send_to: is missing"),
        ("rules: [{name: a, send_to: oncall}]", "rule a: send_to: .* valid list, found 'oncall'"),
        ("rules: [{name: a, send_to: [b, b]}]", "rule a: send_to names b twice"),
        ("rules: [{name: a, send_to: [rules]}]", "rule a: send_to names `rules`, .* rename it"),
        ("rules: [{name: a, send_to: [b]}]\nreceivers: {c: {}}", "receivers: no rule sends to c"),
        ("receivers: {c: {dedup: true}}", "receivers: c: dedup: is not a field: expected one of deduplicates"),
        ("rule: []", "rule: is not a field: expected one of rules, receivers"),
        ("rules: [5]", "rule 1: .* found 5"),
        ("- a\n", ".* found \\['a'\\]"),
        ("rules:\n- name: a: b", "not valid YAML: mapping values are not allowed here in line 2"),
        ("rules: [\x00]", "not valid YAML: it cannot be parsed"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"the alert rules in /home/rules.yaml are (invalid: .*)?{message}"):
        to_rules(text, "/home/rules.yaml")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="rule a: send_to: is missing; rule b: name|rule b: stage") as refused:
        to_rules("rules: [{name: a}, {name: b, send_to: [c], stage: 5}]", "rules.yaml")
    assert "rule b: stage" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        f"rules: [{{name: a, send_to: ['json://{SECRET}']}}]",
        f"rules: [{{name: a, send_to: 'json://me:{SECRET} {SECRET}@a'}}]",
        f"rules: [{{name: a, send_to: [b], address: 'json://{SECRET}'}}]",
        f"receivers: {{'json://{SECRET}': {{}}}}",
        f"receivers: {{a: 'json://{SECRET}'}}",
        f"receivers: {{a: {{deduplicates: 'json://{SECRET}'}}}}",
        f"'json://{SECRET}'",
        f"[{{'json://{SECRET}': 1",
    ],
)
def test_an_address_that_stands_in_the_file_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="the alert rules in rules.yaml are") as refused:
        to_rules(text, "rules.yaml")
    refusal = refused.value
    assert SECRET not in str(refusal)
    assert refusal.__cause__ is None
    assert refusal.__suppress_context__ or refusal.__context__ is None
