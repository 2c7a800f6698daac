from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._anndata.chromatin_states import read_model_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel


def chromatin_state_model(adata: AnnData, *, key: str = "chromatin_states") -> ChromatinStateModel:
    """Model of chromatin states that :func:`diffbio_sc.tl.chromatin_states` stored, as an object.

    Parameters
    ----------
    adata
        Object with a model.
    key
        The ``key_added`` of the states; ``"truth"`` for the model behind
        :func:`diffbio_sc.datasets.simulate_chromatin_states`.

    Returns
    -------
    ChromatinStateModel
        Parameters in float64, names and colours. Write it with :func:`diffbio_sc.io.write_chromhmm_model`, or pass it
        as ``model`` to :func:`diffbio_sc.tl.chromatin_states` to annotate other data.

    Raises
    ------
    KeyError
        If there is no such model.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=200)
    >>> model = dbio.get.chromatin_state_model(adata, key="truth")
    >>> model.states[0], float(model.emission[0, 0])
    ('Active promoter', 0.92)
    """
    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

    check_options(chromatin_state_model, locals())
    record = read_model_record(adata, key)
    report = record.get("report", {})
    likelihood = record.get("log_likelihood")
    iterations = report.get("n_iterations", report.get("steps")) if hasattr(report, "get") else None
    return ChromatinStateModel(
        np.asarray(record["initial"]),
        np.asarray(record["transition"]),
        np.asarray(record["emission"]),
        marks=tuple(map(str, record["marks"])),
        states=tuple(map(str, record["states"])) if "states" in record else (),
        emission_kind=str(record.get("emission_kind", "bernoulli")),  # type: ignore[arg-type]
        emission_parameters={
            str(name): np.asarray(value) for name, value in record.get("emission_parameters", {}).items()
        },
        log_likelihood=None if likelihood is None else float(likelihood),
        n_iterations=None if iterations is None else int(iterations),
        colors=tuple(map(str, record["colors"])) if "colors" in record else (),
    )
