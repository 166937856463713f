"""Promotion by two accounts: one requests it, another one approves or rejects it."""

from typing import Literal

import dagster as dg
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.jobs.promote_model import GateConfig, gate_findings, move, reasons
from image_assets.models.promotion_gate import GateFinding, to_report
from image_assets.models.promotion_requests import (
    APPROVED,
    REJECTED,
    REQUESTED,
    PromotionRequest,
    RequestStep,
    record_step,
    waiting_request,
)
from image_assets.models.stage_history import Promotion, read_history
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.mlflow.model_registry import SERVING_STAGE, ModelRegistry, ModelVersion


class RequestConfig(GateConfig):
    """The version and stage to request, and why."""

    version: int = Field(gt=0, description="The registered model version to promote.")
    stage: Literal["Production", "Staging"] = Field(default=SERVING_STAGE, description="Production or Staging.")
    person: str | None = Field(default=None, description="Who requests it; recorded in stage_history.")
    reason: str = Field(min_length=1, description="Why; recorded in stage_history.")


class ReviewConfig(GateConfig):
    """The decision on a request, and why."""

    version: int = Field(gt=0, description="The version whose promotion was requested.")
    decision: Literal["approve", "reject"] = Field(description="approve moves the version, reject leaves it.")
    person: str | None = Field(default=None, description="Who decides; recorded in stage_history.")
    reason: str = Field(min_length=1, description="Why; recorded in stage_history.")


def reviewable(version: ModelVersion, registry: ModelRegistry, delta_tables: DeltaTables) -> PromotionRequest:
    """The request for a version, which this account may decide."""
    versions, history = registry.versions(), read_history(registry.name, delta_tables)
    request = waiting_request(version, history)
    if request is None:
        waiting = [f"version {one.version}" for one in versions if waiting_request(one, history)]
        raise dg.Failure(
            f"No request for version {version.version} is waiting. Waiting: {', '.join(waiting) or 'none'}. "
            "Launch request_promotion first.",
            allow_retries=False,
        )
    if request.account == registry.account:
        raise dg.Failure(
            f"Account {request.account} requested this promotion, so another account must decide. Launch "
            "review_promotion as another user of MLflow's server (MLFLOW_TRACKING_USERNAME) or, without a server, of "
            "the operating system.",
            allow_retries=False,
        )
    return request


def require_passed(
    version: ModelVersion,
    config: GateConfig,
    delta_tables: DeltaTables,
    registry: ModelRegistry,
    device: InferenceDevice,
    *,
    otherwise: str,
) -> tuple[list[GateFinding], dict[str, dg.MetadataValue]]:
    """The findings of the gate's checks, and the report on them; a dg.Failure says what failed and `otherwise`."""
    findings = gate_findings(version, config, delta_tables, registry, device)
    report: dict[str, dg.MetadataValue] = {"findings": dg.MetadataValue.md(to_report(findings))}
    if failed := [finding for finding in findings if not finding.passed]:
        raise dg.Failure(
            f"Version {version.version} {otherwise}. {reasons(failed)}.", metadata=report, allow_retries=False
        )
    return findings, report


@dg.op(pool="model_registry")
def request(
    context: dg.OpExecutionContext,
    config: RequestConfig,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Checks the version and records the request; it replaces an earlier one for the version."""
    version = model_registry.version(config.version)
    findings, report = require_passed(
        version, config, delta_tables, model_registry, inference_device, otherwise="was not requested"
    )
    account = model_registry.account
    step = RequestStep(
        REQUESTED, config.stage, "request_promotion", account, config.person, config.reason, findings=findings
    )
    record_step(step, version, model_registry, delta_tables)
    context.add_output_metadata({"model_version": version.version, "stage": config.stage, "account": account, **report})


@dg.op(pool="model_registry")
def review(
    context: dg.OpExecutionContext,
    config: ReviewConfig,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Approves a request, after the checks have passed again, or rejects it, and records the decision."""
    version = model_registry.version(config.version)
    requested = reviewable(version, model_registry, delta_tables)
    by = {"source": "review_promotion", "person": config.person, "reason": config.reason}
    by |= {"account": model_registry.account, "promotion_id": requested.promotion_id}
    findings = None
    if config.decision == "approve":
        waits = f"stays in stage {version.stage}, and the request waits"
        findings, report = require_passed(
            version, config, delta_tables, model_registry, inference_device, otherwise=waits
        )
        move(config.version, Promotion(requested.stage, findings=findings, **by), model_registry, delta_tables)
        context.add_output_metadata(report)
    outcome = APPROVED if config.decision == "approve" else REJECTED
    record_step(RequestStep(outcome, requested.stage, findings=findings, **by), version, model_registry, delta_tables)
    context.log.info(f"Version {version.version} to {requested.stage}, requested by {requested.by}: {outcome}.")


@dg.job(
    description=with_example(
        "request_promotion", "Request that a model version is promoted, which another account approves or rejects."
    )
)
def request_promotion() -> None:
    """Records one request."""
    request()


@dg.job(description=with_example("review_promotion", "Approve or reject a request to promote a model version."))
def review_promotion() -> None:
    """Decides one request."""
    review()
