"""Presence or absence of marks in bins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.cell_types import read_cell_type_bins
from diffbio_sc._anndata.matrix import read_counts
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._checks import found_object
from diffbio_sc._options import check_options
from diffbio_sc._progress import progress
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.genome.binarization import presence_thresholds, smoothed_control

if TYPE_CHECKING:
    from anndata import AnnData

Source = Intervals | str | os.PathLike[str]

_READ_EXTENSION = 200  # the middle of a fragment of this length is ChromHMM's shift of 100 bases
_TOO_MANY = 0.5


def binarize(
    data: AnnData | Mapping[str, Source] | Mapping[str, Mapping[str, Source]],
    *,
    control: str | Source | Mapping[str, Any] | None = None,
    layer: str | None = None,
    cell_type_key: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    poisson_threshold: float = 1e-4,
    fold_threshold: float = 0.0,
    count_threshold: float = 0.0,
    strict: bool = False,
    flank: int = 5,
    pseudocount: float = 1.0,
    bin_size: int = 200,
    chrom_sizes: ChromSizes | None = None,
    extension: int = _READ_EXTENSION,
    min_mapping_quality: int = 0,
    key_added: str = "binary",
    copy: bool = False,
) -> AnnData | None:
    """Call each mark present or absent in each bin, as ChromHMM does :cite:p:`Ernst2012`.

    A mark is present where the count reaches the tail of a Poisson distribution about the expected count: the mean of
    the track, or, with a control, the control's local mean scaled to the track's depth. Each mark of each cell type has
    thresholds of its own.

    Parameters
    ----------
    data
        An AnnData of counts with bins along one axis and marks along the other (see
        :func:`diffbio_sc.pp.coverage`). Or files of reads or fragments by mark, ``{"H3K4me3": "a.bam", ...}``, or by
        cell type and mark, ``{"K562": {"H3K4me3": "a.bam", ...}, ...}``: they are counted first.
    control
        Control (input). Of an AnnData the name of the track that is the control, or a mapping from mark to its
        control; marks that are not in the mapping have the uniform background. Of files another file, or one for each
        mark, or for each cell type either of these.
    layer
        Layer with the counts; default ``X``.
    cell_type_key
        Of an AnnData the column with the cell type of each bin, where the bins of several lie one after the other.
    axis
        Which axis holds the bins, if both could.
    poisson_threshold
        Tail probability of the Poisson distribution.
    fold_threshold
        Least enrichment over the expected count; 0: none is asked for. Helps where tracks are very deep.
    count_threshold
        Least count; 0: one read.
    strict
        Demand a tail below ``poisson_threshold``. By default the largest count whose tail still holds that probability
        will do, which is ChromHMM's default too.
    flank
        Bins on either side over which the control is averaged.
    pseudocount
        Reads added to each bin of the control.
    bin_size, chrom_sizes, min_mapping_quality
        Of files: see :func:`diffbio_sc.pp.coverage`.
    extension
        Of files: length to which single reads are extended; a read counts in the bin of the middle of its fragment.
        Whole fragments count in the bin of their middle.
    key_added
        Of an AnnData: the layer written, and the key in ``.uns``.
    copy
        Of an AnnData: return a copy rather than write into ``data``.

    Returns
    -------
    Of an AnnData None, or the copy. Writes

    - ``.layers[key_added]``: uint8, 1 where the mark is present; controls are called against the uniform background
    - ``.uns[key_added]``: ``params``, ``version``, ``report`` with the table ``tracks`` (``cell_type``, ``mark``,
      ``mean``, ``threshold`` (with a control its median), ``control`` and the fraction ``present``)

    Of files a new AnnData of bins by marks: ``.X`` as the layer above (float32 with NaN where a cell type lacks a mark
    that others have), ``.obs`` with ``chrom``, ``start``, ``end`` and ``cell_type``, and ``.uns`` as above.

    Raises
    ------
    KeyError
        If the layer, the column, or a control is not there.
    ValueError
        If counts are negative, missing or no whole numbers, or an option is out of range.

    Notes
    -----
    Differs from ChromHMM at the ends of chromosomes, where it divides the sum over the bins that are there by none;
    here the mean is taken. A track without reads is absent everywhere, with a warning.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000, family="poisson")
    >>> dbio.pp.binarize(adata)
    >>> adata.layers["binary"].dtype, adata.uns["binary"]["report"]["tracks"]["threshold"].tolist()
    (dtype('uint8'), [6, 6, 7, 8, 7, 10])
    """
    from anndata import AnnData

    check_options(
        binarize,
        locals(),
        replaced=("layer",),
        poisson_threshold="(0, 1)",
        fold_threshold="[0, inf)",
        count_threshold="[0, inf)",
        flank="[0, inf)",
        pseudocount="[0, inf)",
        bin_size="[1, inf) base pairs",
        extension="[1, inf) base pairs",
        min_mapping_quality="[0, inf)",
    )
    flank, min_mapping_quality = int(flank), int(min_mapping_quality)
    bin_size, extension = int(bin_size), int(extension)
    options = {
        "poisson_threshold": poisson_threshold,
        "fold_threshold": fold_threshold,
        "count_threshold": count_threshold,
        "strict": bool(strict),
        "flank": flank,
        "pseudocount": pseudocount,
    }
    _check(options)
    if not isinstance(data, AnnData):
        return _from_files(
            data,
            control,
            options,
            bin_size=bin_size,
            chrom_sizes=chrom_sizes,
            extension=extension,
            min_mapping_quality=min_mapping_quality,
            key_added=key_added,
        )
    read_counts(data, layer=layer)
    side, parts = read_cell_type_bins(data, cell_type_key, axis=axis)
    names = [str(name) for name in parts[0].genome.track_names(data)]
    require_unique(names, "names of marks", "Rename them, or sum the tracks of one mark.")
    controls = _track_controls(control, names)
    tracks = parts[0].genome.signal(data, layer)
    values = np.zeros((len(names), data.shape[0 if side == "obs" else 1]), np.uint8)
    rows = []
    for part in parts:
        sequences = part.genome.sequences
        for index, name in enumerate(names):
            counts = tracks.take(np.array([index]))[0, part.positions].astype(np.float64)
            against = None
            if name in controls:
                other = tracks.take(np.array([names.index(controls[name])]))[0, part.positions]
                against = smoothed_control(other.astype(np.float64), sequences, flank=flank, pseudocount=pseudocount)
            present, row = _call(counts, against, options)
            values[index, part.positions] = present
            rows.append({"cell_type": part.name, "mark": name, "control": controls.get(name), **row})
    params = {**options, "layer": layer, "cell_type_key": cell_type_key, "axis": side}
    record = _record(params, rows)
    layered = np.ascontiguousarray(values.T) if side == "obs" else values
    data = data.copy() if copy else data
    write_results(data, layers={key_added: layered}, uns={key_added: record})
    return data if copy else None


def _check(options: dict[str, Any]) -> None:
    tail = options["poisson_threshold"]
    if not 0 < tail < 1:
        raise ValueError(f"poisson_threshold must lie between 0 and 1, found {tail!r}.")
    for name in ("fold_threshold", "count_threshold", "pseudocount"):
        if not 0 <= options[name] < np.inf:
            raise ValueError(f"{name} must be a number of at least 0, found {options[name]!r}.")
    flank = options["flank"]
    if int(flank) != flank or flank < 0:
        raise ValueError(f"flank must be a whole number of bins of at least 0, found {flank!r}.")
    if options["pseudocount"] == 0:
        warnings.warn(
            "with pseudocount=0 one read makes a mark present wherever the control has none.", UserWarning, stacklevel=3
        )


def _track_controls(control: Any, names: list[str]) -> dict[str, str]:
    """Control of each mark that has one."""
    if control is None:
        return {}
    if isinstance(control, str):
        chosen = {name: control for name in names if name != control}
    elif isinstance(control, Mapping):
        chosen = {str(mark): str(name) for mark, name in control.items()}
    else:
        raise TypeError(
            f"control of an AnnData must be the name of a track or a mapping from mark to track, found "
            f"{type(control).__name__}; files of a control go with files of marks."
        )
    missing = [name for name in {*chosen, *chosen.values()} if name not in names]
    if missing or (isinstance(control, str) and control not in names):
        raise KeyError(f"control names tracks {missing or [control]} that are not there; tracks: {names[:20]}.")
    return chosen


def _call(
    counts: np.ndarray, control: np.ndarray | None, options: dict[str, Any]
) -> tuple[np.ndarray, dict[str, float | int]]:
    """Presence of one mark of one cell type, and what it rests on."""
    settings = {
        "tail": options["poisson_threshold"],
        "fold": options["fold_threshold"],
        "least": options["count_threshold"],
        "strict": options["strict"],
    }
    mean = counts.mean()
    if mean == 0:
        return np.zeros(len(counts), bool), {"mean": 0.0, "threshold": 1, "present": 0.0}
    if control is None:
        threshold = presence_thresholds(np.array(mean), **settings)
    else:
        # Few different means of whole numbers: each threshold is found once.
        levels, inverse = np.unique(control, return_inverse=True)
        threshold = presence_thresholds(levels * (mean / control.mean()), **settings)[inverse]
    present = counts >= threshold
    return present, {"mean": mean, "threshold": int(np.median(threshold)), "present": float(present.mean())}


def _record(params: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    import pandas as pd

    table = pd.DataFrame(rows, columns=["cell_type", "mark", "mean", "threshold", "present", "control"])
    silent, loud = (table["mean"] == 0).to_numpy(), (table["present"] > _TOO_MANY).to_numpy()
    if silent.any():
        warnings.warn(
            f"marks without a read are absent everywhere: {table[silent]['mark'].tolist()[:10]}.",
            UserWarning,
            stacklevel=4,
        )
    if loud.any():
        warnings.warn(
            f"marks {table[loud]['mark'].tolist()[:10]} are present in more than {_TOO_MANY:.0%} of the bins, which "
            "tells states little: raise fold_threshold, or lower poisson_threshold.",
            UserWarning,
            stacklevel=4,
        )
    table["cell_type"] = table["cell_type"].fillna("").astype(str)
    table["control"] = table["control"].fillna("").astype(str)
    return make_record(params, {"tracks": table})


def _from_files(
    source: Any, control: Any, options: dict[str, Any], *, key_added: str, extension: int, **counting: Any
) -> AnnData:
    """Count files of each cell type and call their marks."""
    import anndata
    import pandas as pd

    if not isinstance(source, Mapping) or not source:
        raise TypeError(
            f"data must be an AnnData, or files by mark or by cell type and mark in a mapping, "
            f"{found_object(source)}{' without entries' if isinstance(source, Mapping) else ''}."
        )
    nested = [isinstance(item, Mapping) for item in source.values()]
    if any(nested) and not all(nested):
        raise TypeError("data must hold files by mark, or for each cell type a mapping from mark to file, found both.")
    cell_types: dict[str, Any] = dict(source) if all(nested) else {"sample": source}
    chosen = control if all(nested) and isinstance(control, Mapping) and set(control) <= set(cell_types) else None
    marks = list(dict.fromkeys(mark for files in cell_types.values() for mark in files))
    whole = all(set(files) == set(marks) for files in cell_types.values())
    parts, tables, rows = [], [], []
    for name, files in progress(cell_types.items(), "Cell types", total=len(cell_types)):
        if not files:
            raise ValueError(f"data must name at least one mark of {name!r}, found none.")
        mine = chosen.get(name) if chosen is not None else control
        counts, table, sequences = _count(files, mine, extension, counting)
        block = np.full((len(table), len(marks)), np.nan, np.float32) if not whole else None
        block = np.zeros((len(table), len(marks)), np.uint8) if block is None else block
        for mark in files:
            own = mine.get(mark) if isinstance(mine, Mapping) else mine
            against = None
            if own is not None:
                against = smoothed_control(
                    counts["control", str(id(own))],
                    sequences,
                    flank=options["flank"],
                    pseudocount=options["pseudocount"],
                )
            present, row = _call(counts["mark", mark], against, options)
            block[:, marks.index(mark)] = present
            rows.append({"cell_type": name, "mark": mark, "control": None if own is None else _name(own), **row})
        parts.append(block)
        tables.append(table.assign(cell_type=name))
    obs = pd.concat(tables)
    obs["cell_type"] = pd.Categorical(obs["cell_type"], categories=list(cell_types))
    obs["chrom"] = pd.Categorical(obs["chrom"].astype(str), categories=list(dict.fromkeys(obs["chrom"].astype(str))))
    if len(cell_types) > 1:
        obs.index = obs["cell_type"].astype(str) + ":" + obs.index
    params = {**options, "extension": extension, **counting, "cell_type_key": "cell_type"}
    params["chrom_sizes"] = None if counting["chrom_sizes"] is None else _name(counting["chrom_sizes"])
    adata = anndata.AnnData(np.concatenate(parts), obs=obs, var=pd.DataFrame(index=[str(mark) for mark in marks]))
    adata.uns[key_added] = _record(params, rows)
    return adata


def _name(item: Any) -> str:
    if isinstance(item, Intervals):
        return item.name
    return os.path.basename(os.fspath(item)) if isinstance(item, str | os.PathLike) else type(item).__name__


def _count(
    files: Mapping[str, Source], control: Any, extension: int, counting: dict[str, Any]
) -> tuple[dict[tuple[str, str], np.ndarray], Any, list[np.ndarray]]:
    """Counts of the marks and controls of one cell type, their bins and sequences of bins."""
    from diffbio_sc._anndata.genome_axis import make_genome_axis
    from diffbio_sc.io import read_bam, read_intervals
    from diffbio_sc.pp._coverage import coverage

    if isinstance(control, Mapping):
        unknown = [mark for mark in control if mark not in files]
        if unknown:
            raise KeyError(f"control names marks {unknown} that are not there; marks: {list(files)}.")
        controls = list(control.values())
    else:
        controls = [] if control is None else [control]
    sources = {("mark", mark): file for mark, file in files.items()}
    sources.update({("control", str(id(item))): item for item in controls})
    opened = {}
    for key, item in sources.items():
        if not isinstance(item, Intervals):
            bam = os.fspath(item).lower().endswith(".bam")
            quality = counting["min_mapping_quality"]
            item = read_bam(item, min_mapping_quality=quality) if bam else read_intervals(item)
        if not item.paired and "strand" in item.columns:
            item = item.extend(extension)
        opened["\t".join(key)] = item
    tracks = coverage(opened, bin_size=counting["bin_size"], chrom_sizes=counting["chrom_sizes"], ends="midpoint")
    genome = make_genome_axis(tracks.var, axis="var", name="bins")
    counts = {
        key: np.asarray(tracks.X[[row]].toarray()[0], np.float64)  # type: ignore[index]
        for row, key in enumerate(sources)
    }
    return counts, tracks.var, genome.sequences
