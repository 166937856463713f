"""Values of environment variables: parsed, or rejected with what was found and what was expected."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import dagster as dg

from resources.alerts import ADDRESS_PREFIX
from resources.delta.spark_session import is_local
from resources.files import s3
from resources.files.file_system import is_url
from resources.files.image_folder import LITTER
from resources.home import LANDING_FILE, read_landing

LOCAL_MASTER = "local[*]"
RULES_VARIABLE = f"{ADDRESS_PREFIX}RULES"  # the only variable with this prefix that is not an address
POSTGRES = "postgresql+psycopg2://"  # without the driver's name, SQLAlchemy may choose another one
HTTP = ("http:", "https:")
PASSWORD_NAMES = {"password", "passwd", "pwd", "token"}  # query parameters of URLs, in lower case
PASSWORD = re.compile("://[^/?#]*:[^/?#]*@")  # also in fsspec's chains of URLs
HALF_URL = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)|file:")  # `s3:/bucket` would become a folder called `s3:`
MASTER = re.compile(r"local(-cluster)?(\[.+\])?|(spark|k8s)://.+|yarn")
PASSWORD_FOUND = (
    "contains a password or an account, which would become visible: remove it. Accounts belong in "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for an MLflow server, in ~/.pgpass for a database, in the "
    "AWS_… variables for S3, and in fsspec's configuration, ~/.config/fsspec, for other storage."
)
FETCH_PERMISSIONS = ("private_addresses", "local_files")  # of fetch_images' run config
Choice = TypeVar("Choice", bound=str)
DATABASE_VARIABLE = "IMAGE_ASSETS_DAGSTER_DATABASE"


def to_choice(variables: Mapping[str, str], name: str, choices: Sequence[Choice]) -> Choice:
    """The variable's value, by default the first choice; a ValueError if it is not one of the choices."""
    value = variables.get(name) or choices[0]
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}")
    return choices[choices.index(value)]


def to_count(variables: Mapping[str, str], name: str, default: int, *, minimum: int = 1) -> int:
    """The variable's whole number; a ValueError if it is not a number or too small."""
    value = variables.get(name) or str(default)
    if not value.isdecimal() or int(value) < minimum:
        raise ValueError(f"{name} is {value!r}: expected a number from {minimum}, such as {default}")
    return int(value)


def to_limit(variables: Mapping[str, str], name: str) -> int | None:
    """The variable's whole number from 1; None, for no limit, if it is not set."""
    return to_count(variables, name, 1) if variables.get(name) else None


def to_spark_gpus(variables: Mapping[str, str]) -> int:
    """GPUs per executor; a ValueError on a local master, where tasks would wait for a GPU forever."""
    gpus = to_count(variables, "IMAGE_ASSETS_SPARK_GPUS", 0, minimum=0)
    master = to_master(variables)
    if gpus and is_local(master):
        raise ValueError(
            f"IMAGE_ASSETS_SPARK_GPUS is {gpus}, but the Spark master {master} is local and cannot assign GPUs: use "
            "a cluster's master, or unset the variable; predictions use this machine's GPU without it"
        )
    return gpus


def to_tags(value: str | None) -> dict[str, str]:
    """Tags from a JSON object; values other than strings stay JSON, which Dagster's run launchers parse."""
    try:
        tags = json.loads(value or "{}")
        return {name: tag if isinstance(tag, str) else json.dumps(tag) for name, tag in tags.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"IMAGE_ASSETS_GPU_RUN_TAGS is {value!r}: expected a JSON object, such as "
            '{"dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}}'
        ) from error


def local_url(port: str, default: int, variables: Mapping[str, str]) -> str:
    """The address under which `image-assets dev` serves a UI."""
    return f"http://127.0.0.1:{variables.get(port) or default}"


def to_parts(address: str) -> SplitResult | None:
    """The parts of an address; None if its host or port is invalid."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # which is checked when it is read
    except ValueError:
        return None
    return parts


def holds_password(address: str, parts: SplitResult | None) -> bool:
    """Whether an address contains a password, also as a parameter; for web servers, an account counts as one."""
    names = map(str.lower, parse_qs(parts.query)) if parts else ()
    is_account = address.startswith(HTTP) and "@" in address
    return is_account or bool(PASSWORD.search(address)) or not PASSWORD_NAMES.isdisjoint(names)


def to_master(variables: Mapping[str, str]) -> str:
    """The Spark master; a ValueError if Spark has no such kind of master."""
    master = variables.get("IMAGE_ASSETS_SPARK_MASTER") or LOCAL_MASTER
    if not MASTER.fullmatch(master):
        raise ValueError(
            f"IMAGE_ASSETS_SPARK_MASTER is {master!r}: expected {LOCAL_MASTER} for this machine, or a cluster such as "
            "spark://host:7077, k8s://https://host:443 or yarn"
        )
    return master


def require_location(name: str, location: str) -> None:
    """Raises ValueError if the variable's value is neither a folder nor a URL, or a URL that contains a password.

    UIs, logs and tables show URLs.
    """
    if name.startswith("IMAGE_ASSETS_") and (start := HALF_URL.match(location)):
        raise ValueError(
            f"{name} begins with {start[0]!r}: expected a folder such as /photos, or a URL such as s3://bucket"
        )
    if "://" not in location and not location.startswith(HTTP):
        return
    parts = to_parts(location)
    if holds_password(location, parts):
        raise ValueError(f"{name} {PASSWORD_FOUND}")
    if parts is None:  # the value may contain a password, so it is not repeated
        raise ValueError(f"{name} is not a valid address: expected one such as http://127.0.0.1:5000 or s3://bucket")


def to_url(variables: Mapping[str, str], name: str) -> str:
    """The variable's URL; a ValueError if it contains a password."""
    value = (variables.get(name) or "").strip()
    require_location(name, value)
    return value.rstrip("/") if value.startswith(HTTP) else value


