"""Recipes: what they hold, how they are written and read, and what is refused."""

import dataclasses
import json
import math
import pickle
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Recipe, prune_network, solve
from nettrim_solver.exceptions import NettrimError, ProblemFileError, SettingsError
from nettrim_solver.network import Dense, LayerRecipe, Network
from nettrim_solver.network.adapt import adapted
from nettrim_solver.network.recipe import AUTO, AUTOMATIC, NAMES, as_recipe
from nettrim_solver.network.target import Budget
from nettrim_solver.pipeline import Pipeline, Refit, Solve

from .test_modes import X, convnet, images, mlp, same_weights

STEPS = [
    "alps", ["admm", "refit"], ["reweight", {"step": "refit", "damping": 0.1}],
    {"step": "l0", "rounds": 3, "damping": 1e-3}, [{"step": "swaps", "max_swaps": 4}],
]  # fmt: skip

layers = st.dictionaries(
    st.text(min_size=1),
    st.fixed_dictionaries(
        {},
        optional={
            "sparsity": st.floats(0, 0.99), "steps": st.sampled_from(STEPS[:4]),
            "formulation": st.sampled_from(["pooled", "strict"]), "skip": st.booleans(),
            "max_rows": st.one_of(st.integers(1, 10**9), st.just(math.inf)),
        },
    ),
    max_size=3,
)  # fmt: skip

recipes = st.builds(
    Recipe,
    steps=st.one_of(st.just("auto"), st.sampled_from(STEPS[:4])),
    formulation=st.sampled_from(["pooled", "strict"]),
    radius=st.sampled_from(["joint", "per_output"]),
    gamma=st.floats(0, 1e9),
    allocation=st.sampled_from(["auto", "uniform", "tolerance", "output_error"]),
    output_weights=st.sampled_from(["auto", "equal", "downstream"]),
    passes=st.one_of(st.just("auto"), st.integers(0, 9)),
    output_refit=st.one_of(st.just("auto"), st.integers(0, 999)),
    max_rows=st.one_of(st.integers(1, 10**9), st.just(math.inf)),
    resolution=st.floats(1e-9, 0.99),
    layers=layers,
    skip=st.lists(st.text(min_size=1), max_size=3),
)


@given(recipes)
def test_a_recipe_survives_its_file_and_its_repr(recipe):
    assert Recipe(**tomllib.loads(recipe.to_toml())) == recipe
    assert eval(repr(recipe), {"Recipe": Recipe, "inf": math.inf}) == recipe  # its own repr
    assert json.loads(json.dumps(recipe.to_dict())) is not None
    assert recipe.with_() == recipe and pickle.loads(pickle.dumps(recipe)) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_named_recipes_are_recipes(name):
    recipe = Recipe.named(name)
    assert as_recipe(name) is recipe and as_recipe(recipe) is recipe
    assert Recipe(**tomllib.loads(recipe.to_toml())) == recipe


def test_the_plain_recipe_is_the_papers_program():
    assert Recipe() == Recipe.named("net-trim")
    assert Recipe().steps == Pipeline(Solve("admm")) and Recipe().changes() == {}


def test_recipes_are_immutable_and_share_nothing():
    layer, skip = {"steps": "alps"}, ["a"]
    recipe = Recipe(layers={"a": layer}, skip=skip)
    layer["steps"], skip[:] = "obs", []
    assert recipe.layers["a"] == LayerRecipe(steps="alps") and recipe.skip == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.mode = "parallel"
    with pytest.raises(TypeError):
        recipe.layers["b"] = {}


