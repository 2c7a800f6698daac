"""The commands: which function each calls, what it reads and what it writes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffbio_sc._cli import objects

SUITE = "suite"
_OBJECTS = (".h5ad", ".zarr")
_OUTPUT = "Result: .h5ad or .zarr, with all that the input holds."
_TABLE = "Also write the result as a table (.tsv, .csv, or - for standard output)."


@dataclass(frozen=True)
class Option:
    """Option of a command that its function does not have."""

    name: str
    kind: Any
    default: Any
    text: str
    alias: str | None = None


@dataclass(frozen=True)
class Call:
    """What the shell has given: paths, the command's own options, and arguments of the function."""

    paths: tuple[str, ...]
    own: Mapping[str, Any]
    keywords: dict[str, Any]
    force: bool


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    text: str
    run: Callable[[Call], None] | None
    face: str | None = None
    arguments: tuple[tuple[str, str], ...] = ()
    many: bool = False
    options: tuple[Option, ...] = ()
    without: tuple[str, ...] = ()
    examples: str = ""

    def function(self) -> Callable[..., Any] | None:
        """Return the function of the face whose options the command takes."""
        if self.face is None:
            return None
        module, name = self.face.rsplit(".", 1)
        return getattr(importlib.import_module(f"diffbio_sc.{module}"), name)


def _output(text: str = _OUTPUT, default: Any = None) -> Option:
    return Option("output", str if default is None else str | None, default, text, "-o")


_TABLE_OPTION = Option("table", str | None, None, _TABLE)
_RESOLUTION = Option("resolution", int | None, None, "Resolution of a file that holds several, in base pairs.")


def _ready(call: Call, *names: str, endings: tuple[str, ...] = _OBJECTS) -> None:
    """Check the paths of results before any work."""
    objects.check_object_path(call.own["output"], endings)
    for name in ("output", *names):
        objects.may_write(call.own[name], call.force)


def _annotate(call: Call, face: str, get: str, *, endings: tuple[str, ...] = _OBJECTS) -> None:
    """Read an object, call a function of ``tl`` on it in place, write it, and a table of ``get``."""
    from diffbio_sc import get as getters
    from diffbio_sc import tl

    _ready(call, "table", endings=endings)
    data = objects.read_object(call.paths[0])
    others = [_reference(path) for path in call.paths[1:]]
    getattr(tl, face)(data, *others, **call.keywords)
    objects.write_object(data, call.own["output"], force=call.force)
    if call.own["table"] is not None:
        objects.write_table(getattr(getters, get)(data), call.own["table"])


def _reference(path: str) -> Any:
    """Read single cells, or a table of signatures with one row per cell type."""
    if objects.ending(path) in {".csv", ".tsv", ".txt"}:
        import pandas as pd

        return pd.read_csv(objects.must_exist(path), sep=None, engine="python", index_col=0)
    return objects.read_object(path)


def _demo(call: Call) -> None:
    from diffbio_sc._demo import run

    run(call.own["output"], call.own["seed"])


def _multiomics_vae(call: Call) -> None:
    from diffbio_sc import tl

    _ready(call, "table", endings=(".h5mu", ".h5ad", ".zarr"))
    data = objects.read_object(call.paths[0])
    tl.multiomics_vae(data, **call.keywords)
    objects.write_object(data, call.own["output"], force=call.force)
    if call.own["table"] is not None:
        import pandas as pd

        embedding = data.obsm[call.keywords.get("key_added", "X_multiomics_vae")]
        columns = [f"latent_{index}" for index in range(embedding.shape[1])]
        table = pd.DataFrame(embedding, columns=columns)
        table.insert(0, "cell", data.obs_names)
        objects.write_table(table, call.own["table"])


def _named_sources(paths: tuple[str, ...]) -> dict[str, str] | str:
    """One path, or paths by the name of the sample: ``NAME=PATH``, else the name of the file."""
    if len(paths) == 1 and "=" not in paths[0]:
        return objects.must_exist(paths[0])
    named: dict[str, str] = {}
    for path in paths:
        name, separator, rest = path.partition("=")
        if not separator or os.path.exists(path):
            name, rest = os.path.basename(path).split(".")[0], path
        if name in named:
            raise ValueError(f"two samples are called {name!r}; name them as NAME=PATH.")
        named[name] = objects.must_exist(rest)
    return named


