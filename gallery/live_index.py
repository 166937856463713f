"""The index as pages see it: read anew behind them when a table has another Delta version."""

import threading
import time
from collections.abc import Mapping, Sequence

from gallery.index import Index, newest_versions, read_index, with_corrections
from image_assets.schemas import LABEL_CORRECTIONS
from resources.model_registry import ModelRegistry, ModelVersion, RegistryUnavailable
from resources.thin_tables import ThinTables

LOOK_SECONDS = 3  # between two looks at the tables' logs


class LiveIndex:
    """Hands out an index at once, and looks behind it whether the tables or the registry have gone on."""

    def __init__(self, thin_tables: ThinTables, registry: ModelRegistry) -> None:
        self._thin_tables = thin_tables
        self._registry = registry
        self._reading = threading.Lock()
        self._index: Index | None = None
        self._looked_at = 0.0

    def now(self) -> Index:
        """The index; the very first time it has to be read."""
        if self._index is None:
            self.refresh()
        elif time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            threading.Thread(target=self.refresh, name="index", daemon=True).start()
        assert self._index is not None
        return self._index

    def refresh(self) -> None:
        """Read the tables and the registry again where they have gone on; one thread does, the others wait."""
        with self._reading:
            models, newest = self._models(), newest_versions(self._thin_tables)
            index = self._index
            if index is None or [*index.models.values()] != models or others(index.versions) != others(newest):
                self._index = read_index(self._thin_tables, models)
            elif index.versions != newest:
                self._index = with_corrections(index, self._thin_tables)
            self._looked_at = time.monotonic()

    def refresh_corrections(self) -> None:
        """Read what a person just corrected: it takes milliseconds."""
        with self._reading:
            if self._index:
                self._index = with_corrections(self._index, self._thin_tables)

    def _models(self) -> Sequence[ModelVersion]:
        try:
            return self._registry.versions()
        except RegistryUnavailable:  # pages do without names of probabilities until it answers
            return [*self._index.models.values()] if self._index else []


def others(versions: Mapping[str, int | None]) -> dict[str, int | None]:
    """The Delta versions of all tables but the corrections."""
    return {name: version for name, version in versions.items() if name != LABEL_CORRECTIONS.name}
