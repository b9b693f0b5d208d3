import pytest

ERRORS = {}


@pytest.fixture
def record_error(request):
    """Keeps the largest error of a test for the summary of the run."""
    name = request.node.nodeid

    def record(error):
        ERRORS[name] = max(error, ERRORS.get(name, 0.0))

    return record


def pytest_terminal_summary(terminalreporter):
    if not ERRORS or terminalreporter.verbosity < 1:  # shown with -v
        return
    terminalreporter.section("largest relative errors against the originals")
    for name, error in ERRORS.items():
        terminalreporter.write_line(f"{error:.1e}  {name}")
