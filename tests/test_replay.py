"""Every row of scipy.optimize, killed at 10, 50 and 90 %, goes on bit for bit elsewhere."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import scipy.optimize
from fits import COUNTER, FITS, differences
from processes import SIGKILLED, in_child

from warmstart import Store, journal, optimize, using
from warmstart.surfaces import SURFACES


def run(name, folder, kill_at=None, **options):
    """Make one of the calls; returns its result, its report and the calls that were real."""
    COUNTER.reset(kill_at)
    np.random.seed(12)
    with warnings.catch_warnings(), using(store=Store(folder), journal=True, **options) as fits:
        warnings.simplefilter("ignore")
        result = FITS[name].call(optimize)
    return result, fits[-1], COUNTER.count


def plain(name):
    COUNTER.reset()
    np.random.seed(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = FITS[name].call(scipy.optimize)
    return result, COUNTER.count


@pytest.mark.parametrize("name", [name for name, fit in FITS.items() if not fit.pool])
def test_killed_fits_go_on_bit_for_bit(tmp_path, name, monkeypatch):
    """Killed at 10, 50 and 90 %; resumed in another process; evaluations counted by the fit."""
    monkeypatch.setattr(journal, "BUFFER_SECONDS", 0.0)  # every evaluation at once
    expected, total = plain(name)
    assert total > 0

    def resume(folder, kill_at):
        result, report, count = run(name, folder)
        return {
            "differs": list(differences(expected, result)),
            "source": report.source,
            "replay": report.replay,
            "claimed": report.evaluations,
            "saved": report.evaluations_saved,
            "probes": report.probes,
            "real": count,
        }

    for kill_at in sorted({max(1, round(part * total)) for part in (0.1, 0.5, 0.9)}):
        folder = tmp_path / str(kill_at)
        status, _ = in_child(lambda: run(name, folder, kill_at))
        assert status == SIGKILLED
        _, seen = in_child(lambda: resume(folder, kill_at))
        assert seen["differs"] == []
        assert seen["claimed"] == seen["real"]
        if FITS[name].opaque:
            continue
        lost = seen["real"] - seen["probes"] - (total - (kill_at - 1))
        assert lost == 0
        assert seen["saved"] == kill_at - 1
        if kill_at > 1:
            assert (seen["source"], seen["replay"]) == ("journal", "exact")
            assert 1 <= seen["probes"] <= 2


@pytest.mark.parametrize("name", [name for name, fit in FITS.items() if not fit.pool])
def test_a_recorded_fit_is_scipys(tmp_path, name):
    """Recording changes no bit and no count, and nor does a hit, or a replay from end to end."""
    expected, total = plain(name)
    result, report, count = run(name, tmp_path)
    assert list(differences(expected, result)) == []
    assert count == total == report.evaluations
    result, report, count = run(name, tmp_path, callbacks="skip")
    if FITS[name].opaque:  # what has no bytes is named, and made anew
        assert (report.source, report.dropped) == ("journal", ("result.jac",))
    else:
        assert report.source == "final"
        assert count == report.evaluations == 0
    if not FITS[name].callback:
        assert list(differences(expected, result)) == []
    other = tmp_path / "other"
    with Store(other) as store:
        store.stats()  # makes it
    shutil.copytree(tmp_path / "journals", other / "journals")
    result, report, count = run(name, other)
    assert list(differences(expected, result)) == []
    assert (report.source, report.replay) == ("journal", "exact")
    assert count == report.evaluations
    if not FITS[name].opaque:
        assert report.evaluations_saved == total
        assert count == report.probes


def test_every_row_is_tried():
    """A row of the table without a call here would not be tested."""
    with_functions = {name for name, surface in SURFACES.items() if surface.function}
    assert {fit.function for fit in FITS.values()} == with_functions
