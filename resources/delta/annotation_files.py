"""Labels as annotation programs export them: COCO, Label Studio, CVAT, and JSON objects such as metadata.jsonl.

All become rows with a `path`, a `label` and whatever else the file says of an image. An image with several labels has
several rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.parsers import expat

from resources.delta.delimited_text import FileRows, decoded

COCO_FIELDS = {"id", "file_name", "width", "height", "license", "coco_url", "flickr_url"}  # not columns
IMAGE_KEYS = ("image", "img", "path", "file_name", "url")  # of a Label Studio task
LISTED_PROBLEMS = 3
EXPECTED_JSON = "expected COCO, tasks of Label Studio, or a list of objects"
Record = dict[str, Any]


def to_text(value: object) -> str | None:
    """A JSON value as a text; objects and lists stay JSON. Half a character, which no text can hold, becomes `?`."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()


def to_rows(
    records: Iterable[tuple[int, Record]], problems: list[str], columns: Iterable[str] = ("path", "label")
) -> FileRows:
    """Numbered records as a table with these columns and all other keys of the records."""
    numbered = list(records)
    names = list(dict.fromkeys([*columns, *(key for _, record in numbered for key in record)]))
    if not names:
        raise ValueError("; ".join(["it lists no image", *problems[:LISTED_PROBLEMS]]))
    rows = ([to_text(record.get(name)) for name in names] for _, record in numbered)
    return FileRows([str(to_text(name)) for name in names], [*rows], [number for number, _ in numbered], problems)


def parsed_json(text: str) -> Any:
    """The parsed text; a ValueError also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_lines(content: bytes) -> FileRows:
    """One JSON object per line, such as Hugging Face's metadata.jsonl."""
    records, problems = [], []
    text, note = decoded(content)
    for number, line in enumerate(text.split("\n"), 1):
        try:
            record = parsed_json(line) if line.strip() else {}
        except ValueError as error:
            problems.append(f"line {number} is not JSON ({error}): fix or remove it")
            continue
        if isinstance(record, dict):
            records += [(number, record)] if record else []
        else:
            problems.append(f"line {number} is not a JSON object: write one object per line")
    return with_note(to_rows(records, problems, ()), note)


def with_note(table: FileRows, note: str) -> FileRows:
    """The table with a note about its encoding, if there is one."""
    table.notes += [note] if note else []
    return table


def read_json(content: bytes) -> FileRows:
    """The rows of COCO's instances, an export of Label Studio (JSON or JSON-MIN), or a list of objects.

    Raises:
        ValueError: It is none of these.
    """
    text, note = decoded(content)
    return with_note(json_rows(parsed_json(text)), note)


def json_rows(found: Any) -> FileRows:
    """The rows of a parsed file; a ValueError if the format is not recognized."""
    if isinstance(found, dict) and isinstance(found.get("images"), list):
        return coco_rows(found)
    if not isinstance(found, list):
        raise ValueError(f"{EXPECTED_JSON}, found {type(found).__name__} without a list `images`")
    problems = [
        f"entry {number} is not an object" for number, entry in enumerate(found, 1) if not isinstance(entry, dict)
    ]
    entries = [(number, entry) for number, entry in enumerate(found, 1) if isinstance(entry, dict)]
    if any(isinstance(entry.get("data"), dict) for _, entry in entries):
        return task_rows(entries, problems)
    return to_rows(((number, row) for number, entry in entries for row in choice_rows(entry)), problems, ())


def coco_rows(found: Record) -> FileRows:
    """The images of a COCO file, each with the categories of its annotations."""
    problems: list[str] = []
    names = {
        category["id"]: to_text(category["name"]) for category in objects(found, "categories", ("id", "name"), problems)
    }
    categories: dict[object, list[str | None]] = defaultdict(list)
    images = list(objects(found, "images", ("id", "file_name"), problems))
    known = {image["id"] for image in images}
    for annotation in objects(found, "annotations", ("image_id", "category_id"), problems):
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in known or category_id not in names:
            absent = f"image_id {image_id!r}" if image_id not in known else f"category_id {category_id!r}"
            problems.append(f"an annotation names {absent}, which the file does not list")
        else:
            categories[image_id].append(names[category_id])
    records = (
        (number, {"path": image["file_name"], "label": label, **without(image, COCO_FIELDS)})
        for number, image in enumerate(images, 1)
        for label in dict.fromkeys(categories[image["id"]]) or [None]
    )
    return to_rows(records, problems)


def objects(found: Record, name: str, keys: tuple[str, ...], problems: list[str]) -> Iterator[Record]:
    """The objects in a list of a COCO file that have these keys; others become problems."""
    listed = found.get(name) or []
    if not isinstance(listed, list):
        raise ValueError(f"`{name}` is not a list")
    for number, entry in enumerate(listed, 1):
        lacking = [key for key in keys if not (isinstance(entry, dict) and is_scalar(entry.get(key)))]
        if lacking:
            problems.append(f"{name} {number} has no {lacking[0]}: add it")
        else:
            yield entry


