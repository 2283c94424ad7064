"""The list of faults is the list of what is tried."""

from pathlib import Path

from tests.chain.faults import FAULTS, tried, tried_in


def test_each_fault_of_the_list_has_a_test_and_no_test_names_another() -> None:
    found = tried()
    assert [name for name, tests in found.items() if not tests] == [], "nobody tries these"
    assert [name for name in found if name not in FAULTS] == [], "these are not in the list"


def test_a_fault_is_read_from_marks_and_from_the_marks_of_parameters(tmp_path: Path) -> None:
    source = tmp_path / "test_x.py"
    source.write_text(
        "DEPTHS = [pytest.param(1, marks=pytest.mark.fault('one'))]\n"
        "@pytest.mark.fault('two', 'three')\n"
        "@pytest.mark.parametrize('depth', DEPTHS)\n"
        "async def test_it(depth): pass\n"
        "def test_other(): pass\n"
    )
    assert sorted(tried_in(source)) == [
        ("one", "test_it"),
        ("three", "test_it"),
        ("two", "test_it"),
    ]