def _labels(path: str) -> Any:
    """Label of each barcode from two columns of a table with or without a header."""
    import pandas as pd

    table = pd.read_csv(objects.must_exist(path), sep=None, engine="python", header=None, dtype=str)
    if table.shape[1] < 2:
        raise ValueError(f"{path!r} must have two columns, barcode and label, found {table.shape[1]}.")
    if set(table.iloc[0, :2].str.lower()) & {"barcode", "barcodes", "cell", "label", "cell_type", "celltype"}:
        table = table.iloc[1:]
    return pd.Series(table[1].to_numpy(), index=table[0].to_numpy())


def _peaks(call: Call) -> None:
    from diffbio_sc import io, tl

    output = call.own["output"]
    source = _named_sources(call.paths)
    labels, control = call.own["groupby"], call.own["control"]
    keywords = dict(call.keywords)
    several = labels is not None or (isinstance(source, dict) and not keywords.get("replicate", False))
    write: Any = partial(_write_regions, io.write_narrowpeak)
    if several:
        if output == "-" or objects.ending(output):
            raise ValueError(f"peaks of several samples or groups go to a folder (--output), found {output!r}.")
        if os.path.isdir(output) and os.listdir(output) and not call.force:
            raise FileExistsError(f"the folder {output!r} is not empty; pass --force to write into it.")
    else:
        objects.may_write(output, call.force)
    if labels is not None:
        keywords["groupby"] = _labels(labels)
    if control:
        keywords["control"] = _named_sources(tuple(control)) if several or len(control) > 1 else control[0]
    result = tl.call_peaks(source, **keywords)
    if not several:
        write(result, output)
        return
    os.makedirs(output, exist_ok=True)
    for name, table in result.items():
        write(table, os.path.join(output, f"{_file_name(name)}.narrowPeak"))


def _file_name(name: str) -> str:
    """Name of a group as the name of a file."""
    kept = "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in str(name))
    return kept or "_"


def _write_regions(narrowpeak: Callable[..., None], table: Any, path: str) -> None:
    """Write peaks as their ending says: BED, a table with all columns, else narrowPeak."""
    kind = objects.ending(path) if path != "-" else ""
    if kind in {".tsv", ".csv"}:
        objects.write_table(table, path)
    elif kind == ".bed":
        from diffbio_sc import io

        io.write_bed(table[["chrom", "start", "end", *(["name"] if "name" in table else [])]], path)
    else:
        objects.write_stream(partial(narrowpeak, table), path)


def _coverage(call: Call) -> None:
    from diffbio_sc import io, pp

    output = call.own["output"]
    _ready(call, endings=(".h5ad", ".zarr", ".bw", ".bigwig"))
    keywords = dict(call.keywords)
    groupby = call.own["groupby"]
    if groupby is not None:
        keywords["groupby"] = groupby if groupby in {"sample", "barcode"} else _labels(groupby)
    counts = pp.coverage(_named_sources(call.paths), **keywords)
    if objects.ending(output) in {".bw", ".bigwig"}:
        io.write_bigwig(counts, output)
    else:
        objects.write_object(counts, output, force=call.force)


def _states(call: Call) -> None:
    from diffbio_sc import get, io, tl

    _ready(call, "segments", "model_file")
    path = objects.must_exist(call.paths[0])
    binary = os.path.isdir(path) and objects.ending(path) != ".zarr" or objects.ending(path) == ".txt"
    data = io.read_chromhmm_binary(path, bin_size=call.own["bin_size"]) if binary else objects.read_object(path)
    tl.chromatin_states(data, **call.keywords)
    objects.write_object(data, call.own["output"], force=call.force)
    key = call.keywords.get("key_added", "chromatin_states")
    if call.own["segments"] is not None:
        table = get.chromatin_states(data, key=key)
        objects.write_stream(partial(io.write_segments, table), call.own["segments"])
    if call.own["model_file"] is not None:
        io.write_chromhmm_model(get.chromatin_state_model(data, key=key), call.own["model_file"])


def _contacts(call: Call) -> None:
    from diffbio_sc import get, tl

    tables: dict[str, Any] = {name: getattr(get, name) for name in ("loops", "tads", "insulation", "compartments")}
    _ready(call, *tables)
    data = objects.read_object(call.paths[0], resolution=call.own["resolution"])
    tl.contacts(data, **call.keywords)
    objects.write_object(data, call.own["output"], force=call.force)
    for name, table in tables.items():
        if call.own[name] is not None:
            objects.write_table(table(data), call.own[name])