def to_mlflow_url(variables: Mapping[str, str]) -> str:
    """The address of the MLflow UI: the tracking server's, or the one that `image-assets dev` serves."""
    server = to_url(variables, "MLFLOW_TRACKING_URI")
    named = to_url(variables, "IMAGE_ASSETS_MLFLOW_URL")
    return named or (server if server.startswith(HTTP) else local_url("MLFLOW_PORT", 5000, variables))


def to_number(
    variables: Mapping[str, str], name: str, default: int, *, minimum: float = 0.001, maximum: float = 1e9
) -> float:
    """The variable's number; a ValueError if it is not a number or out of bounds."""
    value = variables.get(name) or str(default)
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} is {value!r}: expected a number from {minimum:g} to {maximum:g}, such as {default}")
    return number


def to_patterns(value: str | None) -> tuple[str, ...]:
    """Shell-style patterns, such as `*.jpg, raw/*`."""
    return tuple(pattern.strip() for pattern in (value or "").split(",") if pattern.strip())


def to_level(variables: Mapping[str, str]) -> int:
    """Which folder is the label; a ValueError if it is not a whole number other than 0."""
    value = variables.get("IMAGE_ASSETS_LABEL_LEVEL") or "1"
    if not re.fullmatch(r"-?[1-9]\d?", value):
        raise ValueError(
            f"IMAGE_ASSETS_LABEL_LEVEL is {value!r}: expected 1 for the first level below the landing folder, 2 for "
            "the second and so on, or -1 for the folder that the file is in"
        )
    return int(value)


def to_litter(value: str | None) -> tuple[str, ...]:
    """The patterns of what systems and programs leave beside photographs."""
    patterns = to_patterns(value) or LITTER
    return () if patterns == ("none",) else patterns


def to_link_roots(value: str | None) -> tuple[str, ...]:
    """The folders that links may lead to; a ValueError if one is not a folder."""
    roots = to_patterns(value)
    for root in roots:
        if is_url(root) or not to_folder(root).is_dir():
            raise ValueError(f"IMAGE_ASSETS_LINK_ROOTS has {root!r}: expected an existing folder on this machine")
    return tuple(str(to_folder(root)) for root in roots)


def to_fetch_allow(variables: Mapping[str, str]) -> tuple[str, ...]:
    """What `fetch_images` may be allowed to read; a ValueError if one is unknown."""
    allowed = to_patterns(variables.get("IMAGE_ASSETS_FETCH_ALLOW"))
    if unknown := [name for name in allowed if name not in FETCH_PERMISSIONS]:
        raise ValueError(f"IMAGE_ASSETS_FETCH_ALLOW has {unknown[0]!r}: expected {' or '.join(FETCH_PERMISSIONS)}")
    return allowed


def to_owners(value: str | None) -> tuple[str, ...]:
    """Owners in Dagster's format; a ValueError if one is neither an email address nor a team."""
    owners = to_patterns(value)
    for owner in owners:
        if not re.fullmatch(r"team:[A-Za-z0-9._ -]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
            raise ValueError(f"IMAGE_ASSETS_OWNERS has {owner!r}: expected an email address or team:<name>")
    return owners


def to_freshness(variables: Mapping[str, str]) -> dg.FreshnessPolicy | None:
    """When a table is overdue; None by default, because new files arrive at any time."""
    name = "IMAGE_ASSETS_FRESH_HOURS"
    if not variables.get(name):
        return None
    hours = to_number(variables, name, 24, minimum=1 / 60)
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))


