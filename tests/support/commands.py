"""What a command printed."""


def error_line(capsys):
    """The one line on standard error."""
    out, err = capsys.readouterr()
    assert err.startswith("keras-griffin: error: ")
    assert err.count("\n") == 1
    return err
