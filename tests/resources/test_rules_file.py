"""The file of the rules may be away, unless somebody named it."""

from pathlib import Path

import pytest

from resources.alerts import RulesFile


def test_what_the_file_says_is_read_anew_each_time(tmp_path: Path) -> None:
    file = RulesFile(path=str(tmp_path / "rules.yaml"))
    assert file.text() == ""
    for text in ("rules: []", "# Grüße"):
        (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
        assert file.text() == text


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"rules.yaml cannot be read .*: write them there, or let IMAGE_ASSETS_ALERT_R"
    ):
        RulesFile(path=str(tmp_path / "rules.yaml"), required=True).text()


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        RulesFile(path=str(tmp_path / "rules.yaml")).text()
