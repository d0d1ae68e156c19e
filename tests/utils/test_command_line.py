"""Words of a command line, as Hydra reads them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ogpsa.utils.command_line import quoted


@pytest.mark.parametrize(
    "text", ["", "a b", "a,b", "(x)", "it's", "a\\b", "a\\", "a\\\\", "a\\'b", "\\\\server\\x", "two\nlines", "é=[1]"]
)
def test_a_quoted_text_is_the_value_that_it_was(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text
