"""Check what a source archive and a wheel hold: ``python .ci/archives.py FOLDER``."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

NEEDED_IN_SOURCES = ("docs/index.md", "docs/conf.py", "notebooks/", "tests/", "benchmarks/baseline/", "README.md")
NEEDED_IN_WHEEL = ("diffbio_sc/__init__.pyi", "diffbio_sc/py.typed", "diffbio_sc/references.bib")


def main(folder: Path) -> int:
    """Return 0 if the archives in a folder hold what they should."""
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(archive) as sources:
        in_sources = [name.split("/", 1)[-1] for name in sources.getnames()]
    with zipfile.ZipFile(wheel) as package:
        in_wheel = package.namelist()
        metadata = next(name for name in in_wheel if name.endswith(".dist-info/METADATA"))
        readme = message_from_bytes(package.read(metadata)).get_payload()
    faults = [f"the source archive has no {need}" for need in NEEDED_IN_SOURCES if not _any(in_sources, need)]
    faults += [f"the wheel has no {need}" for need in NEEDED_IN_WHEEL if not _any(in_wheel, need)]
    faults += [f"the wheel has {name}" for name in in_wheel if not name.startswith(("diffbio_sc/", "diffbio_sc-"))]
    faults += [f"the source archive has {name}" for name in in_sources if "docs/_build" in name or ".pyc" in name]
    if "](docs/" in readme or "](notebooks" in readme:
        faults.append("the README of the wheel has links that lead nowhere on a package index")
    print("\n".join(faults) or f"{archive.name}: {len(in_sources)} files; {wheel.name}: {len(in_wheel)} files")
    return int(bool(faults))


def _any(names: list[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
