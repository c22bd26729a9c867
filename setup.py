"""The README as a package index shows it: relative links and pictures lead nowhere there, so files are only named."""

import re
from pathlib import Path

from setuptools import setup


def for_an_index(readme: str) -> str:
    """Without pictures that are files, and with `docs/limits.md` in place of a link to it."""
    readme = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n\n", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[`?([^]`]+)`?\]\((?!https?:)[^)]*\)", r"`\1`", readme)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=for_an_index(readme), long_description_content_type="text/markdown")
