import pickle

import pytest

from prefcast import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.FileError("f.csv", "is empty"),
        errors.FileError("f.csv", "is odd", 3),
        errors.RowError("f.csv", 3, "prompt", "is empty", "x"),
        errors.ScoringError("f.csv", 3, "", "not finite"),
        errors.UsageError("no"),
        errors.MissingExtraError("torch", "transformers"),
        errors.ForecasterError("no"),
        errors.FitError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_between_processes(error: errors.PrefcastError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_row_error_says_where_and_what() -> None:
    assert str(errors.RowError("f.csv", 3, "prompt", "is empty")) == "f.csv: row 3, prompt: is empty"
    assert errors.RowError("f.csv", 3, "prompt", "is empty").id == 3


def test_a_missing_extra_names_the_command() -> None:
    assert "pip install 'prefcast[serve]'" in str(errors.MissingExtraError("starlette", "serve"))


def test_text_in_messages_cannot_drive_a_terminal() -> None:
    hostile = "\x1b[31mred\x07\r\n\u202egnp.exe\ud83d"
    for shown in (errors.excerpt(hostile), errors.printable(hostile), errors.shown_path(hostile)):
        assert shown.isprintable()
    assert errors.excerpt("x" * 100).endswith("...'")
    assert len(errors.excerpt(["x" * 1000])) < 80
