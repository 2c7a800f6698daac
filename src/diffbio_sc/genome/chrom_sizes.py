"""Chromosome tables: lengths of chromosomes, of common assemblies or from a file, and names that two sides share."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffbio_sc._checks import is_path, name_heads

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

_OTHER_NAMES = {"GRCh38": "hg38", "GRCh37": "hg19", "GRCm38": "mm10", "GRCm39": "mm39", "R64-1-1": "sacCer3"}

ChromSizes = Mapping[str, int] | str | os.PathLike[str]

LONGEST = 2**31 - 1
"""Longest chromosome: positions are 32-bit numbers."""


def read_chrom_sizes(source: ChromSizes) -> dict[str, int]:
    """Read the lengths of chromosomes.

    Parameters
    ----------
    source
        Name of an assembly (``"hg38"``, ``"hg19"``, ``"mm39"``, ``"mm10"``, ``"sacCer3"``: the nuclear chromosomes,
        without chrM and unplaced sequences), a file whose first two columns are name and length (``.chrom.sizes``,
        ``.fai``), or a mapping (or pandas Series) from name to length.

    Returns
    -------
    Length by name, in the order of the source.

    Raises
    ------
    FileNotFoundError
        If the source is neither a known assembly nor a file.
    TypeError
        If the source is something else.
    ValueError
        If a length is not a positive whole number below 2**31, or a name occurs twice.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> dbio.io.read_chrom_sizes("hg38")["chr1"]
    248956422
    """
    if isinstance(source, Mapping) or (hasattr(source, "items") and hasattr(source, "index")):
        return check_chrom_sizes(list(source.items()), "chromosome sizes")
    if not is_path(source):
        raise TypeError(
            f"chromosome sizes must be a mapping from name to length, a file, or the name of an assembly "
            f"({list(_ASSEMBLIES)}), found {type(source).__name__}."
        )
    where = os.fspath(source)
    if where in _ASSEMBLIES:
        names, lengths = _ASSEMBLIES[where]
        return {f"chr{name}": int(length) for name, length in zip(names.split(), lengths.split(), strict=True)}
    if not Path(where).is_file():
        close = _OTHER_NAMES.get(where) or next(iter(get_close_matches(where, _ASSEMBLIES, n=1)), None)
        raise FileNotFoundError(
            f"{where!r} is neither a file of chromosome sizes nor an assembly known here ({list(_ASSEMBLIES)})."
            + (f" Did you mean {close!r}?" if close else "")
        )
    try:
        text = Path(where).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text of chromosome names and lengths.") from error
    lines = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]
    short = [line for line in lines if len(line) < 2]
    if short:
        raise ValueError(f"{where} must have a name and a length in each line, found {short[0]}.")
    return check_chrom_sizes([(line[0], line[1]) for line in lines], where)


def check_chrom_sizes(pairs: Sequence[tuple[Any, Any]], where: str) -> dict[str, int]:
    """Return lengths by name, checked; ``where`` is what messages call them."""
    sizes: dict[str, int] = {}
    for key, size in pairs:
        name = str(key)
        try:
            length = int(size)
            good = length == (float(size) if isinstance(size, str) else size) and 0 < length <= LONGEST
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good or isinstance(size, bool):
            raise ValueError(
                f"{where}: the length of {name!r} must be a positive whole number below 2**31, found {size}."
            )
        if name in sizes:
            raise ValueError(f"{where}: {name!r} occurs twice.")
        sizes[name] = length
    if not sizes:
        raise ValueError(f"{where}: expected the length of at least one chromosome, found none.")
    return sizes


_PREFIX = re.compile(r"^chr", re.IGNORECASE)


def match_chromosomes(left: Sequence[str], right: Sequence[str], *, left_name: str, right_name: str) -> list[str]:
    """Names that both sides have, in the order of the left.

    Raises
    ------
    ValueError
        If both sides have names but share none; says so if they would match with or without ``chr``.
    """
    others = set(right)
    shared = [name for name in left if name in others]
    if shared or not len(left) or not len(right):
        return shared
    message = (
        f"{left_name} and {right_name} have no chromosome in common. {left_name}: {name_heads(left)}; "
        f"{right_name}: {name_heads(right)}."
    )
    bare = {_PREFIX.sub("", name) for name in right}
    if any(_PREFIX.sub("", name) in bare for name in left):
        message += (
            " They match without the prefix 'chr': rename one side, for example "
            "intervals.rename_chromosomes({'1': 'chr1', ...})."
        )
    raise ValueError(message)


def match_regions(chromosomes: Sequence[str], regions: Sequence[str], *, name: str, regions_name: str) -> None:
    """Check that regions, such as a blacklist, name their chromosomes as the data do.

    Regions that lie on none of the data's chromosomes are legal, as those of the mitochondrion alone are for data
    without it: a warning says so.

    Parameters
    ----------
    chromosomes, regions
        Chromosomes of the data and of the regions.
    name, regions_name
        What messages call the two.

    Raises
    ------
    ValueError
        If names would match only with or without ``chr``.
    """
    bare = {_PREFIX.sub("", other) for other in chromosomes}
    if any(_PREFIX.sub("", region) in bare for region in regions):
        match_chromosomes(chromosomes, regions, left_name=name, right_name=regions_name)
    elif len(regions) and len(chromosomes):
        warnings.warn(
            f"no region of {regions_name} lies on a chromosome of {name}: {name_heads(regions)} against "
            f"{name_heads(chromosomes)}.",
            UserWarning,
            stacklevel=3,
        )
