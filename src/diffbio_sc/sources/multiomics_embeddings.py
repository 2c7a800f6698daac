"""Imported embeddings of several modalities, aligned by the identifiers of their samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.modalities import is_mudata, require_object
from diffbio_sc._anndata.modality_results import write_modality_results
from diffbio_sc._anndata.results import check_key, make_record
from diffbio_sc._checks import name_heads
from diffbio_sc._warnings import unheard
from diffbio_sc.sources.artifact_errors import MisalignedArtifactError
from diffbio_sc.sources.download import file_sha256
from diffbio_sc.sources.embedding_files import EmbeddingTable, check_embeddings, read_embeddings, require_different
from diffbio_sc.sources.provenance import Provenance, artifact_metadata

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

Join = Literal["strict", "intersection"]
_JOINS = ("strict", "intersection")


class MultiOmicsEmbeddingSource:
    """Embeddings of one or several modalities over the same samples, read from files and aligned by ``sample_ids``.

    A loader and a contract of metadata, not support of the models that made the embeddings: no checkpoint is loaded, no
    tokenizer read. What it yields is labelled ``imported_embedding``, scope ``imported_foundation_model``, and may not
    be promoted to evidence (:mod:`diffbio_sc.sources.provenance`).

    Parameters
    ----------
    embeddings
        Matrix, data frame (its index names the samples) or :class:`~diffbio_sc.sources.embedding_files.EmbeddingTable`
        of each modality. :meth:`from_path` and :meth:`from_paths` read files.
    sample_ids
        Identifiers of the rows of plain matrices, the same for all.
    join
        ``"strict"``: all modalities have the same samples, in any order, or it is an error. ``"intersection"``: the
        samples that all have are kept; ``report`` counts the rest, and a warning names them.
    model_names
        Model that made the embeddings of each modality, for the provenance.
    provenance
        Of each modality; by default that of objects in memory.

    Attributes
    ----------
    modalities
        Names of the modalities.
    sample_ids
        Identifiers of the samples, in the order of the first modality.
    embeddings
        For each modality the matrix (samples, dimensions), float32, rows in the order of ``sample_ids``.
    dimensions
        For each modality the names of the dimensions.
    report
        For each modality the number of samples ``found``, ``kept`` and ``left_out``.
    artifacts
        For each modality its metadata, see :func:`~diffbio_sc.sources.provenance.artifact_metadata`.

    Raises
    ------
    ArtifactError
        If embeddings are not finite matrices, identifiers occur twice, or do not match.

    Examples
    --------
    >>> import numpy as np
    >>> from diffbio_sc.sources import MultiOmicsEmbeddingSource
    >>> rna = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> source = MultiOmicsEmbeddingSource({"rna": rna, "atac": rna[:, :1]}, sample_ids=["a", "b", "c"])
    >>> source.align(["c", "a"], join="intersection", quiet=True).embeddings["rna"].tolist()
    [[5.0, 6.0], [1.0, 2.0]]
    """

    def __init__(
        self,
        embeddings: Mapping[str, EmbeddingTable | pd.DataFrame | np.ndarray],
        *,
        sample_ids: Sequence[Any] | None = None,
        join: Join = "strict",
        model_names: Mapping[str, str] | None = None,
        provenance: Mapping[str, Provenance] | None = None,
    ):
        _check_join(join)
        if not embeddings:
            raise ValueError("embeddings must name at least one modality.")
        tables = {}
        for name, values in embeddings.items():
            check_key(name, "a modality's name")
            tables[name] = _as_table(name, values, sample_ids)
        first = next(iter(tables.values())).sample_ids
        ids = first
        for table in tables.values():
            ids = ids[ids.isin(table.sample_ids)]
        if join == "strict":
            _require_same_samples(tables)
        elif not len(ids):
            raise MisalignedArtifactError(
                "the modalities share no sample: "
                + "; ".join(f"{name} has {name_heads(list(table.sample_ids), 3)}" for name, table in tables.items())
                + "."
            )
        names = dict(model_names or {})
        unknown = set(names) - set(tables) | set(provenance or {}) - set(tables)
        if unknown:
            raise KeyError(f"model_names and provenance name modalities that are not there: {sorted(unknown)}.")
        self.modalities = tuple(tables)
        self.sample_ids = ids
        self.embeddings = {name: table.values[table.sample_ids.get_indexer(ids)] for name, table in tables.items()}
        self.dimensions = {name: list(table.dimensions) for name, table in tables.items()}
        self.report = {
            name: {"found": len(table.values), "kept": len(ids), "left_out": len(table.values) - len(ids)}
            for name, table in tables.items()
        }
        left_out = {name: one["left_out"] for name, one in self.report.items() if one["left_out"]}
        if left_out:
            warnings.warn(
                f"{len(ids)} samples are in all modalities; of others are left out: {left_out}.",
                UserWarning,
                stacklevel=2,
            )
        self._model_names = {name: names.get(name, "") for name in tables}
        self._provenance = {
            name: (provenance or {}).get(name)
            or Provenance(dataset_name=f"{name} embeddings", source_type="memory", modalities=(name,))
            for name in tables
        }
        self.artifacts = {
            name: artifact_metadata(
                f"imported.{name}.embeddings",
                artifact_type="imported_embedding",
                modalities=(name,),
                foundation_source_name=self._model_names[name],
                provenance=self._provenance[name],
            )
            for name in tables
        }

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        modality: str = "rna",
        key: str | None = None,
        sample_ids: Sequence[Any] | None = None,
        model_name: str = "",
    ) -> MultiOmicsEmbeddingSource:
        """Read the embeddings of one modality.

        Parameters
        ----------
        path, key, sample_ids
            As in :func:`~diffbio_sc.sources.embedding_files.read_embeddings`.
        modality
            Name of the modality.
        model_name
            Model that made the embeddings.

        Returns
        -------
        The source.
        """
        return cls.from_paths(
            {modality: path},
            keys=None if key is None else {modality: key},
            sample_ids=None if sample_ids is None else {modality: sample_ids},
            model_names={modality: model_name},
        )

    @classmethod
    def from_paths(
        cls,
        paths: Mapping[str, str | os.PathLike[str]],
        *,
        keys: Mapping[str, str] | None = None,
        sample_ids: Mapping[str, Sequence[Any]] | None = None,
        join: Join = "strict",
        model_names: Mapping[str, str] | None = None,
    ) -> MultiOmicsEmbeddingSource:
        """Read the embeddings of several modalities, one file each.

        Parameters
        ----------
        paths
            File of each modality.
        keys, sample_ids
            For each modality that needs it, as in :func:`~diffbio_sc.sources.embedding_files.read_embeddings`.
        join, model_names
            As in the class.

        Returns
        -------
        The source. Its provenance holds path and checksum of each file.
        """
        _check_join(join)
        tables, provenance = {}, {}
        for name, path in paths.items():
            tables[name] = read_embeddings(path, key=(keys or {}).get(name), sample_ids=(sample_ids or {}).get(name))
            provenance[name] = Provenance(
                dataset_name=f"{name} embeddings",
                source_type="file",
                modalities=(name,),
                source_path=os.fspath(path),
                sha256="" if os.path.isdir(path) else file_sha256(path),
            )
        return cls(tables, join=join, model_names=model_names, provenance=provenance)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    def align(
        self, sample_ids: Sequence[Any], *, join: Join = "strict", quiet: bool = False
    ) -> MultiOmicsEmbeddingSource:
        """Return the source with its samples in the order of ``sample_ids``.

        Parameters
        ----------
        sample_ids
            Identifiers in the order wanted, as ``adata.obs_names``.
        join
            ``"strict"``: these and no others are in the source, or it is an error. ``"intersection"``: those of them
            that are in the source.
        quiet
            Whether samples that are left out go without a warning.

        Raises
        ------
        DuplicatedSamplesError
            If an identifier is given twice.
        MisalignedArtifactError
            If identifiers are missing on a side, or none is shared.
        """
        _check_join(join)
        wanted = pd.Index([str(name) for name in sample_ids], dtype=object)
        require_different(wanted, "sample_ids")
        shared = wanted[wanted.isin(self.sample_ids)]
        if join == "strict":
            missing, further = wanted.difference(self.sample_ids), self.sample_ids.difference(wanted)
            if len(missing) or len(further):
                raise MisalignedArtifactError(
                    f"the source and the samples given must have the same identifiers: {len(missing)} are not in the "
                    f"source {name_heads(list(missing), 3)}, {len(further)} are in the source alone "
                    f"{name_heads(list(further), 3)}. join='intersection' takes what both have."
                )
        if not len(shared):
            raise MisalignedArtifactError(
                f"no sample is shared: the source has {name_heads(list(self.sample_ids), 3)}, given are "
                f"{name_heads(list(wanted), 3)}."
            )
        rows = self.sample_ids.get_indexer(shared)
        if not quiet and len(shared) < max(len(wanted), len(self.sample_ids)):
            warnings.warn(
                f"{len(shared)} samples are kept, of {len(self.sample_ids)} in the source and {len(wanted)} given.",
                UserWarning,
                stacklevel=2,
            )
        return MultiOmicsEmbeddingSource(
            {
                name: EmbeddingTable(values[rows], shared, self.dimensions[name])
                for name, values in self.embeddings.items()
            },
            model_names=self._model_names,
            provenance=self._provenance,
        )

    def align_to_reference_sample_ids(
        self, *, reference_sample_ids: Sequence[Any], require_sample_ids: bool = True
    ) -> MultiOmicsEmbeddingSource:
        """Return the source in the order of a reference; :meth:`align`, strict if ``require_sample_ids``."""
        return self.align(reference_sample_ids, join="strict" if require_sample_ids else "intersection")

    def to_mudata(self, *, key: str = "X_embedding") -> MuData:
        """Return a MuData with a modality for each, which holds the embeddings in ``.obsm[key]`` and no features."""
        import anndata
        import mudata

        check_key(key, "key")
        modalities = {}
        for name in self.modalities:
            adata = anndata.AnnData(obs=pd.DataFrame(index=self.sample_ids.astype(str)))
            adata.obsm[key] = self.embeddings[name].copy()
            adata.uns[key] = self._record(name)
            modalities[name] = adata
        with unheard(".*pull_on_update"):
            return mudata.MuData(modalities)

    def write_to(self, data: MuData | AnnData, *, key_added: str = "X_embedding", join: Join = "strict") -> None:
        """Write the embeddings into an object, aligned to its cells, all or nothing.

        Parameters
        ----------
        data
            MuData: each modality of the source goes to ``.mod[modality].obsm[key_added]``. AnnData: they go to
            ``.obsm[key_added + "_" + modality]``.
        key_added
            Name of the matrices. Metadata of the artifacts go to ``.uns[key_added]``.
        join
            ``"strict"``: cells of the object and samples of the source are the same. ``"intersection"``: cells that
            the source lacks get NaN, and a warning counts them; samples that are no cells are left out.

        Raises
        ------
        KeyError
            If the MuData lacks a modality of the source.
        DuplicatedSamplesError, MisalignedArtifactError
            If names do not match; nothing is written then.
        """
        require_object(data, "data")
        check_key(key_added)
        _check_join(join)
        record = {"artifacts": {name: self._record(name) for name in self.modalities}}
        if not is_mudata(data):
            matrices = {f"{key_added}_{m}": self._rows(data.obs_names, m, join) for m in self.modalities}
            write_modality_results(data, obsm=matrices, uns={key_added: record})
            return
        absent = [name for name in self.modalities if name not in data.mod]
        if absent:
            raise KeyError(f"data has no modalities {absent}; it has {list(data.mod)}.")
        of_modality = {m: {key_added: self._rows(data.mod[m].obs_names, m, join)} for m in self.modalities}
        write_modality_results(data, modality_obsm=of_modality, uns={key_added: record})

    def operator_inputs(self) -> dict[str, np.ndarray]:
        """Return the embeddings under the names that :class:`DifferentiableMultiOmicsVAE` reads.

        Two modalities are ``rna_counts`` and ``atac_counts``, other numbers ``modality_<i>_counts``, in the order of
        ``modalities``. Their likelihood is ``"gaussian"``.
        """
        names = ["rna", "atac"] if len(self.modalities) == 2 else [f"modality_{i}" for i in range(len(self.modalities))]
        return {f"{one}_counts": self.embeddings[m].copy() for one, m in zip(names, self.modalities, strict=True)}

    def _record(self, modality: str) -> dict[str, Any]:
        artifact = self.artifacts[modality]
        report = {**self.report[modality], "samples": len(self)}
        return make_record({"modality": modality}, report, artifact=artifact, dimensions=self.dimensions[modality])

    def _rows(self, cells: pd.Index, modality: str, join: Join) -> np.ndarray:
        aligned = self.align(cells, join=join, quiet=True)
        values = np.full((len(cells), self.embeddings[modality].shape[1]), np.nan, np.float32)
        values[pd.Index(cells.astype(str)).get_indexer(aligned.sample_ids)] = aligned.embeddings[modality]
        lacking = len(cells) - len(aligned)
        if lacking:
            warnings.warn(
                f"{lacking} of {len(cells)} cells have no embedding of {modality!r} in the source: theirs is NaN.",
                UserWarning,
                stacklevel=4,
            )
        return values


def _as_table(name: str, values: Any, sample_ids: Sequence[Any] | None) -> EmbeddingTable:
    where = f"embeddings[{name!r}]"
    if isinstance(values, EmbeddingTable):
        return check_embeddings(values.values, list(values.sample_ids), values.dimensions, where=where)
    if isinstance(values, pd.DataFrame):
        return check_embeddings(values.to_numpy(), list(values.index), list(values.columns), where=where)
    if sample_ids is None:
        raise MisalignedArtifactError(
            f"{where} is a plain matrix, and rows are never aligned by their order alone: pass sample_ids or a table."
        )
    return check_embeddings(values, sample_ids, where=where)


def _require_same_samples(tables: Mapping[str, EmbeddingTable]) -> None:
    first, *others = tables
    reference = tables[first].sample_ids
    for name in others:
        missing = reference.difference(tables[name].sample_ids)
        further = tables[name].sample_ids.difference(reference)
        if len(missing) or len(further):
            raise MisalignedArtifactError(
                f"all modalities must have the same samples: {name!r} lacks {len(missing)} of {first!r} "
                f"{name_heads(list(missing), 3)} and has {len(further)} others {name_heads(list(further), 3)}. "
                "join='intersection' takes what all have."
            )


def _check_join(join: Any) -> None:
    if join not in _JOINS:
        raise ValueError(f"join must be one of {list(_JOINS)}, found {join!r}.")
