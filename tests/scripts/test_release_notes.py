import pytest

from scripts.release_notes import release_notes

PROJECT = '[project]\nname = "x"\nversion = "1.2.0"\n'
CHANGELOG = """# Changelog

## Unreleased

- not yet

## 1.2.0 (2026-11-28)

### Added

- something

## 1.1.0

- older
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    assert release_notes("v1.2.0", PROJECT, CHANGELOG) == "### Added\n\n- something"


@pytest.mark.parametrize("tag", ["v1.1.0", "1.2.0", "v1.2.0-rc1"])
def test_another_tag_than_the_version_is_rejected(tag: str) -> None:
    with pytest.raises(ValueError, match=r"does not match .* expected v1\.2\.0"):
        release_notes(tag, PROJECT, CHANGELOG)


@pytest.mark.parametrize("changelog", ["# Changelog\n\n## Unreleased\n\n- x\n", "## 1.2.0\n\n## 1.1.0\n- older\n"])
def test_a_version_without_entries_is_rejected(changelog: str) -> None:
    with pytest.raises(ValueError, match="no section `## 1.2.0`"):
        release_notes("v1.2.0", PROJECT, changelog)