def test_steps_are_names_mappings_steps_or_functions():
    expected = Pipeline(Solve("admm"), Refit(damping=0.5))
    for steps in (
        expected, [Solve("admm"), Refit(damping=0.5)],
        ["admm", {"step": "refit", "damping": 0.5}],
    ):  # fmt: skip
        assert Recipe(steps=steps).steps == expected
    assert Recipe(steps=solve).steps is solve
    assert Recipe(steps=solve).to_dict() == {"steps": "nettrim_solver.solve.solve"}
    with pytest.raises(SettingsError, match="a recipe file names steps"):
        Recipe(steps=solve).to_toml()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modes": "parallel"}, "no entry 'modes'; did you mean 'mode'"),
        ({"solver": "alps"}, "no entry 'solver': write solver as steps='alps'"),
        ({"overrides": {}}, "no entry 'overrides': write overrides as layers"),
        ({"settings": {"damping": 1}}, "write settings as steps="),
        ({"sparsity": 0.9}, "a recipe holds no budget of the network, but has sparsity"),
        ({"min_accuracy": 0.9}, r"give it to the call \(nettrim prune --min-accuracy\)"),
        ({"version": 2}, "version must be 1"),
        ({"steps": []}, "steps must hold at least one step"),
        ({"steps": 3}, "steps must name solvers and refinements"),
        ({"steps": "alsp"}, "one was 'alsp'; did you mean 'alps'"),
        ({"steps": ["refit"]}, "the first step must find weights of its own, but was 'refit'"),
        ({"steps": ["alps", {"damping": 1}]}, "one was None"),
        ({"steps": {"step": "refit", "rounds": 3}}, "step 'refit' takes .* was given"),
        ({"steps": {"step": "alps", "sparsity": 0.5}}, "a budget is an argument of the call"),
        ({"layers": {"a": {"solver": "alps"}}}, r"layers\['a'\] has an unknown entry 'solver'"),
        ({"layers": {"a": {"tolerance": -1}}}, r"layers\['a'\]: tolerance must lie in"),
        ({"layers": {"a": {"skip": 1}}}, r"layers\['a'\]: skip must be True or False"),
        ({"layers": {3: {}}}, "layers must be a mapping by name"),
        ({"skip": [3]}, "skip must be a name or a list of names"),
        ({"passes": 1.5}, "passes must be an integer"),
        ({"max_rows": 0.5}, "max_rows must be an integer"),
        ({"gamma": 2, "mode": "parallel"}, "gamma belongs to mode='cascade'"),
        ({"formulation": "auto"}, "formulation must be one of"),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_way_out(content, message):
    with pytest.raises(SettingsError, match=message):
        Recipe.of(content)


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text(), st.lists(
    st.text(), max_size=2), st.dictionaries(st.text(), st.integers())), max_size=3))  # fmt: skip
def test_nothing_but_errors_of_the_package_comes_out(content):
    try:
        Recipe.of(content)
    except NettrimError:
        pass


