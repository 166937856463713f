"""Exports of annotation programs become rows of paths and labels; what is wrong with them is named."""

import json
from typing import Any

import pytest

from resources.delta.annotation_files import read_cvat, read_json, read_json_lines
from resources.delta.delimited_text import FileRows


def records(table: FileRows) -> list[dict[str, str | None]]:
    return [dict(zip(table.names, row, strict=True)) for row in table.rows]


def from_json(found: Any) -> FileRows:
    return read_json(json.dumps(found).encode())


COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 2, "height": 2, "camera": "A7"},
        {"id": 8, "file_name": "b.jpg"},
        {"id": 9, "file_name": "c.jpg"},
        {"id": 10},
    ],
    "categories": [{"id": 1, "name": "roses"}, {"id": 2, "name": "tulips"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2]},
        {"id": 3, "image_id": 8, "category_id": 1},
        {"id": 4, "image_id": 8, "category_id": 2},
        {"id": 5, "image_id": 99, "category_id": 1},
        {"id": 6, "image_id": 7, "category_id": 5},
        "nonsense",
    ],
}


def test_an_image_of_coco_has_the_categories_of_its_annotations() -> None:
    table = from_json(COCO)
    assert records(table) == [
        {"path": "a.jpg", "label": "tulips", "camera": "A7"},
        {"path": "b.jpg", "label": "roses", "camera": None},
        {"path": "b.jpg", "label": "tulips", "camera": None},
        {"path": "c.jpg", "label": None, "camera": None},
    ]
    assert table.numbers == [1, 2, 2, 3]
    assert table.problems == [
        "images 4 has no file_name: add it",
        "an annotation names image_id 99, which the file does not list",
        "an annotation names category_id 5, which the file does not list",
        "annotations 7 has no image_id: add it",
    ]


def choice(*choices: str, question: str = "kind", **more: Any) -> dict[str, Any]:
    return {"result": [{"type": "choices", "from_name": question, "value": {"choices": [*choices]}}], **more}


def task(image: str, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image, **data}, "annotations": [*annotations], "predictions": [choice("no")]}


def test_a_task_of_label_studio_has_the_choices_of_its_annotations() -> None:
    tasks = [
        task("a.jpg", choice("roses"), part=3),
        task("b.jpg", choice("roses"), choice("roses"), choice("tulips", was_cancelled=True)),
        task("c.jpg", choice("roses", "tulips")),
        task("d.jpg"),
    ]
    assert records(from_json(tasks)) == [
        {"path": "a.jpg", "part": "3", "label": "roses"},
        {"path": "b.jpg", "part": None, "label": "roses"},
        {"path": "c.jpg", "part": None, "label": "roses"},
        {"path": "c.jpg", "part": None, "label": "tulips"},
        {"path": "d.jpg", "part": None, "label": None},
    ]


def test_several_questions_of_label_studio_are_columns() -> None:
    both = {"result": choice("roses")["result"] + choice("sharp", question="focus")["result"]}
    assert records(from_json([task("a.jpg", both)])) == [{"path": "a.jpg", "kind": "roses", "focus": "sharp"}]


def test_tasks_without_answers_have_no_labels() -> None:
    assert records(from_json([task("a.jpg")])) == [{"path": "a.jpg", "label": None}]


def test_label_studios_short_form_and_lists_of_objects_are_read() -> None:
    found = [
        {"image": "a.jpg", "choice": "roses", "annotator": 1},
        {"image": "b.jpg", "choice": {"choices": ["roses", "tulips"]}},
        "nonsense",
    ]
    table = from_json(found)
    assert [(row["image"], row["choice"]) for row in records(table)] == [
        ("a.jpg", "roses"),
        ("b.jpg", "roses"),
        ("b.jpg", "tulips"),
    ]
    assert table.problems == ["entry 3 is not an object"]


