"""The command `image-assets`: everything that `make` does, except installing, checking and testing the code."""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from resources.processes.child_process import collect_rarely
from scripts.terminal import ROOT, explain_errors, printable, table

DESCRIPTION = "Turns a folder of images into Delta tables, trained models and predictions that stay current."
EPILOG = """\
examples:
  image-assets demo                    try everything on generated sample images
  image-assets demo ~/photos           the same on your own images, one sub-folder per label
  image-assets dev                     the web pages: Dagster, MLflow and the gallery
  image-assets doctor java landing     test two parts of the setup
  image-assets check-data              the asset checks, for CI

settings (environment variables; `image-assets settings` lists all of them):
  IMAGE_ASSETS_HOME            folder for all data (default: .image_assets in the current folder)
  IMAGE_ASSETS_LANDING         folder with your images (default: the one this home was created with)
  IMAGE_ASSETS_BACKBONE        auto, imagenet, none, or a folder with weights (default: auto)
  IMAGE_ASSETS_PROCESSES       processes that train together (default: 2)
  IMAGE_ASSETS_SPARK_MASTER    Spark cluster (default: local[*])
  MLFLOW_TRACKING_URI          MLflow server or database (default: mlflow.db in the home)

Ctrl-C stops any command. Commands exit with 1 if something failed."""

Arguments = argparse.Namespace


def demo(arguments: Arguments) -> int:
    """Run the whole graph on sample images, or on a folder of your own, and print a summary.

    Ingests the images, builds the tables and training caches, trains one model in TensorFlow and one in PyTorch,
    promotes the more accurate one if none is in production yet, and predicts every image. Run it again to process only
    what changed. With your own images, use one sub-folder per label and at least three different images in each.
    """
    from scripts.demo import main

    return main(arguments.landing)


def dev(arguments: Arguments) -> int:
    """Serve the Dagster and MLflow UIs and the gallery, with the sensors running, until Ctrl-C.

    Ports: DAGSTER_PORT (3000), GALLERY_PORT (4000) and MLFLOW_PORT (5000). While it runs, sensors process new, changed
    and deleted images and promoted models automatically.
    """
    from scripts.dev import main

    return main()


def check_data(arguments: Arguments) -> int:
    """Evaluate every asset check on the current tables; exit with 1 if an ERROR check fails.

    Meant for CI. Nothing is materialized.
    """
    from scripts.checks import check_data

    return check_data()


def audit(arguments: Arguments) -> int:
    """Read every file and row and compare each table with its sources; exit with 1 if a rule is broken.

    Slow on large homes. Nothing is changed.
    """
    from scripts.checks import audit

    return audit()


def doctor(arguments: Arguments) -> int:
    """Test each part of the setup and print how to fix what fails."""
    from scripts.doctor import CHECKS, main

    if unknown := [name for name in arguments.check if name not in CHECKS]:
        sys.exit(f"Unknown check: {', '.join(unknown)}. Choose from: {', '.join(CHECKS)}")
    return main(arguments.check)


def settings(arguments: Arguments) -> None:
    """List all settings (environment variables) with their defaults."""
    print(table("Settings", settings_table()))


