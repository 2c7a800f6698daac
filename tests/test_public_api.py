"""Every public name says what it takes, gives, raises and writes, whence it comes, and shows itself in an example."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import diffbio_sc as dbio
from diffbio_sc.operators import Operator

# Faces on AnnData, MuData and files: what they raise is for a user to read.
FACES = ("tl", "pp", "pl", "get", "io", "metrics", "datasets")
BENEATH = (
    "operators",
    "operators.multiomics",
    "operators.epigenomics",
    "operators.losses",
    "sources",
    "sources.provenance",
    "benchmarks",
    "training",
    "scale",
)

PAGES = Path(__file__).parent.parent / "docs"

# Functions of tl that move results from one object to another and follow no method of anyone's.
WITHOUT_SOURCE = {"combine_features"}

_FIELD = re.compile(r"\.(?:obs|var|obsm|varm|obsp|varp|layers|uns|X)\b")
_SHAPE = re.compile(r"\(\w[\w ]*,[\w ,]*\)|×|\b(?:per|each|by|scalar|square|shape|axes|As in|As there)\b")
_ARRAY = re.compile(r"\b(?:ndarray|Array|Float|Int|Bool)\b")


def public(package):
    module = importlib.import_module(f"diffbio_sc.{package}")
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    objects = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {name: value for name, value in objects.items() if callable(value)}


def sections(docstring):
    """Parts of a numpy docstring by heading; what stands before the first is under ''."""
    parts, heading = {"": []}, ""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() and re.fullmatch(r"-{3,}", following.strip()):
            heading = line.strip()
            parts[heading] = []
        elif not (heading and re.fullmatch(r"-{3,}", line.strip())):
            parts[heading].append(line)
    return {heading: "\n".join(lines) for heading, lines in parts.items()}


def described(part):
    """Texts of the entries of a section, by name."""
    texts, names = {}, []
    for line in part.splitlines():
        if line and not line[0].isspace():
            names = [name.strip().lstrip("*") for name in line.split(" : ")[0].split(",")]
            texts |= dict.fromkeys(names, "")
        elif line.strip():
            for name in names:
                texts[name] += line.strip() + " "
    return texts


def shown_in_examples():
    """Words of all examples: of docstrings, and of the pages."""
    examples = [
        line
        for package in (*FACES, *BENEATH)
        for value in public(package).values()
        for line in (inspect.getdoc(value) or "").splitlines()
        if line.lstrip().startswith((">>>", "..."))
    ]
    for page in sorted(PAGES.glob("*.md")):
        examples += re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\w+", "\n".join(examples)))


def faults_of(name, value, package, shown):
    """What is missing in the docstring of a public name."""
    docstring = inspect.getdoc(value) or ""
    parts = sections(docstring)
    summary = parts[""].strip().split("\n\n")[0]
    parameters = {} if _is_operator(value) or _is_exception(value) else dict(inspect.signature(value).parameters)
    texts = described(parts.get("Parameters", "") + "\n" + parts.get("Attributes", ""))
    is_function = not inspect.isclass(value)

    if not summary.endswith((".", ":", "?")):
        yield "no sentence at its head"
    if ">>> " not in docstring and (is_function or name not in shown) and not _made_by_others(value):
        yield "no example"
    for parameter, of_signature in parameters.items():
        if not texts.get(parameter, "").strip():
            yield f"nothing on {parameter}"
        elif parameter != "rng" and _lacks_shape(str(of_signature.annotation), texts[parameter]):
            yield f"no shape of {parameter}"
        if is_function and of_signature.annotation is inspect.Parameter.empty:
            yield f"no type of {parameter}"
    if is_function and inspect.signature(value).return_annotation not in ("None", None) and "Returns" not in parts:
        yield "nothing on what it returns"
    if is_function and package in FACES and parameters and "Raises" not in parts:
        yield "nothing on errors"
    if package in ("tl", "pp") and "copy" in parameters and not _FIELD.search(parts.get("Returns", "")):
        yield "no field that it writes"
    if package == "tl" and name not in WITHOUT_SOURCE and not _has_source(docstring):
        yield "no source"
    if _is_operator(value) and value is not Operator:
        for word in ("Inputs of ``apply``", "Outputs"):
            if word not in docstring:
                yield f"no {word!r}"
        for key in (*value.required_keys, *value.optional_keys):
            if key not in docstring:
                yield f"nothing on the input {key}"
        if not re.search(r"\(\w+(?:, ?[\w ]+)*,?\)", parts.get("Notes", "")):
            yield "no shapes"


def _lacks_shape(annotation, text):
    """Whether neither the type (``Float[Array, "spots genes"]``) nor the text says the shape of an array."""
    return bool(_ARRAY.search(annotation)) and not re.search(r"\[\w+, [\"'].", annotation) and not _SHAPE.search(text)


def _is_operator(value):
    return inspect.isclass(value) and issubclass(value, Operator)


def _made_by_others(value):
    """Results and errors, which no one makes by hand."""
    return inspect.isclass(value) and issubclass(value, tuple | Exception)


def _is_exception(value):
    return inspect.isclass(value) and issubclass(value, Exception)


def _has_source(docstring):
    """A citation of its own, or of a function of tl that it leads to."""
    leads = re.findall(r":func:`~?diffbio_sc\.tl\.(\w+)`", docstring)
    return any(":cite:" in (inspect.getdoc(value) or "") for value in (getattr(dbio.tl, lead) for lead in leads)) or (
        ":cite:" in docstring
    )


@pytest.fixture(scope="module")
def shown():
    return shown_in_examples()


def test_no_package_is_forgotten():
    packages = {name for name in dbio.__all__ if inspect.ismodule(getattr(dbio, name))}
    assert packages - {"numerics"} <= {package.split(".")[0] for package in (*FACES, *BENEATH)}


@pytest.mark.parametrize("package", [*FACES, *BENEATH])
def test_every_public_name_is_documented_in_full(package, shown):
    names = public(package)
    assert names, package
    faults = {name: list(faults_of(name, value, package, shown)) for name, value in names.items()}
    assert {name: found for name, found in faults.items() if found} == {}
