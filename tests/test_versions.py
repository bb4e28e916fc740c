"""Version numbers: recorded, and compared as numbers."""

import pytest
import torch

from quantkit.versions import newest, versions


@pytest.mark.parametrize(
    ("numbers", "highest"),
    [(("4.9", "4.49"), "4.49"), (("4.51.3", "4.51"), "4.51.3"), (("5.0", "4.57.6"), "5.0"), (("4.28",), "4.28")],
)
def test_the_newest_is_the_highest_number(numbers, highest):
    assert newest(*numbers) == newest(*reversed(numbers)) == highest


def test_versions_are_those_of_the_installed_libraries():
    assert versions()["torch"] == torch.__version__
    assert {"python", "quantkit", "transformers"} <= versions().keys()