def settings_table() -> list[tuple[str, ...]]:
    """The table of all settings in the docstring of resources/settings.py, with its head."""
    import resources.settings as module

    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    head, _, *rows = (tuple(cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")) for line in lines)
    return [head, *rows]


def unknown_settings(variables: Iterable[str]) -> list[str]:
    """A message for each environment variable that looks like a setting but is none, such as a misspelled one."""
    named = sorted(name for name in variables if name.startswith("IMAGE_ASSETS_"))
    known = [name for row in settings_table() for name in row[0].split(", ")] if named else []
    messages = []
    for name in named:
        if name not in known and not name.startswith("IMAGE_ASSETS_ALERT_"):  # followed by any receiver's name
            similar = get_close_matches(name, known, n=1)
            meant = f"Did you mean {similar[0]}? " if similar else ""
            messages.append(
                f"{name} is not a setting and has no effect. {meant}`image-assets settings` lists all settings."
            )
    return messages


def cluster(arguments: Arguments) -> None:
    """Run a Spark cluster of two workers on this machine until Ctrl-C."""
    from scripts.cluster import main

    main()


def home(arguments: Arguments) -> None:
    """Prepare the home folder without running anything, e.g. before Dagster's own commands use it."""
    from scripts.home import open_home

    settings = open_home()
    landing = printable(str(settings.landing))  # its name may not be UTF-8
    print(f"The home {settings.home} is ready, for images in {landing}. Dagster's own commands find it with")
    print(f"export DAGSTER_HOME={shlex.quote(str(settings.dagster_home))}")


def move_home(arguments: Arguments) -> int:
    """Move the home to another folder, or complete the move of one that was moved or copied by hand.

    Stop everything that uses the home first. Without FOLDER, the home stays where it is and the paths stored in it are
    updated; a home that was moved or copied by hand needs this once. After an interruption, run the same command again.
    """
    from scripts.move_home import main

    return main(arguments.folder)


def sample_images(arguments: Arguments) -> None:
    """Write generated sample images into a folder, one sub-folder per label."""
    from scripts.sample_images import write_sample_images

    write_sample_images(arguments.folder, per_label=arguments.per_label, seed=arguments.seed)
    print(f"Wrote sample images to {arguments.folder.resolve()}")


def setup(arguments: Arguments) -> None:
    """Build Horovod and download Delta's jars, after installing from a wheel (`make install` does it by itself).

    Needs Java and, unless Horovod was built before, a C++ compiler. Install the package as `image-assets[horovod]`.
    """
    from scripts import horovod_wheel, jars, prerequisites

    compiler = None if horovod_wheel.find_wheel() else prerequisites.missing_compiler()
    if missing := [one for one in (prerequisites.missing_java(), compiler) if one]:
        sys.exit(prerequisites.to_message(missing))
    horovod_wheel.main()
    jars.main()


def s3(arguments: Arguments) -> None:
    """Download the jars that Spark needs to read and write s3:// (9 MB)."""
    from scripts import jars

    jars.main("s3")


def bench(arguments: Arguments) -> None:
    """Run the benchmarks (needs a checkout of the repository); without options all of them, which takes hours."""
    options = [("--only", arguments.only), ("--size", arguments.size), ("--repeats", arguments.repeats)]
    if arguments.photographs:
        options.append(("--photographs", arguments.photographs.expanduser().resolve()))
    run_in_checkout("-m", "benchmarks", *(str(word) for option in options if option[1] is not None for word in option))


def docs(arguments: Arguments) -> None:
    """Build the documentation as a site in build/site (needs a checkout of the repository)."""
    require_checkout()
    if importlib.util.find_spec("zensical") is None:
        sys.exit("The tools for the documentation are not installed: run `make docs`.")
    from scripts import reference

    reference.main()
    run_in_checkout("-m", "zensical", "build", "--strict")


def require_checkout() -> None:
    """Exits if the project was installed from a wheel, which lacks benchmarks, docs and tests."""
    if not (ROOT / "pyproject.toml").is_file():
        sys.exit("This command needs a checkout of the repository; an installed package does not contain its files.")


def run_in_checkout(*arguments: str) -> None:
    """Continues as another Python program in the repository, with its exit code and Ctrl-C."""
    require_checkout()
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, *arguments])


def positive_integer(text: str) -> int:
    """Parses an argument as a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The commands with their arguments; each command's help is its function's docstring."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("image-assets", description=DESCRIPTION, epilog=EPILOG, formatter_class=layout)
    parser.add_argument("--version", action="version", version=version("image-assets"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(run: Callable[[Arguments], int | None]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").replace("\n    ", "\n")
        command = commands.add_parser(
            run.__name__.replace("_", "-"), help=text.partition("\n")[0], description=text, formatter_class=layout
        )
        command.set_defaults(run=run)
        return command

    add(demo).add_argument("landing", nargs="?", metavar="LANDING", help="folder or s3:// URL with your images")
    add(dev)
    add(check_data)
    add(audit)
    add(doctor).add_argument("check", nargs="*", metavar="CHECK", help="only these checks, e.g. java 'delta jars'")
    add(settings)
    add(cluster)
    add(home)
    add(move_home).add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a new or empty folder")
    samples = add(sample_images)
    samples.add_argument("folder", type=Path, metavar="FOLDER")
    samples.add_argument("--per-label", type=positive_integer, default=60, help="images per label (default: 60)")
    samples.add_argument("--seed", type=int, default=7, help="the same seed gives the same bytes (default: 7)")
    add(setup)
    add(s3)
    benchmarks = add(bench)
    benchmarks.add_argument("--only", metavar="NAME", help="one benchmark, e.g. ingest or training")
    benchmarks.add_argument("--size", type=positive_integer, metavar="IMAGES")
    benchmarks.add_argument("--repeats", type=positive_integer, metavar="RUNS")
    benchmarks.add_argument("--photographs", type=Path, metavar="FOLDER", help="your own images, not generated ones")
    add(docs)
    return parser


def main() -> int:
    """Runs the command that the command line names, and returns its exit code."""
    collect_rarely()
    explain_errors()
    arguments = build_parser().parse_args()
    for message in unknown_settings(os.environ):
        print(f"warning: {message}", file=sys.stderr)
    return arguments.run(arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