def test_files_that_are_no_recipe_are_named(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(ProblemFileError, match="recipe .*recipe.toml: No such file"):
        Recipe.read(path)
    for content in (b"mode = ", b"\xff\xfe", b"a = " + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(ProblemFileError, match="is not a TOML file"):
            Recipe.read(path)
    path.write_text("mode = 'serial'")
    with pytest.raises(SettingsError, match="recipe .*recipe.toml: mode must be one of"):
        Recipe.read(path)
    path.write_text(Recipe(steps="alps", skip="a").to_toml())
    assert Recipe.read(path) == Recipe(steps="alps", skip="a")


# What "auto" becomes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "budget", [{"tolerance": 0.1}, {"sparsity": 0.5}, {"nnz": {"W0": 9}}, {"max_error": 0.1}]
)
def test_an_adapted_recipe_is_open_in_nothing_and_stays_as_it_is(name, budget):
    budget = Budget.of(**budget)
    found, _ = adapted(Recipe.named(name), mlp(), budget)
    assert all(getattr(found, field) != AUTO for field in AUTOMATIC)
    assert adapted(found, mlp(), budget)[0] == found


def test_the_result_says_what_was_done_and_the_same_recipe_does_it_again():
    network = mlp()
    result = prune_network(network, X, sparsity=0.6, n_threads=1)
    assert all(getattr(result.recipe, field) != AUTO for field in AUTOMATIC)
    again = prune_network(network, X, sparsity=0.6, recipe=result.recipe, n_threads=1)
    same_weights(result.network, again.network)


def test_with_a_tolerance_every_layer_keeps_its_radius_and_the_proof_stands_beside_it():
    result = prune_network(mlp(), X, tolerance=0.2)
    for one in result.layers:
        convex, last = one.stages
        assert convex.status == "optimal" and convex.gap <= 1e-6
        assert last.nnz <= convex.nnz and one.violation <= 1e-6
        assert one.distance <= one.epsilon * (1 + 1e-6)
    assert result.output_error <= result.output_bound
    plain = prune_network(mlp(), X, tolerance=0.2, recipe="net-trim")
    assert plain.status == "optimal" and result.nnz < plain.nnz
    fast = prune_network(mlp(), X, tolerance=0.2, recipe="fast")
    assert all(one.violation <= 1e-6 for one in fast.layers)


def test_a_network_of_one_layer_needs_no_allocation():
    network = Network([Dense(mlp().layer("W0").W, None, name="only")])
    result = prune_network(network, X, sparsity=0.5)
    assert result.recipe.allocation == "uniform" and "nothing to allocate" in result.notes[0]
    assert result.recipe.output_weights == "equal" and result.recipe.passes == 0
    assert result.nnz == round(0.5 * network.n_weights)


def test_parts_without_a_gradient_leave_the_refit_out():
    from .test_output_refit import Stranger

    network = Network([
        Dense(np.eye(12, 9), name="before"), Stranger(name="strange"),
        Dense(mlp((9, 3)).layer("W0").W, name="behind"),
    ])  # fmt: skip
    result = prune_network(network, X, sparsity=0.5)
    assert result.recipe.output_refit == 0
    assert any("'strange'" in note for note in result.notes)


def test_counts_are_exact_for_every_named_recipe_and_kind_of_network():
    for network, data in ((mlp(), X), (convnet(), images(60))):
        for name in NAMES:
            for sparsity in (0.5, 0.9):
                result = prune_network(network, data, sparsity=sparsity, recipe=name, n_threads=1)
                wanted = network.n_weights - round(sparsity * network.n_weights)
                reached = abs(result.nnz - wanted) <= len(network.layers)  # rounding by layer
                assert reached or any("nonzeros" in text for text in result.warnings)


def test_old_arguments_are_sent_to_their_new_place():
    for name, value in {
        "solver": "alps", "pipeline": solve, "allocation": "output_error", "skip": "W0",
        "settings": {"damping": 1}, "output_weights": mlp(), "paths": {},
    }.items():  # fmt: skip
        with pytest.raises(SettingsError, match=f"{name} is no argument of prune_network"):
            prune_network(mlp(), X, sparsity=0.5, **{name: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        prune_network(mlp(), X, sparsty=0.5)


# The budget -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tolerance": 0.1, "nnz": 3}, r"give one of tolerance, .* but \['tolerance', 'nnz'\]"),
        ({"sparsity": 1.0}, "sparsity must lie in"),
        ({"sparsity": {"a": -0.1}}, "sparsity must lie in"),
        ({"nnz": True}, "nnz must be an integer"),
        ({"max_error": "1"}, "max_error must lie in"),
        ({"accuracy": len}, "belong together, but min_accuracy is missing"),
        ({"accuracy": 3, "min_accuracy": 0.5}, "accuracy must be a function"),
    ],
)
def test_a_budget_is_one_of_five(given, message):
    with pytest.raises(SettingsError, match=message):
        Budget.of(**given)


def test_budgets_say_what_they_are():
    assert str(Budget.of(sparsity=0.9)) == "sparsity 0.9" and Budget.of(sparsity=0.9).counts
    assert str(Budget.of(max_error=0.1)) == "error of at most 0.1"
    assert str(Budget.of(accuracy=len, min_accuracy=0.5)) == "accuracy of at least 0.5"
    assert not Budget.of(nnz={"a": 3}).counts and Budget.of(max_error=0.1).searched


# Progress ---------------------------------------------------------------------------------------


def test_progress_is_shown_on_demand_and_on_stderr_alone(capsys):
    prune_network(mlp(), X, sparsity=0.5, recipe="fast", progress=False)
    assert capsys.readouterr() == ("", "")
    prune_network(mlp(), X, sparsity=0.5, recipe="fast", progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err != ""
    with pytest.raises(SettingsError, match="progress must be True or False"):
        prune_network(mlp(), X, sparsity=0.5, progress="yes")