def _contextual(call: Call) -> None:
    from diffbio_sc import get, tl

    _ready(call, "table")
    data = objects.read_object(call.paths[0])
    fasta = call.own["fasta"]
    tl.contextual(data, fasta=None if fasta is None else objects.must_exist(fasta), **call.keywords)
    objects.write_object(data, call.own["output"], force=call.force)
    if call.own["table"] is not None:
        objects.write_table(get.contextual(data, key=call.keywords.get("key_added", "contextual")), call.own["table"])


def _convert(call: Call) -> None:
    from diffbio_sc import io

    source, target = call.paths
    objects.may_write(target, call.force)
    objects.must_exist(source)
    kinds = objects.ending(source), objects.ending(target)
    stores = {".h5ad", ".h5mu", ".zarr", ".cool", ".mcool", ".hic"}
    if kinds[0] in stores and kinds[1] in {".h5ad", ".h5mu", ".zarr", ".cool"}:
        data = objects.read_object(source, resolution=call.own["resolution"])
        objects.write_object(data, target, force=call.force)
    elif kinds[0] in {".bedgraph", ".bdg", ".bg"} and kinds[1] in {".bw", ".bigwig"}:
        io.write_bigwig(io.read_bedgraph(source), target)
    elif kinds[0] == ".narrowpeak" and (target == "-" or kinds[1] in {".bed", ".tsv", ".csv"}):
        _write_regions(io.write_narrowpeak, io.read_narrowpeak(source), target)
    else:
        raise ValueError(
            f"cannot convert {source!r} to {target!r}; what can be: .h5ad and .zarr, .h5mu and .zarr, .cool, .mcool "
            "and .hic to .h5ad, .zarr and .cool, bedGraph to bigWig, narrowPeak to .bed, .tsv and .csv."
        )


def _info(call: Call) -> None:
    from diffbio_sc._cli.environment import describe

    rows = describe()
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


