"""The formats in which datasets are exported: ImageFolder, COCO, Hugging Face's Parquet, tasks of Label Studio.

Each format is a class with two methods: `add` writes an image, `finish` what remains to be written afterwards. Memory
holds a line of text for each image, and the bytes of one image, or of one row group of Parquet.
"""

import csv
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, Protocol  # Any: JSON, and fsspec's types, which depend on the arguments
from unicodedata import normalize
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.parquet as pq

from resources.files.file_system import is_url, uncached_file_system

FormatName = Literal["image_folder", "coco", "hugging_face", "label_studio"]
SPLIT_FOLDERS = {"training": "train", "validation": "val", "test": "test"}
SPLIT_FILES = {"training": "train", "validation": "validation", "test": "test", None: "unsplit"}  # of Hugging Face
COLUMNS = ("path", "label", "split", "predicted_label", "probability", "model_version")
MAX_NAME_BYTES = 200  # file systems take 255
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10))}
MARK = "export.json"  # in the folder of an export: what was exported, and whether it is complete
UNFINISHED_MARK = f"{MARK}.part"
STARTED = ".export"  # in the folder of an unfinished export: an empty file for each entry that it has started to write
IMAGES_TABLE = "images.csv"
OWN_NAMES = {MARK, UNFINISHED_MARK, STARTED, IMAGES_TABLE}
SHARD_BYTES = 500 * 1024**2
ROW_GROUP_BYTES, ROW_GROUP_ROWS = 32 * 1024**2, 1000


