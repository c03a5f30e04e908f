"""One team for all tests that look at the gateway from outside. Side by side they stay in one process, which has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fronting import Front

# Tests kill it, and ask more often than a person does.
CONFIG = """
[supervision]
grace = 1
intensity = 1000

[gateway]
requests_per_minute = 1000000
"""


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front.start(tmp_path_factory.mktemp("front"), CONFIG) as one:
        yield one
