"""What holds for all tests, and fixtures that several modules share."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Iterator

import pytest
import sniffio
from hypothesis import HealthCheck, settings
from system_manager import system_manager
from user_manager import user_manager

__all__ = ["system_manager", "user_manager"]

# Ignored where a script has started us in its background, and then by all our children: some are to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long something takes says more of the machine's other work than of the code.
settings.register_profile("chorus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chorus")


@pytest.fixture(autouse=True)
def _the_loop_is_known(request: pytest.FixtureRequest) -> Iterator[None]:
    """To callbacks of an async test's loop too, as under anyio.run(): a client that the tests bring along has sniffio
    installed, and where that is anyio asks it which loop is running.
    """
    is_async = inspect.iscoroutinefunction(request.function)
    before = sniffio.current_async_library_cvar.set("asyncio" if is_async else None)
    yield
    sniffio.current_async_library_cvar.reset(before)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For tests side by side: those that share a fixture stay in one process, in their order; those that take longest begin
    first.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
        # By where the fixture is: a file, or the folder of a conftest.py. Those of plugins have no place.
        shared = {one.baseid for found in fixtures for one in found if one.scope != "function" and one.baseid}
        if shared:
            item.add_marker(pytest.mark.xdist_group(min(shared, key=len)))
