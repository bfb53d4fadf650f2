"""Result files: written line by line, read back whole, refused in one sentence where they are not
one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks.record import SCHEMA, Agreement, End, Environment, Result, Seconds, Series, Target
from benchmarks.record_file import Writer, parse, read, to_json

EXAMPLE = Path(__file__).with_name("example.jsonl")
HERE = Environment("quick", {"cores": 2}, {"torch": "2", "foolbox": None}, {"id": None}, "now", "0")
FULL = Result(
    "a case", "op", "what runs", "fastard", "cpu", "measured", shapes={"x": [2, 3]},
    dtypes={"x": "float32"}, agreement=Agreement("error", 0.0, 1e-3, True),
    seconds=Seconds(1.0, 2.0, 0.1, 5), stable=True, series=Series("steps", [1.0], [2.0], 1.0, 0.0),
    breakdown={"loss": 0.5}, bytes=4,
)  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "r.jsonl"
    writer = Writer(path, HERE)
    target = Target("t", "times faster", "least", 3.0, None, None, reason="needs a GPU")
    for line in (FULL, target, End(1.5)):
        writer.put(line)
    run = read(path)
    assert (run.environment, run.results, run.targets) == (HERE, [FULL], [target])
    assert run.complete and run.ours("a case", "fp32") is None
    assert run.ours("a case") == FULL


def test_the_example_is_a_result_file():
    run = read(EXAMPLE)
    assert run.complete and len(run.results) > 20 and run.targets and run.comparisons
    assert {r.status for r in run.results} >= {"measured", "failed", "unavailable", "disagrees"}
    lines = EXAMPLE.read_text().splitlines()
    assert [json.loads(to_json(line)) for line in run.results] == [
        json.loads(line) for line in lines if '"kind": "result"' in line
    ]


def test_a_killed_run_keeps_what_it_has():
    text = EXAMPLE.read_text()
    whole = text.splitlines(keepends=True)
    run = parse("".join(whole[:5]) + whole[5][:40], Path("killed"))
    assert len(run.results) == 4 and not run.complete


def test_no_number_is_not_a_number():
    line = dataclasses.replace(FULL, ratio=math.inf, seconds=Seconds(math.nan, 1.0, 0.0, 1))
    found = json.loads(to_json(line))
    assert found["ratio"] is None and found["seconds"]["min"] is None


def changed(**fields) -> str:
    first, second, *_ = EXAMPLE.read_text().splitlines()
    found = json.loads(second)
    for name, value in fields.items():
        if value is None:
            del found[name]
        else:
            found[name] = value
    return f"{first}\n{json.dumps(found)}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{\n", "is no JSON"),
        ("[1]\n", "bears no 'kind'"),
        ('{"kind": "end", "seconds": 1.0}\n', "must be the environment"),
        (f'{to_json(HERE)}\n{to_json(HERE)}\n', "a second environment"),
        (to_json(HERE).replace(f'"schema": {SCHEMA}', '"schema": 99') + "\n", "has schema 99, but"),
        (changed(who=None, case=None), "the result lacks case, who"),
        (changed(seconds={"min": 1.0}), "the result's seconds lacks median, spread, rounds"),
        (changed(colour="red"), "unknown fields: colour"),
        (changed(batch="many"), "the result's batch must be int | None, but is 'many'"),
        (changed(stable=1), "the result's stable must be bool | None"),
        (changed(shapes={"x": ["a"]}), "the result's shapes must be"),
        (changed(status="mesured"), "unknown status 'mesured' (did you mean 'measured'?)"),
        (changed(kind="rezult"), "unknown kind of line 'rezult'"),
        ('{"kind": ["a"]}\n', "unknown kind of line \"['a']\""),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_sentence(text, said):
    with pytest.raises(ValueError) as caught:
        parse(text, Path("file"))
    assert said in str(caught.value) and "file" in str(caught.value)
    assert "\n" not in str(caught.value)
