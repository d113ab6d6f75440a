"""Engines: every task ends once, what fails is tried again or told, and the others go on."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import sweep_tasks as tasks
import torch

from multirobust.errors import InputError, Interrupted, RunError
from multirobust.sweep import LocalEngine, RayEngine, Session, Task


def task(folder, name, function) -> Task:
    return Task(name=name, function=function, arguments=(folder, name))


def test_a_task_that_fails_is_tried_again_as_often_as_asked_and_the_others_go_on(tmp_path):
    names = {
        "good": tasks.write_name,
        "shaky": tasks.fail_at_first,
        "bad": tasks.fail_always,
        "wrong": tasks.refuse,
    }
    told, seen = [], []
    found = LocalEngine(retries=2).run(
        [task(tmp_path, name, function) for name, function in names.items()],
        Session(tell=told.append),
        lambda ended: seen.append(ended.name),
    )
    assert [ended.name for ended in found] == seen == list(names)
    assert [ended.attempts for ended in found] == [1, 2, 3, 1]
    assert [ended.error for ended in found] == [
        "",
        "",
        "RuntimeError: no such luck",
        "the loss is NaN; lower the learning rate",
    ]
    assert [len(tasks.attempts(tmp_path, name)) for name in names] == [1, 2, 3, 1]
    again = "shaky: failed and is tried again (OSError: the disk went away)"
    assert again in told


def test_a_stopped_session_ends_the_engine(tmp_path):
    def stopped(folder, name, session):
        raise Interrupted("now")

    with pytest.raises(Interrupted, match="now"):
        LocalEngine().run([task(tmp_path, "a", stopped)], Session())


def test_tasks_compute_with_the_asked_number_of_threads_and_it_is_put_back():
    before, seen = torch.get_num_threads(), []
    record = Task(name="a", function=lambda session: seen.append(torch.get_num_threads()))
    LocalEngine(cpus=2).run([record], Session())
    LocalEngine().run([record], Session())
    assert seen == [2, before]
    assert torch.get_num_threads() == before


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'multirobust\[ray\]'"):
        RayEngine().run([Task(name="a", function=print)], Session())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_an_address_where_nothing_listens_is_told_at_once():
    with pytest.raises(RunError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"):
        RayEngine(address="127.0.0.1:9").run([Task(name="a", function=print)], Session())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "at least one CPU"),
        ({"retries": -1}, "retries: must be at least 0"),
        ({"gpus": 1.5}, "a part of one, such as 0.5, or a whole number, got 1.5"),
    ],
)
def test_counts_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RayEngine(**options)
