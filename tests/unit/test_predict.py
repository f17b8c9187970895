"""Rows to requests and answers to rows."""

import json

import pytest

from mlimg.predict import Table, answer_table, infer_request, parse_rows, table_text
from mlimg.runtime.errors import RemoteError, UsageError

MATRIX = [{"name": "input", "datatype": "FP64", "shape": [-1, 2]}]
COLUMNS = [
    {"name": "age", "datatype": "FP64", "shape": [-1]},
    {"name": "city", "datatype": "BYTES", "shape": [-1, 1]},
]


def test_csv_without_a_header_is_rows_of_numbers() -> None:
    assert parse_rows("1,2.5\n3,-4e1\n") == Table(((1, 2.5), (3, -40.0)))


def test_csv_whose_first_line_is_words_has_a_header() -> None:
    assert parse_rows('\ufeffage,city\n31,"Oslo, N"\n') == Table(((31, "Oslo, N"),), ("age", "city"))


@pytest.mark.parametrize("text", ["[[1, 2], [3, 4]]", '{"instances": [[1, 2], [3, 4]]}'])
def test_json_rows(text: str) -> None:
    assert parse_rows(text) == Table(((1, 2), (3, 4)))


def test_json_objects_name_their_columns_in_any_order() -> None:
    assert parse_rows('[{"a": 1, "b": 2}, {"b": 4, "a": 3}]') == Table(((1, 2), (3, 4)), ("a", "b"))


def test_a_whole_request_is_passed_on() -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}
    assert parse_rows(json.dumps(request)) == request


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("1,2\n3\n", "row 2 has 1 values, not 2"),
        ("1,\n", "row 1: value 2 is empty"),
        ("a,b\n1,nan\n", "row 1: b is nan"),
        ("a,b\n", "no rows"),
        ("[[1, 2}", "not JSON"),
        ("[[1, [2]]]", "row 1: value 2"),
        ('[{"a": 1}, {"b": 1}]', "row 2 does not have the keys"),
    ],
)
def test_wrong_rows_are_named(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("[", r"\[")):
        parse_rows(text)


def test_a_model_of_one_input_gets_all_rows_as_one_tensor() -> None:
    request = infer_request(Table(((1, 2.5), (3, 4))), MATRIX)
    assert request == {"inputs": [{"name": "input", "shape": [2, 2], "datatype": "FP64", "data": [1.0, 2.5, 3.0, 4.0]}]}


def test_a_model_of_several_inputs_gets_columns_by_name() -> None:
    request = infer_request(Table((("Oslo", 31), ("Rome", 44)), ("city", "age")), COLUMNS)
    assert request["inputs"] == [
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [31.0, 44.0]},
        {"name": "city", "shape": [2, 1], "datatype": "BYTES", "data": ["Oslo", "Rome"]},
    ]


def test_columns_without_names_are_taken_in_the_models_order() -> None:
    request = infer_request(Table(((31, "Oslo"),)), COLUMNS)
    assert [tensor["data"] for tensor in request["inputs"]] == [[31.0], ["Oslo"]]


def test_a_model_that_tells_nothing_gets_what_the_rows_look_like() -> None:
    assert infer_request(Table(((1, 2),)), [])["inputs"][0]["shape"] == [1, 2]
    assert [tensor["name"] for tensor in infer_request(Table(((1, 2),), ("a", "b")), [])["inputs"]] == ["a", "b"]


def test_a_missing_column_and_a_text_for_a_number_are_named() -> None:
    with pytest.raises(UsageError, match="lack city"):
        infer_request(Table(((31, 1),), ("age", "town")), COLUMNS)
    with pytest.raises(UsageError, match="age takes FP64, not 'old'"):
        infer_request(Table((("old", "Oslo"),), ("age", "city")), COLUMNS)


def test_an_answer_is_a_table_flat_or_nested() -> None:
    flat = {"name": "p", "shape": [2, 2], "data": [0.25, 0.75, 1.0, 0.0]}
    nested = {"name": "p", "shape": [2, 2], "data": [[0.25, 0.75], [1.0, 0.0]]}
    label = {"name": "label", "shape": [2], "data": ["a", "b"]}
    table = answer_table({"outputs": [flat, label]})
    assert table == answer_table({"outputs": [nested, label]})
    assert table_text(table) == "p[0],p[1],label\n0.25,0.75,a\n1.0,0.0,b\n"


@pytest.mark.parametrize("answer", [{}, {"outputs": 1}, {"outputs": [{"name": "p"}]}])
def test_another_answer_is_the_servers_fault(answer: dict[str, object]) -> None:
    with pytest.raises(RemoteError, match="Open Inference Protocol"):
        answer_table(answer)


def test_a_first_row_of_text_is_not_taken_for_a_header_in_silence() -> None:
    words = [{"name": "text", "shape": [-1], "datatype": "BYTES"}]
    for text in ("hello\nworld\n", '[{"other": "hello"}]'):
        table = parse_rows(text)
        assert isinstance(table, Table)
        with pytest.raises(UsageError, match="does not name the model's input, text"):
            infer_request(table, words)
    named = parse_rows("text\nhello\nworld\n")
    assert isinstance(named, Table)
    assert infer_request(named, words)["inputs"][0]["data"] == ["hello", "world"]
    numbers = parse_rows("a,b\n1,2\n")  # names of columns, which a tensor of numbers has no place for
    assert isinstance(numbers, Table)
    infer_request(numbers, [{"name": "input", "shape": [-1, 2], "datatype": "FP64"}])
    infer_request(numbers, [{"name": "input", "shape": [-1, 2]}])
