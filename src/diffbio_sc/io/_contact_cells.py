"""Contact maps of single cells, opened one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffbio_sc._anndata.contacts import read_contacts
from diffbio_sc._anndata.contacts_object import same_bins
from diffbio_sc._checks import found_object
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.io._cooler_files import import_cooler, read_cooler

if TYPE_CHECKING:
    from anndata import AnnData


class ContactCells(Mapping[str, "AnnData"]):
    """Contact maps of single cells on the same bins, by name; each is read when it is asked for.

    A mapping: ``cells["cell_1"]`` is an AnnData of bins as :func:`read_cool` gives it, ``list(cells)`` are the names.
    :func:`diffbio_sc.pp.pseudobulk` adds cells up by group, :func:`diffbio_sc.pp.contact_profiles` describes each.

    Parameters
    ----------
    maps
        Objects with a contact map each, all of the same bins, by the name of the cell.

    Raises
    ------
    ValueError
        If there is no cell, or their bins differ.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> maps = {f"cell_{k}": dbio.datasets.simulate_contacts(60, contacts_per_bin=20, rng=k) for k in range(3)}
    >>> cells = dbio.io.ContactCells(maps)
    >>> cells
    ContactCells(3 cells)
    """

    def __init__(self, maps: Mapping[str, AnnData]):
        if not isinstance(maps, Mapping):
            raise TypeError(f"maps must map names of cells to AnnData objects, found {type(maps).__name__}.")
        if not maps:
            raise ValueError("maps must hold at least one cell, found none.")
        strange = next((name for name, each in maps.items() if not hasattr(each, "obsp")), None)
        if strange is not None:
            raise TypeError(f"maps[{strange!r}] must be an AnnData with contacts, {found_object(maps[strange])}.")
        self._maps: dict[str, Any] = {str(name): each for name, each in maps.items()}

    @classmethod
    def _of_file(cls, groups: Mapping[str, str]) -> ContactCells:
        """Cells of a file, by name and URI."""
        cells = cls.__new__(cls)
        cells._maps = dict(groups)
        return cells

    def __len__(self) -> int:
        """Number of cells."""
        return len(self._maps)

    def __iter__(self) -> Iterator[str]:
        """Names of the cells."""
        return iter(self._maps)

    def __getitem__(self, name: str) -> AnnData:
        """Map of one cell."""
        if name not in self._maps:
            names = list(self._maps)
            raise KeyError(
                f"no cell {name!r}; cells: {names[:5]}" + (f" ... ({len(names)})." if len(names) > 5 else ".")
            )
        source = self._maps[name]
        if not isinstance(source, str):
            return source
        return read_cooler(import_cooler().Cooler(source), source)

    def __repr__(self) -> str:
        """Say how many cells there are."""
        return f"ContactCells({len(self)} cells)"

    def contact_maps(self, key: str = "contacts") -> Iterator[tuple[str, ContactMap]]:
        """Yield name and map of each cell.

        Raises
        ------
        ValueError
            If the bins of a cell are not those of the first.
        """
        first: ContactMap | None = None
        first_name = ""
        for name in self:
            found = read_contacts(self[name], key).map
            if first is None:
                first, first_name = found, name
            elif not same_bins(first, found):
                raise ValueError(
                    f"cells must have the same bins; those of {name!r} ({found.n_bins} of {found.resolution} bp) are "
                    f"not those of {first_name!r} ({first.n_bins} of {first.resolution} bp)."
                )
            yield name, found
