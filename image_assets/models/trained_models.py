"""The classifier, trained in each framework: one asset for each row of `frameworks.py`."""

import dagster as dg

from image_assets.models.frameworks import FRAMEWORKS, Framework
from image_assets.models.training import TrainingResources, train_and_register
from image_assets.models.training_config import TrainingConfig
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry
from resources.training import BackboneWeights, TrainingProcesses


def model_asset(framework: Framework) -> dg.AssetsDefinition:
    """The asset that trains in a framework."""

    @dg.asset(
        name=framework.asset,
        description=f"The image classifier trained in {framework.title}, by default with Horovod: a version of the "
        "registered model.",
        deps=["training_cache", "validation_cache", "image_embeddings"],
        kinds={framework.kind, "horovod", "petastorm", "mlflow"},
        pool="training",
    )
    def trained_model(
        context: dg.AssetExecutionContext,
        config: TrainingConfig,
        delta_tables: DeltaTables,
        petastorm_caches: PetastormCaches,
        training_processes: TrainingProcesses,
        backbone: BackboneWeights,
        mlflow_tracking: MlflowTracking,
        model_registry: ModelRegistry,
    ) -> dg.MaterializeResult:
        resources = TrainingResources(
            delta_tables, petastorm_caches, training_processes, backbone, mlflow_tracking, model_registry
        )
        return train_and_register(framework, config, resources, dagster_run_id=context.run.run_id)

    return trained_model


MODEL_ASSETS = [model_asset(framework) for framework in FRAMEWORKS.values()]
