"""Outcomes: words that compare, hash, pickle and print as such, ordered by severity."""

import copy
import json
import pickle

import pytest

from nettrim_solver import Status
from nettrim_solver.status import SEVERITY, worst


@pytest.mark.parametrize("status", Status)
def test_a_status_is_its_word(status):
    word = status.name.lower()
    assert status == word and word == status and status != word.upper()
    assert status.label == status.value == str(status) == f"{status}" == word
    assert f"{status:>20}" == word.rjust(20)
    assert {status: 1}[word] == {word: 1}[status] == 1
    assert Status(word) is Status[status.name] is status
    assert repr(status) == f"<Status.{status.name}: {word!r}>"
    assert all(status != other for other in Status if other is not status)


@pytest.mark.parametrize("status", Status)
def test_a_status_survives_copies_and_files(status):
    assert copy.deepcopy(status) is status
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(status, protocol)) is status
    assert json.loads(json.dumps({"status": status})) == {"status": status.label}


def test_every_status_has_a_message_and_all_but_one_a_remedy():
    assert all(status.message for status in Status)
    assert [status for status in Status if not status.remedy] == ["optimal"]


def test_the_worst_is_the_most_severe_and_not_the_last_word():
    assert sorted(SEVERITY) == sorted(Status)
    for i, mild in enumerate(SEVERITY):
        for severe in SEVERITY[i:]:
            assert worst([mild, severe]) is worst((severe, mild)) is severe
    assert worst([Status.UNPROVED, Status.INFEASIBLE]) is Status.INFEASIBLE


def test_an_unknown_word_is_no_status():
    with pytest.raises(ValueError, match="'proved' is not a valid Status"):
        Status("proved")
