"""The benchmark of sparse inference: disturbed cases count for nothing, and the page is current."""

import json

import numpy as np
import pytest

from benchmarks import inference


def case(density, dense, sparse):
    return {
        "shape": [4, 3], "density": density, "batch": 8, "dense_seconds": dense,
        "sparse_seconds": sparse, "speed_up": dense / sparse,
    }  # fmt: skip


def test_a_case_that_more_threads_made_slower_counts_for_nothing():
    alone = {"n_threads": 1, "cases": [case(0.1, 2.0, 4.0), case(0.5, 2.0, 1.0)]}
    both = {"n_threads": 2, "cases": [case(0.1, 9.0, 1.0), case(0.5, 2.2, 1.0)]}
    inference.mark_disturbed([alone, both])
    assert inference.speed_rows(alone)[1] == [["4 x 3", "8", "2.00", "0.50"]]
    assert inference.speed_rows(both)[1] == [["4 x 3", "8", "2.20", "disturbed"]]
    result = {"runs": [alone, both], "stored_shape": [2, 2], "sizes": [inference.stored(0.5)]}
    text = inference.describe(result)
    assert "dense wins 1 of 2 undisturbed cases, the sparsest at 10 % nonzero" in text
    assert "dense wins 0 of 1 undisturbed cases\n" in text


def test_calls_take_turns_and_the_fastest_count(monkeypatch):
    now, said = [0.0], []

    def call(name, durations):
        def act():
            said.append(name)
            now[0] += durations[len(said) // 2 % len(durations)]

        return act

    monkeypatch.setattr(inference.time, "perf_counter", lambda: now[0])
    found = inference.in_turn(call("dense", [3.0, 6.0]), call("sparse", [1.0]), seconds=0.0)
    assert said[6:] == ["dense", "sparse"] * inference.TURNS[0]
    assert (found["dense_seconds"], found["sparse_seconds"]) == (3.0, 1.0)
    assert found["speed_up"] == 3.0 and found["turns"] == inference.TURNS[0]


@pytest.mark.parametrize("shape", [(40, 30), (6, 2, 3, 3)])
def test_weights_have_exactly_the_density(shape):
    W = inference.random_weights(np.random.default_rng(0), shape, 0.1)
    assert W.shape == shape and W.dtype == np.float32
    assert np.count_nonzero(W) == round(0.1 * W.size)


def test_the_tables_of_the_page_are_those_of_the_result_file():
    page = inference.PAGE.read_text(encoding="utf-8")
    result = json.loads(inference.RESULT.read_text())["result"]
    assert inference.speed_markdown(result) in page
    assert inference.size_markdown(result) in page