@dataclass(frozen=True)
class ExportedImage:
    """An image with what the export says of it; `attributes` are the other columns of the label table."""

    number: int
    table_path: str
    path: str  # relative to the landing folder
    image_id: str
    length: int
    width: int
    height: int
    label: str | None
    split: str | None
    predicted_label: str | None
    probability: float | None
    model_version: int | None
    attributes: Mapping[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """What is known of the image besides its label, under the names of the columns; without nulls."""
        own = {
            "split": self.split,
            "predicted_label": self.predicted_label,
            "probability": self.probability,
            "model_version": self.model_version if self.probability is not None else None,
        }
        others = {name: value for name, value in self.attributes.items() if name not in COLUMNS}
        return {**others, **{name: value for name, value in own.items() if value is not None}}


@dataclass(frozen=True)
class Contents:
    """What is exported in all: the labels, the images and bytes of each split, the names of all attributes."""

    labels: Sequence[str]
    images: Mapping[str | None, int]
    bytes: Mapping[str | None, int]
    attribute_names: Sequence[str]
    model_name: str


@dataclass
class ExportFolder:
    """The folder of an export, on disk or at an fsspec URL."""

    url: str
    entries: Counter[str] = field(default_factory=Counter)  # the folders and files directly in it: how many files
    _made: set[str] = field(default_factory=set)

    def open(self, relative_path: str) -> Any:
        """A new file for bytes."""
        entry = relative_path.partition("/")[0]
        if entry not in self.entries:
            self._create(f"{STARTED}/{entry}").close()  # so that the next run knows what is left of a killed one
        self.entries[entry] += 1
        return self._create(relative_path)

    def forget_started(self) -> None:
        """Removes what only an unfinished export needs."""
        system, path = uncached_file_system(f"{self.url}/{STARTED}")
        if system.exists(path):
            system.rm(path, recursive=True)

    def _create(self, relative_path: str) -> Any:
        system, path = uncached_file_system(f"{self.url}/{relative_path}")
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            system.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        return system.open(path, "wb")

    def copy(self, relative_path: str, source: BinaryIO) -> None:
        """A new file with the source's content."""
        with self.open(relative_path) as file:
            shutil.copyfileobj(source, file)

    def write_text(self, relative_path: str, *parts: str) -> None:
        """A new text file."""
        with self.open(relative_path) as file:
            for part in parts:
                file.write(part.encode())

    def write_list(self, relative_path: str, lines: Iterable[str], before: str = "", after: str = "") -> None:
        """A JSON file with a list of values that are JSON already."""
        with self.open(relative_path) as file:
            file.write(f"{before}[".encode())
            for number, line in enumerate(lines):
                file.write(f"{',' if number else ''}\n{line}".encode())
            file.write(f"\n]{after}\n".encode())


def safe_name(path: str) -> str:
    """The name of the file at a path, without what some file system does not accept."""
    name = UNSAFE.sub("_", path.rpartition("/")[2]).rstrip(". ").lstrip(" ")
    name = f"_{name}" if name.startswith(".") or name.partition(".")[0].casefold() in DEVICE_NAMES else name
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix[:16]
    return (stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "image") + suffix


@dataclass
class FileNames:
    """The names of exported files: the original ones where possible, and never the same one twice."""

    used: set[str] = field(default_factory=set)

    def unique(self, folder: str, path: str, image_id: str) -> str:
        """The path of an image's file below a folder; a second file of a name has the image_id's start in it."""
        name = PurePosixPath(safe_name(path))
        with_id = f"{name.stem}-{image_id[:8]}"
        others = (f"{with_id}-{number}{name.suffix}" for number in count(2))
        paths = (f"{folder}{of}" for of in chain([name.name, f"{with_id}{name.suffix}"], others))
        path, key = next((path, key) for path in paths if (key := in_any_case(path)) not in self.used)
        self.used.add(key)
        return path


def in_any_case(path: str) -> str:
    """What two paths share that are the same file on systems that ignore capital letters and Unicode forms."""
    return normalize("NFC", path).casefold()


def split_folder(image: ExportedImage) -> str:
    """The folder of the image's split; images without a split are in no folder."""
    return f"{SPLIT_FOLDERS[image.split]}/" if image.split else ""


class DatasetFormat(Protocol):
    """A dataset that is being written."""

    def add(self, image: ExportedImage, source: BinaryIO) -> None:
        """Writes an image."""

    def finish(self) -> None:
        """Writes what remains."""


class ImageFolderFormat:
    """train/, val/ and test/ with a folder for each label, and images.csv with everything else."""

    def __init__(self, folder: ExportFolder, contents: Contents) -> None:
        self._folder = folder
        # A photo beside the folders of labels may be called like one of them.
        places = ["", *(f"{split}/" for split in SPLIT_FOLDERS.values())]
        self._names = FileNames({in_any_case(f"{place}{label}") for place in places for label in contents.labels})
        self._are_split = any(split and images for split, images in contents.images.items())
        self._columns = [*COLUMNS, *(name for name in contents.attribute_names if name not in COLUMNS)]
        self._lines = [self._line(dict(zip(self._columns, self._columns, strict=True)))]

    def add(self, image: ExportedImage, source: BinaryIO) -> None:
        """Writes an image. Images without a label, and those left out of all splits, are beside the folders."""
        in_label = image.label and (image.split or not self._are_split)
        # Without splits, the folders of labels are beside what the export itself writes.
        own = "_" if not image.split and in_any_case(image.label or "") in OWN_NAMES else ""
        in_folder = f"{split_folder(image)}{own}{image.label}/" if in_label else ""
        path = self._names.unique(in_folder, image.path, image.image_id)
        self._folder.copy(path, source)
        self._lines.append(self._line({"path": path, "label": image.label, **image.values}))

    def finish(self) -> None:
        """Writes images.csv."""
        self._folder.write_text(IMAGES_TABLE, *self._lines)

    def _line(self, values: Mapping[str, Any]) -> str:
        line = StringIO()
        csv.writer(line, lineterminator="\n").writerow([values.get(name) for name in self._columns])
        return line.getvalue()


class CocoFormat:
    """The images in train/, val/ and test/; annotations/ has their categories, and the predictions as results."""

    def __init__(self, folder: ExportFolder, contents: Contents) -> None:
        self._folder, self._names = folder, FileNames()
        self._category_ids = {label: number for number, label in enumerate(contents.labels, 1)}
        self._images: dict[str, list[str]] = defaultdict(list)
        self._annotations: dict[str, list[str]] = defaultdict(list)
        self._results: dict[str, list[str]] = defaultdict(list)

    def add(self, image: ExportedImage, source: BinaryIO) -> None:
        """Writes an image and remembers its annotation: the whole image, because the label is that of the image."""
        split, path = (
            SPLIT_FOLDERS.get(image.split or "", "unsplit"),
            self._names.unique(split_folder(image), image.path, image.image_id),
        )
        self._folder.copy(path, source)
        own = {"id": image.number, "file_name": path, "width": image.width, "height": image.height}
        others = {f"given_{name}" if name in own else name: value for name, value in image.values.items()}
        self._images[split].append(to_json({**own, **others}))
        box = {"bbox": [0, 0, image.width, image.height]}
        if image.label:
            category = {"image_id": image.number, "category_id": self._category_ids[image.label]}
            area = {"area": image.width * image.height, "iscrowd": 0, "segmentation": []}
            self._annotations[split].append(to_json({"id": image.number, **category, **box, **area}))
        if image.predicted_label:
            category = {"image_id": image.number, "category_id": self._category_ids[image.predicted_label]}
            self._results[split].append(to_json({**category, **box, "score": image.probability}))

    def finish(self) -> None:
        """Writes the annotations."""
        categories = to_json([{"id": number, "name": label} for label, number in self._category_ids.items()])
        for split, images in self._images.items():
            annotations = ",\n".join(self._annotations[split])
            after = f', "annotations": [\n{annotations}\n], "categories": {categories}}}'
            self._folder.write_list(f"annotations/instances_{split}.json", images, '{"images": ', after)
            if self._results[split]:
                self._folder.write_list(f"annotations/results/{split}.json", self._results[split])


class LabelStudioFormat:
    """The images, and tasks.json with their labels as annotations and the predictions as pre-annotations."""

    def __init__(self, folder: ExportFolder, contents: Contents) -> None:
        self._folder, self._contents, self._names = folder, contents, FileNames()
        self._tasks: list[str] = []

    def add(self, image: ExportedImage, source: BinaryIO) -> None:
        """Writes an image and remembers its task."""
        path = self._names.unique(split_folder(image), image.path, image.image_id)
        self._folder.copy(path, source)
        task: dict[str, Any] = {"data": {**image.values, "image": self._address(path)}}
        if image.label:
            task["annotations"] = [{"result": [self._choice(image.label)]}]
        if image.predicted_label:
            version = f"{self._contents.model_name} {image.model_version}"
            result = [self._choice(image.predicted_label)]
            task["predictions"] = [{"model_version": version, "score": image.probability, "result": result}]
        self._tasks.append(to_json(task))

    def finish(self) -> None:
        """Writes the tasks, and the labeling interface that they are made for."""
        self._folder.write_list("tasks.json", self._tasks)
        choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in self._contents.labels)
        head = '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image" choice="single">'
        self._folder.write_text("labeling_interface.xml", f"{head}\n{choices}\n  </Choices>\n</View>\n")

    def _address(self, path: str) -> str:
        """The image's address; on disk, Label Studio serves it from the folder that contains this one."""
        if is_url(self._folder.url):
            return f"{self._folder.url}/{path}"
        return f"/data/local-files/?d={quote(f'{PurePosixPath(self._folder.url).name}/{path}')}"

    def _choice(self, label: str) -> dict[str, Any]:
        return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


