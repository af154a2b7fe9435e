"""This module finds the example that ships with the package, and says what to do where it is missing.

The command line asks it, and no other module knows where the example lies.
"""

from __future__ import annotations

from pathlib import Path

from sd21.sources import MINI

from ..runs.manifest import read_manifest
from ..runs.request import Request
from ..scans.errors import DemoError
from ..settings import Settings

EXAMPLES = Path(__file__).parent / "examples" / "manifest.jsonl"


def demo_request() -> Request:
    """The first composition of the shipped examples.

    Raises DemoError where this installation lacks them, or the small checkpoint.
    """
    missing = [path for path in (MINI, EXAMPLES) if not path.exists()]
    if missing:
        raise DemoError(
            "the demo needs the small checkpoint and the example scans, and this installation lacks "
            f"{' and '.join(map(str, missing))}; compose scans of your own instead, with a model from the hub or from "
            "a folder: python -m composition run --help"
        )
    rows, errors = read_manifest(EXAMPLES, Settings())
    if errors:
        raise DemoError(f"{EXAMPLES} is damaged, reinstall the package: {errors}")
    return rows[0].request
