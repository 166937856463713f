"""What compressing a table's files with zstd would save, told by a sample of their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from resources.parquet_footers import open_parquet

SAMPLED_FILES = 4
SAMPLE_BYTES = 8 * 1024 * 1024  # of each file
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Saving:
    """The sampled rows of one column: bytes as they are written now, and as zstd would write them."""

    column: str
    codec: str
    bytes_now: int
    bytes_zstd: int

    @property
    def share(self) -> float:
        """How much of the column zstd would save, 0 to 1; nothing where it would only add."""
        return max(0.0, 1 - self.bytes_zstd / self.bytes_now) if self.bytes_now else 0.0


def savings(files: Sequence[str]) -> list[Saving]:
    """What zstd would save of each column, told by the first rows of a few of the files, spread over all of them."""
    step = max(1, len(files) // SAMPLED_FILES)
    totals: dict[str, Saving] = {}
    for found in (saving for file in files[::step][:SAMPLED_FILES] for saving in savings_of_file(file)):
        before = totals.get(found.column, Saving(found.column, found.codec, 0, 0))
        codec = found.codec if before.codec == found.codec else "mixed"
        totals[found.column] = Saving(
            found.column, codec, before.bytes_now + found.bytes_now, before.bytes_zstd + found.bytes_zstd
        )
    return list(totals.values())


def savings_of_file(file: str) -> Iterator[Saving]:
    """What zstd would save of each column, told by the file's first rows."""
    with open_parquet(file) as parquet:
        if not parquet.num_row_groups:
            return
        group = parquet.metadata.row_group(0)
        codecs = {
            chunk.path_in_schema.split(".")[0]: chunk.compression
            for chunk in map(group.column, range(group.num_columns))
        }
        rows = max(1, SAMPLE_BYTES * group.num_rows // max(1, group.total_byte_size))
        sample = pa.Table.from_batches([next(parquet.iter_batches(rows, row_groups=[0]))])
    for column in sample.column_names:
        values = sample.select([column])
        now = written_bytes(values, "none" if codecs[column] == "UNCOMPRESSED" else codecs[column], None)
        yield Saving(column, codecs[column], now, written_bytes(values, "zstd", ZSTD_LEVEL))


def written_bytes(values: pa.Table, codec: str, level: int | None) -> int:
    """How many bytes one column takes in a Parquet file."""
    file = BytesIO()
    binary = pa.types.is_binary(values.schema.field(0).type)
    pq.write_table(values, file, compression=codec, compression_level=level, use_dictionary=not binary)
    group = pq.ParquetFile(file).metadata.row_group(0)
    return sum(group.column(place).total_compressed_size for place in range(group.num_columns))