def test_shapes_in_label_studios_short_form_have_their_labels() -> None:
    shapes = [{"x": 1, "rectanglelabels": ["cat"]}, {"x": 2, "rectanglelabels": ["cat", "dog"]}]
    found = read_json(json.dumps([{"id": 1, "image": "a.jpg", "label": shapes}]).encode())
    assert [row[found.names.index("label")] for row in found.rows] == ["cat", "cat", "dog"]


@pytest.mark.parametrize("content", [b'["a.jpg"]', b'[\n{\n"path": "a.jpg"\n}\n]'])
def test_why_nothing_could_be_read_is_said(content: bytes) -> None:
    with pytest.raises(ValueError, match="it lists no image; line 1 is not"):
        read_json_lines(content)


def test_lines_of_json_are_read_and_bad_ones_named() -> None:
    lines = ['{"file_name": "a.jpg", "label": "roses", "size": [1, 2]}', "", "{", "[1]", '{"file_name": "b.jpg"}']
    table = read_json_lines("\n".join(lines).encode("utf-8-sig"))
    assert records(table) == [
        {"file_name": "a.jpg", "label": "roses", "size": "[1, 2]"},
        {"file_name": "b.jpg", "label": None, "size": None},
    ]
    assert table.numbers == [1, 5]
    assert [problem.partition(" (")[0] for problem in table.problems] == [
        "line 3 is not JSON",
        "line 4 is not a JSON object: write one object per line",
    ]


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><labels><label><name>roses</name></label></labels></job></meta>
  <image id="0" name="day 1/a.jpg" width="9" height="9" subset="Train">
    <tag label="roses" source="manual"><attribute name="ripe">yes</attribute></tag>
    <box label="thorn" xtl="0" ytl="0" xbr="1" ybr="1"><attribute name="sharp">no</attribute></box>
  </image>
  <image id="1" name="b.jpg"><polygon label="tulips" points="0,0;1,1"/><box label="tulips"/></image>
  <image id="2" name="c.jpg"><tag label="roses"/><tag label="tulips"/></image>
  <image id="3" name="d &amp; e.jpg"/>
</annotations>"""


def test_an_image_of_cvat_has_its_tags_or_else_the_labels_of_its_shapes() -> None:
    assert [(row["path"], row["label"], row["subset"], row["ripe"]) for row in records(read_cvat(CVAT.encode()))] == [
        ("day 1/a.jpg", "roses", "Train", "yes"),
        ("b.jpg", "tulips", None, None),
        ("c.jpg", "roses", None, None),
        ("c.jpg", "tulips", None, None),
        ("d & e.jpg", None, None, None),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(encoding: str) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><annotations><image name="&d;"/></annotations>'
    with pytest.raises(ValueError, match="declares a document type"):
        read_cvat(bomb.encode(encoding))


@pytest.mark.parametrize(
    "found",
    [
        [{"data": {"image": "a.jpg"}, "annotations": {"result": 1}}],
        [{"data": {"image": "a.jpg"}, "annotations": [None, {"result": "x"}, {"result": [None, {"type": 3}]}]}],
        [
            {
                "data": {"image": "a.jpg"},
                "annotations": [choice() | {"result": [{"type": "choices", "value": {"choices": "x"}}]}],
            }
        ],
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": None, "categories": [None]},
        {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": {}, "file_name": "b"}, 3], "annotations": [[]]},
    ],
    ids=str,
)
def test_what_is_malformed_never_hides_the_rest(found: Any) -> None:
    assert [(row["path"], row["label"]) for row in records(from_json(found))] == [("a.jpg", None)]


@pytest.mark.parametrize("found", [{"images": []}, [{"data": {}}], [{"data": {"image": "a.jpg"}}]], ids=str)
def test_files_without_labels_have_both_columns(found: Any) -> None:
    assert from_json(found).names[:2] == ["path", "label"]


@pytest.mark.parametrize("content", [b"[]", b"[1]"])
def test_an_empty_list_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it lists no image"):
        read_json(content)


def test_half_a_character_does_not_hide_the_rest() -> None:
    assert records(read_json(rb'[{"path": "\ud800.jpg"}, {"path": "a.jpg"}]')) == [{"path": "?.jpg"}, {"path": "a.jpg"}]