def to_s3_settings(storage: str, landing: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Spark's settings for storage or a landing folder on S3; a ValueError if the storage is not supported."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"):
        require_location(name, variables.get(name) or "")
    s3.require_supported_location("IMAGE_ASSETS_STORAGE", storage, variables)
    on_s3 = any(location.startswith(s3.SCHEME) for location in (storage, landing))
    return s3.spark_settings(variables) if on_s3 else {}


def is_on_postgres(address: str | None) -> bool:
    """Whether a database is set; a ValueError, without the password, if Dagster does not support it."""
    if address and not address.startswith(POSTGRES):
        scheme = address.partition(":")[0]
        raise ValueError(f"{DATABASE_VARIABLE} begins with {scheme!r}: expected {POSTGRES}user:password@host/name")
    return bool(address)


def to_storage(name: str | Path) -> Path | str:
    """The folder or URL for tables and artifacts; a ValueError if it contains a password."""
    require_location("IMAGE_ASSETS_STORAGE", str(name))
    return to_location(name)


def to_location(name: str | Path) -> Path | str:
    """A URL unchanged, or a local folder's absolute path."""
    return str(name).rstrip("/") if is_url(str(name)) else to_folder(name)


def to_home(name: str) -> Path:
    """The home's absolute path; a ValueError if it cannot be a folder on this machine."""
    require_location("IMAGE_ASSETS_HOME", name)
    if is_url(name):
        raise ValueError(
            f"IMAGE_ASSETS_HOME is {name!r}: expected a folder on this machine. Tables may be elsewhere, in "
            "IMAGE_ASSETS_STORAGE"
        )
    home = to_folder(name)
    if home.exists() and not home.is_dir():
        raise ValueError(f"IMAGE_ASSETS_HOME is {name!r}, which is a file: expected a folder")
    if "?" in str(home) or unquote(str(home)) != str(home):
        raise ValueError(
            f"IMAGE_ASSETS_HOME is {str(home)!r}: expected a folder without a question mark, and without codes such as "
            "%20, in its path, because addresses of SQLite databases cannot contain them. Choose another folder"
        )
    return home


def to_caches(name: str | Path) -> Path:
    """The folder of the training caches; a ValueError for a URL, because Petastorm reads files."""
    require_location("IMAGE_ASSETS_CACHES", str(name))
    if is_url(str(name)):
        raise ValueError(f"IMAGE_ASSETS_CACHES is {str(name)!r}: expected a folder, which all machines share")
    if "#" in str(to_folder(name)):
        raise ValueError(
            f"IMAGE_ASSETS_CACHES is {str(name)!r}: expected a folder without # in its path, where Petastorm would end "
            "it. By default, the caches are in the home"
        )
    return to_folder(name)


def to_landing(name: str | Path) -> Path | str:
    """The landing folder; a ValueError if its files cannot be listed, or if it contains a password."""
    require_location("IMAGE_ASSETS_LANDING", str(name))
    if str(name).startswith(HTTP):
        raise ValueError(
            f"IMAGE_ASSETS_LANDING is {str(name)!r}, whose files cannot be listed: expected a folder, or a URL such as "
            f"{s3.SCHEME}bucket/photographs; the job fetch_images downloads images from addresses in a table"
        )
    return to_location(name)


def stored_landing(home: Path) -> str | None:
    """The landing folder that the home belongs to, if any; a ValueError if its address contains a password."""
    landing = read_landing(home)
    if landing and is_url(landing) and holds_password(landing, to_parts(landing)):
        raise ValueError(
            f"The home {home} was made for a landing folder whose address contains a password (in its file "
            f"{LANDING_FILE}), and its tables may contain it too: set IMAGE_ASSETS_HOME to a new folder, and "
            "IMAGE_ASSETS_LANDING to the address without the password, which belongs in ~/.config/fsspec"
        )
    return landing


def to_table_location(variables: Mapping[str, str], name: str) -> str:
    """The location of a table that another program writes, on disk or S3; empty if the variable is not set."""
    location = to_url(variables, name)
    s3.require_supported_location(name, location, variables)
    return str(to_location(location)) if location else ""


def to_queue(variables: Mapping[str, str], landing: str) -> str:
    """The URL of the event queue; a ValueError if it is invalid or the landing folder is not on S3."""
    queue = to_url(variables, "IMAGE_ASSETS_EVENTS")
    if queue and not (queue.startswith(HTTP) and landing.startswith(s3.SCHEME)):
        raise ValueError(
            f"IMAGE_ASSETS_EVENTS is {queue!r} and the landing folder is {landing}: expected the https URL of an SQS "
            f"queue, and a landing folder on {s3.SCHEME}"
        )
    return queue


def to_folder(name: str | Path) -> Path:
    """The folder's absolute path without links: tables store paths, and a file must always have the same one."""
    return Path(name).expanduser().resolve()


def receiver_names(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the alert receivers that have an address."""
    named = {name for name, value in variables.items() if name.startswith(ADDRESS_PREFIX) and name.isupper() and value}
    return tuple(sorted(name.removeprefix(ADDRESS_PREFIX).lower() for name in named - {RULES_VARIABLE}))