def is_scalar(value: object) -> bool:
    """Whether it is a text or a number."""
    return isinstance(value, str | int | float)


def without(record: Mapping[str, Any], keys: Iterable[str] = ()) -> Record:
    """The record without some keys, and without `path` and `label`, which rows have anyway."""
    left_out = {*keys, "path", "label"}
    return {key: value for key, value in record.items() if key not in left_out}


def task_rows(tasks: list[tuple[int, Record]], problems: list[str]) -> FileRows:
    """The tasks of a Label Studio export, with the choices of all annotations that were not skipped.

    A project with one question has its answers in the column `label`; one with several has a column for each.
    """
    answered = [(number, task, answers_of(task)) for number, task in tasks]
    questions = {question for _, _, answers in answered for answer in answers for question in answer}
    label = {next(iter(questions)): "label"} if len(questions) == 1 else {}
    records = []
    for number, task, answers in answered:
        data = task.get("data")
        data = data if isinstance(data, dict) else {}
        key = next((key for key in IMAGE_KEYS if key in data), None) or next(iter(data), None)
        if key is None:
            problems.append(f"task {number} has no image in `data`: remove it")
            continue
        values = {"path": data[key], **without(data, [key])}
        named = [{label.get(question, question): value for question, value in answer.items()} for answer in answers]
        records += [(number, {**values, **answer}) for answer in named or [{}]]
    return to_rows(records, problems, ("path",) if len(questions) > 1 else ("path", "label"))


def answers_of(task: Record) -> list[dict[str, str]]:
    """What the annotations of a task say: for each of them, one row per choice."""
    rows = []
    annotations = task.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        choices: dict[str, list[str]] = defaultdict(list)
        results = annotation.get("result")
        for result in results if isinstance(results, list) else []:
            kind, value = (result.get("type"), result.get("value")) if isinstance(result, dict) else (None, None)
            if isinstance(kind, str) and kind.endswith(("choices", "labels")) and isinstance(value, dict):
                chosen = value.get(kind)
                choices[str(result.get("from_name", kind))] += [
                    str(of) for of in (chosen if isinstance(chosen, list) else [])
                ]
        rows += combined(choices)
    return [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]


def combined(choices: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """One row for each choice: those of the first question beside the first choice of the others."""
    longest = max(map(len, choices.values()), default=0)
    return [
        {question: chosen[min(at, len(chosen) - 1)] for question, chosen in choices.items() if chosen}
        for at in range(longest)
    ]


def choice_rows(entry: Record) -> list[Record]:
    """An object as rows: one per choice in a value of Label Studio's JSON-MIN, or per label of its boxes."""
    several = {key: chosen for key, value in entry.items() if (chosen := [*choices_in(value)])}
    return [{**entry, **choices} for choices in combined(several)] or [entry]


def choices_in(value: object) -> Iterator[str]:
    """The choices in {"choices": […]}, and the labels in a list of shapes, such as [{"rectanglelabels": […]}]."""
    for part in value if isinstance(value, list) else [value]:
        for key, chosen in part.items() if isinstance(part, dict) else ():
            if key.endswith(("choices", "labels")) and isinstance(chosen, list):
                yield from dict.fromkeys(map(str, chosen))


def read_cvat(content: bytes) -> FileRows:
    """The images of CVAT's XML with their tags, or with the labels of their shapes if there are no tags.

    Raises:
        ValueError: It was not exported by CVAT, or it declares a document type, whose entities could fill the memory.
    """
    images: list[Record] = []
    characters: list[str] = []
    elements: list[tuple[str, dict[str, str]]] = []

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type: remove the line with <!DOCTYPE")

    def start(name: str, attributes: dict[str, str]) -> None:
        elements.append((name, attributes))
        if name == "image" and len(elements) == 2:
            known = {key: value for key, value in attributes.items() if key in ("subset", "task_id")}
            images.append({"name": attributes.get("name"), "tag": [], "shape": [], "attributes": known})
        elif len(elements) == 3 and elements[1][0] == "image" and "label" in attributes:
            images[-1]["tag" if name == "tag" else "shape"].append(attributes["label"])
        characters.clear()

    def end(name: str) -> None:
        element, attributes = elements.pop()
        if element == "attribute" and len(elements) == 3 and elements[2][0] == "tag" and attributes.get("name"):
            images[-1]["attributes"][attributes["name"]] = "".join(characters).strip()
        characters.clear()

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = refuse, refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters.append
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: of an encoding that Python does not know
        raise ValueError(f"it is not valid XML: {error}") from error
    if not images:
        raise ValueError("it has no <image> in <annotations>: export the task as `CVAT for images`")
    records = (
        (number, {"path": image["name"], "label": label, **without(image["attributes"])})
        for number, image in enumerate(images, 1)
        for label in dict.fromkeys(image["tag"] or image["shape"]) or [None]
    )
    return to_rows(records, [])
