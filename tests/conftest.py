"""What holds for every test."""


def pytest_make_parametrize_id(val, argname):
    """Bytes name a test by their place: what is compressed holds the time, and each process would collect a test of another name."""
    return argname if isinstance(val, bytes) else None
