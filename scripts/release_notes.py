"""The changelog's section for a tag, as the text of a release: `python -m scripts.release_notes v1.2.3`.

The release workflow runs this before anything is installed: standard library only.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def release_notes(tag: str, project: str, changelog: str) -> str:
    """The body of the changelog's section `## <version>`, which may carry a date.

    Args:
        tag: The git tag, `v` and the version.
        project: The content of pyproject.toml.
        changelog: The content of CHANGELOG.md.

    Raises:
        ValueError: The tag is not `v` and the project's version, or the section is missing or empty.
    """
    version = tomllib.loads(project)["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"The tag {tag} does not match the version {version} in pyproject.toml: expected v{version}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    notes = next(
        (body.strip() for head, _, body in (s.partition("\n") for s in sections) if head.split()[0] == version), ""
    )
    if not notes:
        raise ValueError(f"CHANGELOG.md has no section `## {version}`: move the entries of Unreleased into it")
    return notes


if __name__ == "__main__":
    try:
        print(release_notes(sys.argv[1], (ROOT / "pyproject.toml").read_text(), (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        sys.exit(str(error))
