"""An image's page shows why each version predicts what it predicts, or says why it cannot."""

import json
import re
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from gallery.explanations import Explanations, Question
from gallery.thumbnails import Content, FolderCache
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import LABELS, Row, append, featured, landed, predicted, served
from tests.gallery.test_server import get
from tests.support.image_files import saved
from tests.support.images import opened
from tests.support.registered_versions import REDNESS, registered, saved_model


def half_red(color: str = "green") -> bytes:
    image = Image.new("RGB", (90, 60), color)
    image.paste((220, 20, 20), (0, 0, 60, 60))
    return saved(image, "PNG")


def registered_version(home: Path, empty_store: Path) -> tuple[ModelRegistry, ModelVersion]:
    """A version whose probability of the first label is the share of red pixels, in production."""
    shutil.copy(empty_store, home / "mlflow.db")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    model = saved_model(REDNESS.format(labels=[*LABELS]), home, "model")
    tags = {"framework": "torch", "labels": json.dumps(LABELS)}
    version = registered(model, registry, tags, (home / "artifacts").as_uri())
    return registry, registry.promote(version.version, "Production")


def added(home: SmallHome, name: str, content: bytes) -> Row:
    """A new file and its row in featured_images."""
    file = landed(home.landing, name, content, 60)
    append(home.delta_tables, IMAGE_FILES, [file])
    image = featured(file, content, home.landing)
    append(home.delta_tables, FEATURED_IMAGES, [image])
    return image


def test_a_mistake_is_explained_on_its_page_with_both_labels(own_home: SmallHome, empty_store: Path) -> None:
    _, version = registered_version(own_home.home, empty_store)
    image = added(own_home, f"{LABELS[1]}/mistake.png", half_red())
    white = added(own_home, f"{LABELS[0]}/white.png", saved(Image.new("RGB", (60, 60), "white"), "PNG"))
    failed = added(own_home, f"{LABELS[0]}/failed.png", half_red("blue"))
    rows = [
        predicted(image, version.version, LABELS[0], 0.66, version.version_id),
        predicted(white, version.version, LABELS[0], 0.9, version.version_id),
        predicted(failed, version.version, None, None, version.version_id),
    ]
    append(own_home.delta_tables, IMAGE_PREDICTIONS, rows)
    with served(own_home.home, own_home.landing) as address:
        page = get(f"{address}/image?{urlencode({'path': image['path']})}")[2].decode()
        (url,) = re.findall(r'src="(/explanations/[^"]+)"', page)
        assert '<details class="explanation" open>' in page, "a mistake of the serving version"
        status, headers, picture = get(address + unescape(url))
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert opened(picture).width > 2 * 224, "the predicted label and the image's own"

        page = get(f"{address}/image?{urlencode({'path': failed['path']})}")[2].decode()
        assert "No explanation. <bdi>The version failed on this image: raised: out of patience.</bdi>" in page
        assert "/explanations/" not in page

        address_of = f"{address}/explanations/{white['image_id']}/{version.version}"
        status, headers, picture = get(f"{address_of}?label={LABELS[0]}")
        assert (status, headers["content-type"], headers["cache-control"]) == (404, "image/png", "no-store")
        for bad in (f"{address_of}?label=asters", address_of, f"{address}/explanations/x/1?label=roses"):
            assert get(bad)[0] == 404

        shutil.rmtree(own_home.home / "model")  # cached: nothing is computed again
        assert get(address + unescape(url))[0] == 200


def test_a_version_whose_files_were_replaced_is_never_loaded(own_home: SmallHome, empty_store: Path) -> None:
    registry, version = registered_version(own_home.home, empty_store)
    image = added(own_home, f"{LABELS[1]}/half.png", half_red())
    with (own_home.home / "model" / "MLmodel").open("a") as file:
        file.write("# changed\n")
    explanations = Explanations(own_home.delta_tables, registry, FolderCache(own_home.home / "gallery"))
    content = Content(image["image_id"], image["path"], image["length"])
    picture = explanations.picture(Question(content, version, (LABELS[0],)))
    with pytest.raises(ValueError, match="changed after they were logged"):
        picture.result(60)
