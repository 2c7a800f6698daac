"""The model as an object; names and colours of its states."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel
from diffbio_sc.engines.chromatin_state_names import canonical_mark, match_emissions, name_states, state_shares
from diffbio_sc.numerics.chains.state_order import emission_order


def make(rng=None, states=4, marks=3, **options):
    rng = rng or np.random.default_rng(0)
    return ChromatinStateModel(
        rng.dirichlet(np.ones(states)),
        rng.dirichlet(np.ones(states), states),
        rng.random((states, marks)),
        marks=[f"m{index}" for index in range(marks)],
        **options,
    )


def test_marks_are_summed_out_and_put_in_order():
    model = make(emission_parameters={"variance": np.arange(12.0).reshape(4, 3)}, log_likelihood=-3.0)
    part = model.marginalise(["m2", "m0"])
    np.testing.assert_array_equal(part.emission, model.emission[:, [2, 0]])
    np.testing.assert_array_equal(part.emission_parameters["variance"], [[2, 0], [5, 3], [8, 6], [11, 9]])
    assert part.marks == ("m2", "m0")
    assert part.log_likelihood is None  # that of other data
    # P(m2, m0) is the sum over m1 of the joint probability.
    p = model.emission[1]
    for a in (0, 1):
        for b in (0, 1):
            joint = sum(
                (p[2] if a else 1 - p[2]) * (p[0] if b else 1 - p[0]) * (p[1] if c else 1 - p[1]) for c in (0, 1)
            )
            q = part.emission[1]
            assert (q[0] if a else 1 - q[0]) * (q[1] if b else 1 - q[1]) == pytest.approx(joint, rel=1e-12)


def test_shares_are_conditioned_on_the_marks_that_stay():
    shares = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    model = ChromatinStateModel([0.5, 0.5], np.full((2, 2), 0.5), shares, ("a", "b", "c"), emission_kind="multinomial")
    np.testing.assert_allclose(model.marginalise(["a", "b"]).emission, [[0.625, 0.375], [0.5, 0.5]])


def test_states_are_put_in_order_with_all_that_belongs_to_them():
    model = make(states=3, colors=("#000001", "#000002", "#000003"))
    turned = model.reorder(["E3", "E1", "E2"])
    assert turned.states == ("E3", "E1", "E2")
    assert turned.colors == ("#000003", "#000001", "#000002")
    for before, after in ((0, 1), (1, 2), (2, 0)):
        assert turned.initial[after] == model.initial[before]
        np.testing.assert_array_equal(turned.emission[after], model.emission[before])
        assert turned.transition[after, 1] == model.transition[before, 0]
    np.testing.assert_array_equal(model.reorder([2, 0, 1]).transition, turned.transition)
    assert (model.state_order, turned.state_order) == ("E", "U")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"initial": [0.5, 0.4]}, "initial must hold probabilities that sum to 1, found 0.9"),
        ({"transition": [[1.5, -0.5], [0.5, 0.5]]}, "transition must hold probabilities"),
        ({"transition": [[1.0, 0.0]]}, r"transition must have shape \(2, 2\)"),
        ({"emission": [[0.5, 1.5], [0, 1]]}, "between 0 and 1, found 0 to 1.5"),
        ({"emission": [[0.5, np.nan], [0, 1]]}, "emission of a model must be finite"),
        ({"emission": [0.5, 0.5]}, r"an array \(states, marks\)"),
        ({"marks": ("a",)}, "marks must be 2 names, found 1"),
        ({"marks": ("a", "a")}, r"marks must be unique, found twice: \['a'\]"),
        ({"states": ("x", "x")}, "states must be unique"),
        ({"colors": ("#000000",)}, "colors must be 2 colours or none"),
        ({"emission_kind": "beta"}, "emission_kind must be one of"),
        ({"emission_parameters": {"variance": np.ones((2, 3))}}, "must have shape"),
    ],
)
def test_bad_models_are_refused(change, problem):
    good = {
        "initial": [0.5, 0.5],
        "transition": [[0.9, 0.1], [0.5, 0.5]],
        "emission": [[0.5, 0.2], [0.1, 1.0]],
        "marks": ("a", "b"),
    }
    ChromatinStateModel(**good)
    with pytest.raises(ValueError, match=problem):
        ChromatinStateModel(**{**good, **change})


def test_marks_and_orders_that_are_not_there():
    model = make()
    with pytest.raises(KeyError, match=r"no marks \['x'\]; its marks: \['m0', 'm1', 'm2'\]"):
        model.marginalise(["m0", "x"])
    with pytest.raises(ValueError, match="at least one"):
        model.marginalise([])
    for order in ([0, 1, 2], [0, 1, 2, 2], ["E1", "E2", "E3", "E9"]):
        with pytest.raises(ValueError, match="each of the 4 states once"):
            model.reorder(order)


def test_order_against_all_greedy_paths():
    rng = np.random.default_rng(3)
    emission = rng.random((7, 5))
    distance = 1 - np.corrcoef(emission)
    paths = []
    for first in range(7):
        path = [first]
        while len(path) < 7:
            path.append(min(set(range(7)) - set(path), key=lambda state: distance[path[-1], state]))
        paths.append((sum(distance[a, b] for a, b in zip(path, path[1:], strict=False)), path))
    assert emission_order(emission).tolist() == min(paths)[1]
    shuffled = rng.permutation(7)
    ordered = emission[shuffled][emission_order(emission[shuffled])]
    np.testing.assert_array_equal(ordered, emission[min(paths)[1]])
    assert sorted(emission_order(np.zeros((3, 2)))) == [0, 1, 2]


@pytest.mark.data
@pytest.mark.parametrize("name", ["chromhmm_sample_hg18_10", "chromhmm_sample_hg18_15", "scchromhmm_pbmc_12"])
def test_the_order_is_that_of_chromhmm(data_folder, name):
    import diffbio_sc as dbio

    model = dbio.io.read_chromhmm_model(data_folder / "chromatin_states" / "models" / f"{name}.txt")
    assert emission_order(model.emission).tolist() == list(range(model.n_states))


def test_shares_of_states_are_stationary():
    model = make(states=5)
    shares = state_shares(model)
    np.testing.assert_allclose(shares @ model.transition, shares, atol=1e-12)
    assert shares.sum() == pytest.approx(1)
    turning = ChromatinStateModel([1, 0], [[0, 1], [1, 0]], [[0.1], [0.2]], ("a",))
    np.testing.assert_allclose(state_shares(turning), [0.5, 0.5])


@pytest.mark.parametrize(
    ("mark", "name"), [("k27ac", "h3k27ac"), ("H3K27ac", "h3k27ac"), ("h3_k4me1", "h3k4me1"), ("CTCF", "ctcf")]
)
def test_names_of_marks(mark, name):
    assert canonical_mark(mark) == name


def named(marks, rows):
    rows = np.array(rows, float)
    states = len(rows)
    transition = np.full((states, states), 0.1 / max(states - 1, 1))
    np.fill_diagonal(transition, 0.9)
    return name_states(ChromatinStateModel(np.full(states, 1 / states), transition, rows, marks))


def test_names_follow_the_table_of_marks():
    marks = ("H3K4me3", "H3K27ac", "H3K4me1", "H3K36me3", "H3K9me3", "H3K27me3", "CTCF")
    low = 0.01
    rows = [
        [0.9, 0.8, low, low, low, low, low],
        [low, 0.8, 0.9, low, low, low, low],
        [low, 0.03, 0.7, low, low, low, low],
        [low, low, low, 0.6, low, low, low],
        [low, low, low, low, 0.5, low, low],
        [low, low, low, low, low, 0.2, low],
        [0.9, low, low, low, low, 0.8, low],
        [low, low, low, low, low, low, 0.9],
        [0.001] * 7,
    ]
    kinds, colors = named(marks, rows)
    assert kinds == [
        "Active_promoter", "Strong_enhancer", "Weak_enhancer", "Transcribed", "Heterochromatin", "Polycomb",
        "Poised_promoter", "Insulator", "Quiescent",
    ]  # fmt: skip
    assert len(set(colors)) == 9
    without = [index for index, mark in enumerate(marks) if mark != "H3K27ac"]
    kinds, _ = named([marks[index] for index in without], np.array(rows)[:, without])
    assert kinds[2] == "Enhancer"


def test_second_states_of_a_kind_have_lighter_colours():
    _, colors = named(("H3K36me3",), [[0.9], [0.5], [0.001]])
    assert colors[0] == "#009e73"
    assert int(colors[1][1:3], 16) > 0


def test_a_control_marks_repeats():
    assert named(("H3K4me3", "Input"), [[0.9, 0.8], [0.8, 0.01], [0.001, 0.001]])[0] == [
        "Repetitive", "Active_promoter", "Quiescent",
    ]  # fmt: skip


def test_names_need_marks_of_the_table_and_presence():
    with pytest.raises(ValueError, match="found none of them in \\['x'\\]"):
        named(("x",), [[0.4], [0.1]])
    counts = ChromatinStateModel([1.0], [[1.0]], [[3.0]], ("H3K4me3",), emission_kind="poisson")
    with pytest.raises(ValueError, match="presence of marks, found 'poisson'"):
        name_states(counts)


@pytest.mark.data
def test_names_of_roadmaps_states(data_folder):
    import diffbio_sc as dbio

    model = dbio.io.read_chromhmm_model(data_folder / "chromatin_states" / "models" / "roadmap_model_15_coreMarks.txt")
    # Published: TssA, TssAFlnk, TxFlnk, Tx, TxWk, EnhG, Enh, ZNF/Rpts, Het, TssBiv, BivFlnk, EnhBiv, ReprPC, ReprPCWk,
    # Quies.
    published = (
        ["Active_promoter"] * 3 + ["Transcribed"] * 2 + ["Enhancer"] * 2 + ["Heterochromatin"] * 2
        + ["Poised_promoter"] * 2 + ["Polycomb"] * 3 + ["Quiescent"]
    )  # fmt: skip
    assert name_states(model)[0] == published


def test_matching_against_all_permutations():
    from itertools import permutations

    rng = np.random.default_rng(5)
    model, reference = make(rng, states=5), make(rng, states=5)
    found = match_emissions(model, reference)
    cost = abs(model.emission[:, None] - reference.emission[None]).mean(2)
    best = min(permutations(range(5)), key=lambda order: sum(cost[row, column] for row, column in enumerate(order)))
    assert tuple(found.match) == best
    np.testing.assert_allclose(found.distance, cost[np.arange(5), best])
    assert found.nearest.tolist() == cost.argmin(1).tolist()


def test_matching_by_names_of_marks_and_in_units_of_spread():
    rng = np.random.default_rng(6)
    mean = rng.random((4, 2)) * [1.0, 100.0]
    options = {"emission_kind": "gaussian"}
    model = ChromatinStateModel(np.full(4, 0.25), np.full((4, 4), 0.25), mean, ("K4me1", "x"), **options)
    order = [2, 0, 3, 1]
    other = ChromatinStateModel(
        np.full(4, 0.25), np.full((4, 4), 0.25), mean[order][:, ::-1], ("X", "H3K4me1"), **options
    )
    found = match_emissions(model, other)
    assert found.match.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(found.distance, 0, atol=1e-12)
    assert found.shared == ("K4me1", "x")
    with pytest.raises(ValueError, match="one family, found 'gaussian' and 'bernoulli'"):
        match_emissions(model, make())
    with pytest.raises(ValueError, match="share no mark"):
        match_emissions(make(), ChromatinStateModel([1.0], [[1.0]], [[0.3]], ("other",)))


def test_states_left_over():
    found = match_emissions(make(states=5), make(states=3))
    assert (found.match == -1).sum() == 2
    assert np.isnan(found.distance[found.match == -1]).all()
    assert sorted(found.match[found.match >= 0]) == [0, 1, 2]
