"""Where data come from, and what may be claimed of them: provenance of data sets and metadata of artifacts.

The stable boundary. An operator of this package is supported: its outputs are made in this process from data whose
provenance is known. Embeddings of foundation models are imported: they are loaded, aligned and labelled as such, but no
checkpoint is run and no tokenizer read, and nothing computed from them counts as evidence for an operator. The two
never mix in one record: :func:`artifact_metadata` refuses an operator output that names a foundation model, and an
imported embedding that asks to be promoted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

SourceType = Literal["file", "download", "memory", "synthetic"]
ArtifactType = Literal["operator_output", "imported_embedding"]

_SOURCE_TYPES = ("file", "download", "memory", "synthetic")
OPERATOR_SUPPORT = "operator_support"
IMPORTED_MODEL = "imported_foundation_model"
_SCOPES = {"operator_output": OPERATOR_SUPPORT, "imported_embedding": IMPORTED_MODEL}
_EMBEDDING_SOURCES = {"operator_output": "in_process_operator", "imported_embedding": "imported_artifact"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a data set comes from.

    Parameters
    ----------
    dataset_name
        Name of the data set.
    source_type
        ``"file"``, ``"download"``, ``"memory"`` (an object that was passed) or ``"synthetic"``.
    modalities
        Names of the modalities, as ``("rna", "spatial")``.
    biological_validation
        What is known to be true of the data independently of this package, such as ``"published cell types"``;
        ``"none"`` if nothing is.
    promotion_eligible
        Whether results on these data may support a claim about biology. Synthetic data may not.
    source_path
        File or address; empty if there is none.
    sha256
        Checksum of the file; empty if it was not taken.
    citation
        Publication, or its DOI.

    Examples
    --------
    >>> from diffbio_sc.sources import provenance
    >>> made = provenance.Provenance(dataset_name="planted", source_type="synthetic", modalities=("rna", "spatial"))
    >>> made.promotion_eligible
    False
    """

    dataset_name: str
    source_type: SourceType
    modalities: tuple[str, ...]
    biological_validation: str = "none"
    promotion_eligible: bool = False
    source_path: str = ""
    sha256: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(map(str, self.modalities)))
        if not self.dataset_name:
            raise ValueError("Provenance.dataset_name must not be empty.")
        if self.source_type not in _SOURCE_TYPES:
            raise ValueError(f"Provenance.source_type must be one of {_SOURCE_TYPES}, found {self.source_type!r}.")
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"Provenance.modalities must be different names, at least one, found {self.modalities}.")
        if self.promotion_eligible and self.source_type == "synthetic":
            raise ValueError("synthetic data are evidence against regressions only: promotion_eligible must be False.")
        if self.promotion_eligible and self.biological_validation == "none":
            raise ValueError("promotion_eligible needs a biological_validation: what is known to be true of the data.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in types that h5ad, zarr and JSON store."""
        return {**dataclasses.asdict(self), "modalities": list(self.modalities)}


def artifact_metadata(
    artifact_id: str,
    *,
    artifact_type: ArtifactType,
    modalities: Sequence[str],
    foundation_source_name: str = "",
    promotion_eligible: bool = False,
    provenance: Provenance | None = None,
) -> dict[str, Any]:
    """Describe what an operator put out, or what was imported, and on which side of the stable boundary it stands.

    Parameters
    ----------
    artifact_id
        Name of the artifact, as ``"diffbio.spatial_deconvolution.proportions"``.
    artifact_type
        ``"operator_output"``, made in this process by an operator; ``"imported_embedding"``, read from a file.
    modalities
        Modalities that it was made from.
    foundation_source_name
        Model that an imported embedding comes from; empty if it is unknown.
    promotion_eligible
        Whether the artifact may support a claim about biology.
    provenance
        Of the data it was made from.

    Returns
    -------
    ``artifact_id``, ``artifact_type``, ``modalities``, ``embedding_source``, ``foundation_source_name``,
    ``stable_scope`` (``"operator_support"`` or ``"imported_foundation_model"``), ``promotion_eligible`` and
    ``provenance``, in types that h5ad, zarr and JSON store.

    Raises
    ------
    ValueError
        If the two sides of the boundary are mixed.

    Examples
    --------
    >>> from diffbio_sc.sources import provenance
    >>> made = provenance.Provenance(dataset_name="planted", source_type="synthetic", modalities=("rna", "spatial"))
    >>> record = provenance.artifact_metadata(
    ...     "mine.proportions", artifact_type="operator_output", modalities=made.modalities, provenance=made
    ... )
    >>> record["stable_scope"]
    'operator_support'
    """
    record: dict[str, Any] = {
        "artifact_id": artifact_id,
        "artifact_type": artifact_type,
        "modalities": [str(name) for name in modalities],
        "embedding_source": _EMBEDDING_SOURCES.get(artifact_type, ""),
        "foundation_source_name": foundation_source_name,
        "stable_scope": _SCOPES.get(artifact_type, ""),
        "promotion_eligible": bool(promotion_eligible),
    }
    if provenance is not None:
        record["provenance"] = provenance.to_dict()
    validate_artifact_metadata(record)
    return record


def validate_artifact_metadata(record: Mapping[str, Any]) -> None:
    """Raise unless a record keeps to the stable boundary; what :func:`artifact_metadata` makes does.

    Parameters
    ----------
    record
        Metadata of an artifact, possibly read from a file.

    Raises
    ------
    KeyError
        If a field is missing.
    ValueError
        If a value is none that is known, or the two sides of the boundary are mixed.

    Examples
    --------
    >>> from diffbio_sc.sources import provenance
    >>> record = provenance.artifact_metadata("mine", artifact_type="imported_embedding", modalities=["rna"])
    >>> provenance.validate_artifact_metadata(record)
    >>> provenance.validate_artifact_metadata({**record, "promotion_eligible": True})
    Traceback (most recent call last):
    ...
    ValueError: an imported embedding must have promotion_eligible=False: imported foundation models are outside the
    stable scope until benchmark evidence is attached.
    """
    needed = ("artifact_id", "artifact_type", "modalities", "embedding_source", "stable_scope", "promotion_eligible")
    missing = [name for name in needed if name not in record]
    if missing:
        raise KeyError(f"artifact metadata lacks {missing}; it has {sorted(map(str, record))}.")
    kind = record["artifact_type"]
    if kind not in _SCOPES:
        raise ValueError(f"artifact_type must be one of {list(_SCOPES)}, found {kind!r}.")
    if not record["artifact_id"] or not len(record["modalities"]):
        raise ValueError("artifact_id and modalities must not be empty.")
    for name, expected in (("stable_scope", _SCOPES[kind]), ("embedding_source", _EMBEDDING_SOURCES[kind])):
        if record[name] != expected:
            raise ValueError(f"{name} of an artifact of type {kind!r} must be {expected!r}, found {record[name]!r}.")
    model = record.get("foundation_source_name", "")
    if kind == "operator_output" and model:
        raise ValueError(
            f"an operator's output must not name a foundation model, found {model!r}: support of operators and "
            "imported models are kept apart. What a model made is an 'imported_embedding'."
        )
    if kind == "imported_embedding" and record["promotion_eligible"]:
        raise ValueError(
            "an imported embedding must have promotion_eligible=False: imported foundation models are outside the "
            "stable scope until benchmark evidence is attached."
        )
    provenance = record.get("provenance")
    if provenance is not None and record["promotion_eligible"] and not provenance["promotion_eligible"]:
        raise ValueError(
            f"promotion_eligible must be False for an artifact made from {provenance['dataset_name']!r}, which is not "
            "eligible itself."
        )
