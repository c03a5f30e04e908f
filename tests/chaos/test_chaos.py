"""A short run: every kind of fault once, with limits of supervision that are a quarter of the usual ones.

Whether a promise is kept is tested here, how quickly by long runs, on a machine that has nothing else to do.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from chaos.plan import KINDS
from team import ROOT

SEED = 5
WITHIN = 150.0  # seconds; it takes half a minute on two processors


@pytest.mark.long
def test_a_team_survives_every_kind_of_fault() -> None:
    call = [sys.executable, str(ROOT / "scripts/chaos"), str(len(KINDS)), "--seed", str(SEED), "--brisk"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            said, _ = run.communicate(timeout=WITHIN)
        except subprocess.TimeoutExpired:
            run.terminate()  # so that it takes its team down
            said, _ = run.communicate(timeout=WITHIN)
    print(said)
    assert run.returncode == 0, "promises were broken, see above; the same seed makes the same faults again"
