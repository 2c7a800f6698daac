"""Lengths of chromosomes: of common assemblies, or from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Nuclear chromosomes of the assemblies of UCSC, without chrM, unplaced and alternative sequences: names (after "chr")
# and lengths.
_ASSEMBLIES = {
    "hg38": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 X Y",
        """
        248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422
        135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983
        50818468 156040895 57227415
        """,
    ),
    "hg19": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 X Y",
        """
        249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747
        135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895
        51304566 155270560 59373566
        """,
    ),
    "mm10": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 X Y",
        """
        195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993
        122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566 171031299 91744698
        """,
    ),
    "mm39": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 X Y",
        """
        195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700 130530862
        121973369 120092757 120883175 125139656 104073951 98008968 95294699 90720763 61420004 169476592 91455967
        """,
    ),
    "sacCer3": (
        "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI",
        """
        230218 813184 316620 1531933 576874 270161 1090940 562643 439888 745751 666816 1078177 924431 784333 1091291
        948066
        """,
    ),
}

ChromSizes = Mapping[str, int] | str | os.PathLike[str]


def read_chrom_sizes(source: ChromSizes) -> dict[str, int]:
    """Lengths of chromosomes.

    Parameters
    ----------
    source
        Name of an assembly (``"hg38"``, ``"hg19"``, ``"mm39"``, ``"mm10"``, ``"sacCer3"``: the nuclear chromosomes,
        without chrM and unplaced sequences), a file whose first two columns are name and length (``.chrom.sizes``,
        ``.fai``), or a mapping from name to length.

    Returns
    -------
    Length by name, in the order of the source.

    Raises
    ------
    FileNotFoundError
        If the source is neither a known assembly nor a file.
    ValueError
        If a length is no positive whole number below 2**31, or a name occurs twice.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> dbio.io.read_chrom_sizes("hg38")["chr1"]
    248956422
    """
    if isinstance(source, Mapping):
        pairs = [(str(name), str(size)) for name, size in source.items()]
        where = "chromosome sizes"
    elif str(source) in _ASSEMBLIES:
        names, lengths = _ASSEMBLIES[str(source)]
        return {f"chr{name}": int(length) for name, length in zip(names.split(), lengths.split(), strict=True)}
    else:
        where = os.fspath(source)
        if not Path(where).exists():
            raise FileNotFoundError(
                f"{where!r} is neither a file of chromosome sizes nor an assembly known here ({list(_ASSEMBLIES)})."
            )
        lines = [line.split() for line in Path(where).read_text().splitlines() if line.strip() and line[0] != "#"]
        short = [line for line in lines if len(line) < 2]
        if short:
            raise ValueError(f"{where} must have a name and a length in each line, found {short[0]}.")
        pairs = [(line[0], line[1]) for line in lines]
    sizes = {}
    for name, size in pairs:
        if not size.isdigit() or not 0 < int(size) < 2**31:
            raise ValueError(
                f"{where}: the length of {name!r} must be a positive whole number below 2**31, found {size}."
            )
        if name in sizes:
            raise ValueError(f"{where}: {name!r} occurs twice.")
        sizes[name] = int(size)
    if not sizes:
        raise ValueError(f"{where}: expected the length of at least one chromosome, found none.")
    return sizes
