"""The classifier, trained in PyTorch."""

import dagster as dg

from image_assets.models import torch_training
from image_assets.models.training import TrainingConfig, TrainingResources, train_and_register
from resources.backbone import Backbone
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry
from resources.processes.training_processes import TrainingProcesses


@dg.asset(
    deps=["training_cache", "validation_cache"],
    kinds={"pytorch", "horovod", "petastorm", "mlflow"},
    pool="training",
)
def torch_model(
    context: dg.AssetExecutionContext,
    config: TrainingConfig,
    delta_tables: DeltaTables,
    petastorm_caches: PetastormCaches,
    training_processes: TrainingProcesses,
    backbone: Backbone,
    mlflow_tracking: MlflowTracking,
    model_registry: ModelRegistry,
) -> dg.MaterializeResult:
    """The image classifier trained in PyTorch by Horovod processes: a version of the registered model."""
    resources = TrainingResources(
        delta_tables, petastorm_caches, training_processes, backbone, mlflow_tracking, model_registry
    )
    return train_and_register("torch", torch_training.train, config, resources, dagster_run_id=context.run_id)
