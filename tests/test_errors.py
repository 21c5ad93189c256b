from mpa_edge.errors import MpaError, VerificationError, missing_package


def test_exit_codes() -> None:
    assert MpaError("x").exit_code == 1
    assert VerificationError("x").exit_code == 3
    assert isinstance(VerificationError("x"), MpaError)


def test_missing_package_ends_with_the_fix() -> None:
    assert str(missing_package("torch", "align")) == "torch is missing: pip install 'mpa-edge[align]'"