COMMANDS = (
    Command(
        "demo",
        "Deconvolve a tissue of real blood cells with known composition.",
        _demo,
        options=(
            Option("output", str, ".", "Folder for the figure and the h5ad file.", "-o"),
            Option("seed", int, 0, "Seed of the mixture."),
        ),
        examples="diffbio-sc demo --output results",
    ),
    Command(
        "deconvolve",
        "Cell types of spatial spots, from a reference of single cells.",
        partial(_annotate, face="deconvolve", get="deconvolution"),
        face="tl.deconvolve",
        arguments=(
            ("spots", "Spots with raw counts: .h5ad or .zarr."),
            (
                "reference",
                "Single cells with raw counts (.h5ad, .zarr), or signatures, a row per type (.csv, .tsv).",
            ),
        ),
        options=(_output(), _TABLE_OPTION),
        examples="diffbio-sc deconvolve spots.h5ad cells.h5ad --cell-type-key cell_type -o result.h5ad --table -",
    ),
    Command(
        "spatial-genes",
        "Genes whose expression depends on the place.",
        partial(_annotate, face="spatial_genes", get="spatial_genes"),
        face="tl.spatial_genes",
        arguments=(("spots", "Spots with raw counts and coordinates: .h5ad or .zarr."),),
        options=(_output(), _TABLE_OPTION),
        examples="diffbio-sc spatial-genes spots.h5ad -o result.h5ad --table genes.tsv",
    ),
    Command(
        "multiomics-vae",
        "Joint embedding of RNA, chromatin and proteins.",
        _multiomics_vae,
        face="tl.multiomics_vae",
        arguments=(("mdata", "Cells of several modalities: .h5mu, .zarr, or .h5ad with feature_types."),),
        options=(
            _output("Result: .h5mu, .h5ad or .zarr, with all that the input holds."),
            Option("table", str | None, None, "Also write the embedding (.tsv, .csv, or - for standard output)."),
        ),
        examples="diffbio-sc multiomics-vae cells.h5mu -o embedded.h5mu --batch-key donor",
    ),
    Command(
        "peaks",
        "Peaks of ChIP-seq, ATAC-seq, or cell types.",
        _peaks,
        face="tl.call_peaks",
        arguments=(("source", "Fragments or reads (.tsv.gz, .bam, .bedpe, .bed); several as NAME=PATH."),),
        many=True,
        options=(
            Option(
                "output", str, "-", "narrowPeak, .bed, .tsv, .csv, or - (standard output); a folder for several.", "-o"
            ),
            Option("groupby", str | None, None, "Table of two columns, barcode and label: one set of peaks per label."),
            Option("control", list[str] | None, None, "Control of the treatment; one for each sample as NAME=PATH."),
        ),
        without=("groupby", "control"),
        examples=(
            "diffbio-sc peaks chip.bam --control input.bam -o peaks.narrowPeak\n"
            "diffbio-sc peaks fragments.tsv.gz --groupby labels.tsv -o peaks_by_type"
        ),
    ),
    Command(
        "coverage",
        "Counts of reads or fragments in bins of the genome.",
        _coverage,
        face="pp.coverage",
        arguments=(("source", "Fragments or reads (.tsv.gz, .bam, .bedpe, .bed) or a signal; several as NAME=PATH."),),
        many=True,
        options=(
            _output("Counts: .h5ad or .zarr; of one sample also .bw."),
            Option("groupby", str | None, None, "sample (default), barcode, or a table of barcode and label."),
        ),
        without=("groupby",),
        examples="diffbio-sc coverage fragments.tsv.gz --bin-size 5000 --groupby barcode -o bins.h5ad",
    ),
    Command(
        "states",
        "Chromatin states of histone marks.",
        _states,
        face="tl.chromatin_states",
        arguments=(("marks", "Marks in bins: .h5ad, .zarr, or a file or folder of ChromHMM's binary files."),),
        options=(
            _output(),
            Option("segments", str | None, None, "Also write the segments as BED (- for standard output)."),
            Option("model_file", str | None, None, "Also write the model in ChromHMM's format."),
            Option("bin_size", int, 200, "Width of the bins of ChromHMM's binary files, in base pairs."),
        ),
        examples="diffbio-sc states binarized/ --n-states 10 -o states.h5ad --segments segments.bed",
    ),
    Command(
        "contacts",
        "Chromatin contacts: balancing, compartments, boundaries, loops.",
        _contacts,
        face="tl.contacts",
        arguments=(("map", "Contact map: .cool, .mcool, .hic, .h5ad or .zarr."),),
        options=(
            _output(),
            _RESOLUTION,
            Option("loops", str | None, None, "Also write the loops (.tsv, .csv, or - for standard output)."),
            Option("tads", str | None, None, "Also write the domains between boundaries."),
            Option("insulation", str | None, None, "Also write insulation and boundaries of each bin."),
            Option("compartments", str | None, None, "Also write the compartment of each bin."),
        ),
        examples="diffbio-sc contacts map.mcool --resolution 10000 -o contacts.h5ad --loops loops.tsv",
    ),
    Command(
        "contextual",
        "Accessibility of regions from their sequence, cell type by cell type.",
        _contextual,
        face="tl.contextual",
        arguments=(("regions", "Cell types by regions, 0 and 1, with chrom, start and end: .h5ad or .zarr."),),
        options=(
            _output(),
            _TABLE_OPTION,
            Option("fasta", str | None, None, "Genome that the sequences are cut from; default: those in the object."),
        ),
        without=("fasta",),
        examples="diffbio-sc contextual regions.h5ad --fasta genome.fa -o model.h5ad",
    ),
    Command(
        SUITE,
        "Benchmark suites of all systems, and what got worse since the stored run.",
        None,  # has a parser of its own
        examples="diffbio-sc suite --quick --suite peaks",
    ),
    Command(
        "convert",
        "Convert between file formats, as the endings say.",
        _convert,
        arguments=(
            ("source", ".h5ad, .h5mu, .zarr, .cool, .mcool, .hic, bedGraph or narrowPeak."),
            ("target", ".h5ad, .h5mu, .zarr, .cool, bigWig, .bed, .tsv or .csv."),
        ),
        options=(_RESOLUTION,),
        examples="diffbio-sc convert map.mcool map.h5ad --resolution 10000",
    ),
    Command(
        "info",
        "Versions, devices and caches, for a report of a fault.",
        _info,
        examples="diffbio-sc info",
    ),
)
