"""Writes the tables of docs/speed.md anew, from the results: no number by hand.

    python benchmarks/speed_page.py

Between `<!-- results: NAME ... -->` and `<!-- end of results -->` the page shows
benchmarks/results/NAME.md, of each name that has been measured, one after another.
"""

import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
END = "<!-- end of results -->"
_PLACE = re.compile(rf"(<!-- results: ([\w ]+) -->).*?{END}", re.DOTALL)


def filled(page: str) -> str:
    """The page with the results as they are now."""

    def results(match: re.Match) -> str:
        files = [RESULTS / f"{name}.md" for name in match[2].split()]
        found = [file.read_text().strip() for file in files if file.exists()]
        if not found:
            raise FileNotFoundError(
                f"{files[0]} must be there to be shown: run its benchmark first."
            )
        return "\n\n".join([match[1], *found, END])

    return _PLACE.sub(results, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
