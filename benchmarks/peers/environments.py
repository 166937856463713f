"""The peers' virtual environments, separate because their pins conflict; created on first use, then reused."""

import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path

from benchmarks.photographs import CACHE

KERNEL = (
    *("pillow==13.0.0", "simplejpeg==1.9.0", "cykooz-resizer==4.0.1", "isal==1.9.1", "numpy==2.3.4"),
    *("pandas==2.3.3", "psutil==7.2.2", "deltalake==1.6.6"),
)
# Torch takes gigabytes, so all environments link to the same installation; these are its dependencies.
ENGINES = (
    "onnxruntime==1.32.0",
    "filelock==4.2.11",
    "fsspec==2026.9.0",
    "jinja2==3.1.6",
    "networkx==3.6.1",
    "sympy==1.14.0",
)
DAFT = ("daft==0.7.26", "pyiceberg==0.11.1", *KERNEL)
RAY = ("ray[data]==2.60.0", "aiohttp==3.14.5", *KERNEL)
PEERS = {
    "daft": DAFT,
    "ray": RAY,
    "daft_predictions": (*DAFT, *ENGINES),
    "ray_predictions": (*RAY, *ENGINES),
    "datasets": ("datasets==5.2.0", *KERNEL),
    "webdataset": ("webdataset==1.0.2",),
    "streaming": ("mosaicml-streaming==0.13.0",),
}
ON_OURS = ("webdataset", "streaming")  # layered on this environment, with its torch and Pillow
LINKED = {peer: ("torch", "torchgen", "functorch", "nvidia") for peer in ("daft_predictions", "ray_predictions")}
INSTALL = ("-m", "pip", "install", "--quiet", "--only-binary", ":all:")


class PeerMissing(RuntimeError):
    """A peer cannot be installed here; its row in the results says so, and the others are still measured."""


def python_of(peer: str) -> Path:
    """The Python of a peer's environment. Raises PeerMissing if it cannot be installed."""
    pins = PEERS[peer]
    folder = CACHE / "peers" / f"{peer}-{sha256(' '.join(pins).encode()).hexdigest()[:8]}"
    python, finished = folder / "bin" / "python", folder / "finished"
    if not finished.exists():
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        ours = Path(sysconfig.get_path("purelib"))
        if peer in ON_OURS:
            (packages / "ours.pth").write_text(str(ours))
        run([str(python), *INSTALL, *pins])
        for package in LINKED.get(peer, ()):
            if (ours / package).is_dir():
                (packages / package).symlink_to(ours / package)
        finished.touch()
    return python


def run(command: list[str]) -> None:
    """Run one command of an installation. Raises PeerMissing with the reason if it fails."""
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise PeerMissing(f"not installed: {(made.stderr.strip() or 'no reason given').splitlines()[-1]}")
