"""One-line errors and system errors."""

import pytest

from ddpm_jax.runtime.errors import FileAccessError, error_line, os_errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "permission denied"),
        (OSError("no number"), "no number"),
        (ValueError("one\n  two"), "one two"),
        (EOFError(), "EOFError"),
        (ValueError("UNKNOWN: ... [os_error_code='28'] writing /a"), "no space left on device"),
        (
            ValueError(
                'NOT_FOUND: Error opening "zarr" driver: Error writing "a" in OCDBT database at gs://b/2/params/: no bucket '
                "[tensorstore_spec='{}']"
            ),
            "NOT_FOUND: no bucket",
        ),
        (
            ValueError("ABORTED: Error writing gs://b/m: busy [http_response_code='503']"),
            "ABORTED: Error writing gs://b/m: busy",
        ),
        (ValueError("x" * 200), "x" * 157 + "..."),
        ("not known", "not known"),  # the reason of a URLError may be a text
    ],
)
def test_an_error_in_one_line(error, line):
    assert error_line(error) == line


def test_the_line_of_a_foreign_error_is_complete():
    assert error_line(KeyError("x"), kind=True) == "KeyError: 'x'"
    assert error_line(EOFError(), kind=True) == "EOFError"
    assert error_line(PermissionError(13, "Permission denied", "/a/b"), kind=True).endswith("Permission denied: '/a/b'")
    assert error_line(ValueError("y" * 50), kind=True, most=20) == "ValueError: yyyyy..."


def test_a_system_error_becomes_one_line_and_others_pass():
    match = r"^cannot write /a: no space left on device; choose another$"
    with pytest.raises(FileAccessError, match=match), os_errors("cannot write /a", "; choose another"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileAccessError, match=r"^first$"), os_errors("second"):
        raise FileAccessError("first")
    with pytest.raises(ValueError, match="third"), os_errors("second"):
        raise ValueError("third")
