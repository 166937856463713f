"""A version, out of the platform: a folder that needs nothing of it."""

from functools import partial

import dagster as dg
from pydantic import Field

from image_assets.launchpad_examples import with_example
from image_assets.models.model_package import EDGE_FILE, write_package
from resources.model_packages import ModelPackages
from resources.model_registry import ModelRegistry


class PackageConfig(dg.Config):
    """Which version is packaged, and where."""

    version: int = Field(gt=0, description="The registered model version to package.")
    folder: str | None = Field(
        default=None, description="A folder that is not there yet; `packages/<model>_v<version>` in the home if none."
    )


@dg.op
def package(
    context: dg.OpExecutionContext, config: PackageConfig, model_registry: ModelRegistry, model_packages: ModelPackages
) -> None:
    """Write a version with what it needs to answer without the platform; the op's metadata says where."""
    version = model_registry.version(config.version)
    fill = partial(write_package, version, model_registry)
    folder = model_packages.write(f"{model_registry.name}_v{version.version}", fill, config.folder)
    context.add_output_metadata(
        {
            "model_uri": version.uri,
            "folder": dg.MetadataValue.path(folder),
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "edge_bytes": (folder / EDGE_FILE).stat().st_size,
            "run": dg.MetadataValue.md((folder / "README.md").read_text()),
        }
    )


@dg.job(
    description=with_example(
        "package_model",
        "Write a model version as a folder that answers by HTTP and on devices, without the platform.",
    )
)
def package_model() -> None:
    """Package one version."""
    package()