class HuggingFaceFormat:
    """data/<split>-00000-of-00001.parquet, which `datasets.load_dataset` reads, with the images in them."""

    def __init__(self, folder: ExportFolder, contents: Contents) -> None:
        self._folder, self._contents = folder, contents
        self._class_ids = {label: number for number, label in enumerate(contents.labels)}
        self._attributes = [name for name in contents.attribute_names if name not in (*COLUMNS, "image")]
        self._schema = self._to_schema()
        self._seen: Counter[str | None] = Counter()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._waiting_bytes = 0
        self._open_path, self._file, self._writer = "", None, None

    def add(self, image: ExportedImage, source: BinaryIO) -> None:
        """Adds an image to its split's current file. Images come sorted by split."""
        path = self._shard(image.split)
        if path != self._open_path:
            self._close()
            self._open_path, self._file = path, self._folder.open(path)
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="none")
        content = source.read()
        row = {
            "image": {"bytes": content, "path": image.path},
            "label": self._class_ids.get(image.label or ""),
            "predicted_label": self._class_ids.get(image.predicted_label or ""),
            **{name: image.values.get(name) for name in ("split", "probability", "model_version", *self._attributes)},
        }
        self._rows.setdefault(path, []).append(row)
        self._waiting_bytes += len(content)
        if self._waiting_bytes >= ROW_GROUP_BYTES or len(self._rows[path]) >= ROW_GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        """Completes the last file."""
        self._close()

    def _shard(self, split: str | None) -> str:
        """The file of the split's next image: all its files get about the same number of images."""
        images = max(1, self._contents.images[split])
        shards = min(images, -(-self._contents.bytes[split] // SHARD_BYTES) or 1)
        number = min(self._seen[split] * shards // images, shards - 1)
        self._seen[split] += 1
        return f"data/{SPLIT_FILES[split]}-{number:05}-of-{shards:05}.parquet"

    def _flush(self) -> None:
        rows = self._rows.pop(self._open_path, [])
        if rows and self._writer:
            self._writer.write_table(pa.Table.from_pylist(rows, self._schema))
        self._waiting_bytes = 0

    def _close(self) -> None:
        if self._writer and self._file:
            self._flush()
            self._writer.close()
            self._file.close()
        self._writer = self._file = None

    def _to_schema(self) -> pa.Schema:
        classes = {"names": [*self._class_ids], "_type": "ClassLabel"}
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns: list[tuple[str, pa.DataType, dict[str, Any]]] = [
            ("image", image, {"_type": "Image"}),
            ("label", pa.int64(), classes),
            ("split", pa.string(), value("string")),
            ("predicted_label", pa.int64(), classes),
            ("probability", pa.float32(), value("float32")),
            ("model_version", pa.int32(), value("int32")),
            *((name, pa.string(), value("string")) for name in self._attributes),
        ]
        info = {"info": {"features": {name: feature for name, _, feature in columns}}}
        return pa.schema([(name, of) for name, of, _ in columns], metadata={"huggingface": to_json(info)})


FORMATS: dict[FormatName, Callable[[ExportFolder, Contents], DatasetFormat]] = {
    "image_folder": ImageFolderFormat,
    "coco": CocoFormat,
    "hugging_face": HuggingFaceFormat,
    "label_studio": LabelStudioFormat,
}


def value(kind: str) -> dict[str, str]:
    """The feature of a plain column, as Hugging Face describes it."""
    return {"dtype": kind, "_type": "Value"}


def to_json(content: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(content, ensure_ascii=False)
