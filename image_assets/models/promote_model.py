"""A person's decision: this version serves from now on."""

import dagster as dg
from pydantic import Field

from resources.model_registry import SERVING_STAGE, ModelRegistry


class PromotionConfig(dg.Config):
    """Which version goes where."""

    version: int = Field(gt=0, description="The registered model version to move.")
    stage: str = Field(default=SERVING_STAGE, description="Production, Staging, Archived or None.")


@dg.op(pool="model_registry")
def promote(context: dg.OpExecutionContext, config: PromotionConfig, model_registry: ModelRegistry) -> None:
    """Move the version to the stage, with the stage's alias; `stage_changes` then asks for its predictions."""
    moved = model_registry.promote(config.version, config.stage)
    context.add_output_metadata({"model_version": moved.version, "stage": moved.stage, "model_uri": moved.uri})


@dg.job
def promote_model() -> None:
    """Move a model version to a stage."""
    promote()
