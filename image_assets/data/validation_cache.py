"""The validation split as training processes read it, written like the training cache."""

import dagster as dg

from image_assets.data.training_cache import CACHE_DEPS, CACHE_KINDS, materialize_cache
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.training import TrainingProcesses


@dg.asset(deps=CACHE_DEPS, kinds=CACHE_KINDS, pool="validation_cache")
def validation_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
) -> dg.MaterializeResult:
    """The validation images, which decide the best epoch, in the format of the training cache."""
    return materialize_cache(delta_tables, petastorm_caches, "validation", training_processes.processes)
