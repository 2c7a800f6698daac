"""E5: what sources of the contextual sequence model hand out, and an error for each breach."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.operators.epigenomics import validate_contextual_epigenomics_dataset
from diffbio_sc.operators.epigenomics.contextual_contract import REQUIRED_KEYS, TARGET_SEMANTICS


def dataset(examples=3, length=8, factors=2):
    draws = np.random.default_rng(0)
    contacts = draws.random((examples, length, length)).astype(np.float32)
    return {
        "sequence": np.eye(4, dtype=np.float32)[draws.integers(0, 4, (examples, length))],
        "tf_context": draws.normal(size=(examples, factors)).astype(np.float32),
        "chromatin_contacts": (contacts + contacts.transpose(0, 2, 1)) / 2,
        "targets": draws.integers(0, 2, (examples, length)),
    }


def changed(key, index, value):
    data = dataset()
    data[key] = data[key].astype(np.float64)
    data[key][index] = value
    return data


def check(data, semantics="binary_peak_mask", classes=1, **options):
    return validate_contextual_epigenomics_dataset(
        data, target_semantics=semantics, num_output_classes=classes, **options
    )


def test_E5_a_data_set_that_keeps_the_contract_is_described():
    data = dataset()
    data["sequence"][1, 2:4] = 0.0
    data["sequence_mask"] = np.ones((3, 8), int)
    data["sequence_mask"][0, 6:] = 0
    assert check(data)._asdict() == {
        "examples": 3, "length": 8, "positions": 8, "contexts": 1, "tf_features": 2,
        "unknown_bases": 2, "masked_bases": 2,
    }  # fmt: skip
    assert REQUIRED_KEYS == ("sequence", "tf_context", "chromatin_contacts", "targets")
    assert TARGET_SEMANTICS == ("binary_peak_mask", "chromatin_state_id")


def test_E5_several_contexts_and_tokens_of_several_bases():
    data = dataset()
    data |= {
        "tf_context": np.ones((3, 5, 2)),
        "targets": np.zeros((3, 5, 4)),
        "chromatin_contacts": data["chromatin_contacts"][:, :4, :4],
    }
    found = check(data, token_width=2)
    assert (found.contexts, found.positions) == (5, 4)
    with pytest.raises(ValueError, match=r"'targets'\] must have the shape \(3, 5, 4\), found \(3, 4\)"):
        check({**data, "targets": np.zeros((3, 4))}, token_width=2)


def test_E5_what_is_masked_may_hold_anything():
    data = dataset()
    data = {key: value.astype(np.float64) for key, value in data.items()}
    data["sequence_mask"] = np.ones((3, 8))
    data["sequence_mask"][1, 5] = 0
    data["sequence"][1, 5] = np.nan
    data["targets"][1, 5] = -7
    data["chromatin_contacts"][1, 5] = np.nan
    data["chromatin_contacts"][1, :, 5] = np.nan
    assert check(data).masked_bases == 1


UNEVEN = dataset()["chromatin_contacts"]
UNEVEN[1, 2, 3] += 1e-3

BREACHES = {
    "axes of the sequence": ({**dataset(), "sequence": np.ones((3, 8))}, r"'sequence'\] must have the shape"),
    "axes of the context": ({**dataset(), "tf_context": np.ones(3)}, r"'tf_context'\] must have the shape"),
    "axes of contacts": ({**dataset(), "chromatin_contacts": np.ones((3, 8))}, r"contacts'\] must have the shape"),
    "axes of targets": ({**dataset(), "targets": np.ones(3)}, r"'targets'\] must have the shape"),
    "letters": ({**dataset(), "sequence": np.ones((3, 8, 5)) / 5}, "must have 4 columns, A C G T"),
    "nothing": ({**dataset(), "sequence": np.ones((0, 8, 4))}, "at least one base"),
    "rows of the context": ({**dataset(), "tf_context": np.ones((2, 2))}, r"'tf_context'\] must have 3 rows.* found 2"),
    "rows of targets": ({**dataset(), "targets": np.ones((4, 8))}, r"'targets'\] must have 3 rows"),
    "square": ({**dataset(), "chromatin_contacts": np.ones((3, 8, 7))}, "must be square"),
    "size of contacts": ({**dataset(), "chromatin_contacts": np.ones((3, 7, 7))}, "must have 8 rows and columns"),
    "length of targets": ({**dataset(), "targets": np.ones((3, 7))}, r"'targets'\] must have the shape \(3, 8\)"),
    "length of the mask": ({**dataset(), "sequence_mask": np.ones((3, 7))}, "must have 8 columns"),
    "values of the mask": ({**dataset(), "sequence_mask": np.full((3, 8), 0.5)}, "must be 0 or 1, found 0.5 at"),
    "an empty mask": ({**dataset(), "sequence_mask": np.eye(3, 8) * [[1], [1], [0]]}, "all of 1 sequences.*row 2"),
    "sum of a row": (changed("sequence", (1, 2), 0.5), r"sum to 1 .* found a sum of 2.0 at \(1, 2\)"),
    "negative base": (changed("sequence", (1, 2), [2, -1, 0, 0]), r"must not be negative, found -1.0 at \(1, 2, 1\)"),
    "NaN base": (changed("sequence", (1, 2, 0), np.nan), r"'sequence'\] must be finite, found nan at \(1, 2, 0\)"),
    "NaN context": (changed("tf_context", (2, 1), np.inf), r"'tf_context'\] must be finite, found inf at \(2, 1\)"),
    "NaN contact": (changed("chromatin_contacts", (0, 1, 2), np.nan), r"contacts'\] must be finite"),
    "negative contact": (changed("chromatin_contacts", (0, 1, 2), -0.1), "must not be negative, found -0.1"),
    "large contact": (changed("chromatin_contacts", (0, 1, 2), 1.5), "must lie between 0 and 1"),
    "asymmetric": ({**dataset(), "chromatin_contacts": UNEVEN}, r"must be symmetric, found .* at \(1, 2, 3\)"),
    "NaN target": (changed("targets", (0, 1), np.nan), r"'targets'\] must be finite"),
    "binary": (changed("targets", (0, 1), 2), r"must be 0 or 1 for binary_peak_mask, found 2.0 at \(0, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_E5_every_breach_has_its_own_error(name):
    data, message = BREACHES[name]
    with pytest.raises(ValueError, match=message):
        check(data)


@pytest.mark.parametrize(
    ("semantics", "classes", "value", "message"),
    [
        ("chromatin_state_id", 3, 1.5, "must be whole numbers for chromatin_state_id, found 1.5"),
        ("chromatin_state_id", 3, 3, "must be classes from 0 to 2"),
        ("chromatin_state_id", 3, -1, "must be classes from 0 to 2"),
        ("chromatin_state_id", None, 0, "needs num_output_classes"),
        ("chromatin_state_id", 1, 0, "needs num_output_classes"),
        ("binary_peak_mask", 2, 0, "must be 1 for binary_peak_mask"),
        ("peaks", 1, 0, "must be one of"),
    ],
)
def test_E5_targets_mean_what_is_declared(semantics, classes, value, message):
    with pytest.raises(ValueError, match=message):
        check(changed("targets", (0, 1), value), semantics, classes)


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_E5_missing_sparse_and_textual_arrays_are_named(key):
    data = dataset()
    with pytest.raises(KeyError, match=rf"data\['{key}'\]"):
        check({name: value for name, value in data.items() if name != key})
    with pytest.raises(TypeError, match=rf"data\['{key}'\] must hold real numbers"):
        check({**data, key: np.full(data[key].shape, "A")})
    with pytest.raises(TypeError, match=rf"data\['{key}'\] is a scipy sparse matrix"):
        check({**data, key: sp.csr_array(np.ones((3, 8)))})
