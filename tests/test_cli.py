"""The command line: for people by default, for machines with --json."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import scipy.optimize

from warmstart import (
    ArgumentError,
    BundleError,
    FitSpec,
    Store,
    cli,
    learned,
    optimize,
    progress,
    using,
)
from warmstart.backends import Batch
from warmstart.copying import copy
from warmstart.demo import DemoRow
from warmstart.rows import RunInfo, info_row, small
from warmstart.session import process_row


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store with three fits, named by the environment."""
    place = tmp_path / "store"
    monkeypatch.setenv("WARMSTART_STORE", str(place))
    monkeypatch.setenv("COLUMNS", "200")
    with Store(place) as store, using(store=store):
        for tol in (1e-3, 1e-6):
            optimize.minimize(optimize.rosen, [1.3, 0.7], method="BFGS", tol=tol)
        optimize.least_squares(lambda p: p - 3.0, [0.0, 1.0])
    return place


@pytest.fixture
def keys(place):
    with Store(place) as store:
        return [str(key) for key in store.keys()]


def run(capsys, *arguments):
    """Run a command; returns exit code, standard output and standard error."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


class TestCommands:
    """Each command, both ways."""

    def test_help_is_worth_reading(self, capsys):
        """--help lists all commands, exit codes and how keys are abbreviated."""
        code, out, _ = run(capsys, "--help")
        assert code == 0
        for word in (
            "demo",
            "run",
            "ls",
            "show",
            "compare",
            "plot",
            "families",
            "report",
            "ui",
            "fits",
            "explain",
            "stats",
            "verify",
            "gc",
            "export",
            "import",
            "Exit codes",
            "first digits",
        ):
            assert word in out
        assert max(map(len, out.splitlines())) <= 80
        for command in (
            "demo",
            "run",
            "ls",
            "show",
            "compare",
            "plot",
            "families",
            "report",
            "ui",
            "fits",
            "explain",
            "stats",
            "verify",
            "gc",
            "export",
            "import",
        ):
            code, out, _ = run(capsys, command, "--help")
            assert (code, "--json" in out) == (0, True)

    def test_options_before_the_command(self, place, tmp_path, monkeypatch, capsys):
        """--store and --json may stand on either side of the command."""
        other = str(tmp_path / "other")
        with Store(other) as store, store.run(name="one"):
            pass
        for arguments in (("--store", other, "--json", "ls"), ("ls", "--store", other, "--json")):
            (found,) = json.loads(run(capsys, *arguments)[1])
            assert found["name"] == "one"
        assert len(run_json(capsys, "--store", str(place), "ls", "--store", other)) == 1

    def test_ls(self, place, keys, capsys):
        """Fits are listed newest first; a long list is cut with a count."""
        rows = run_json(capsys, "fits")
        assert sorted(row["key"] for row in rows) == sorted(keys)
        assert "least_squares" in rows[0]["what"]
        code, out, _ = run(capsys, "fits", "--limit", "1")
        assert code == 0
        assert "and 2 more" in out
        assert rows[0]["key"][:12] in out

    def test_show(self, keys, capsys):
        """A fit's arguments and runs are shown under an abbreviated key."""
        shown = run_json(capsys, "show", keys[0][:8])
        assert shown["key"] == keys[0]
        assert {"part", "argument", "value"} == set(shown["arguments"][0])
        assert shown["entries"][0]["kind"] == "final"
        code, out, _ = run(capsys, "show", keys[0])
        assert (code, keys[0] in out) == (0, True)

    def test_explain(self, place, capsys):
        """Two fits that differ in one argument are told apart by it."""
        with Store(place) as store:
            bfgs = [
                str(key)
                for key in store.keys()
                if "BFGS" in store.summary(key).arguments["settings"]["method"][1]
            ]
        (difference,) = run_json(capsys, "explain", *bfgs)
        assert (difference["part"], difference["name"]) == ("settings", "tol")
        assert "tol" in run(capsys, "explain", *bfgs)[1]
        assert run(capsys, "explain", bfgs[0], bfgs[0])[1] == "the same fit\n"

    def test_stats(self, place, capsys):
        """Counts and the place."""
        stats = run_json(capsys, "stats")
        assert (stats["keys"], stats["finals"], stats["address"]) == (3, 3, str(place))
        assert str(place) in run(capsys, "stats")[1]

    def test_verify(self, place, capsys):
        """A sound store exits with 0, a damaged one with 1, a repaired one with 0."""
        assert run(capsys, "verify")[0] == 0
        with Store(place) as store:
            item = store.backend.scan(b"e")[0]
            store.backend.apply(Batch({item.key: item.value[:-1] + bytes((item.value[-1] ^ 1,))}))
        code, out, _ = run(capsys, "verify")
        assert (code, "1 damaged" in out, "--repair" in out) == (1, True, True)
        assert run_json(capsys, "verify", "--repair")["repaired"] == 1
        assert run(capsys, "verify")[0] == 0

    def test_quiet_where_nobody_looks(self, place, tmp_path, capsys):
        """Standard error is empty where it is no terminal; numbers are told in one way."""
        for arguments, said in (
            (("export", str(tmp_path / "e.zip")), "3 records written"),
            (("copy", str(place), str(tmp_path / "copy")), "rows copied"),
            (("import", str(tmp_path / "e.zip")), "0 records added, 3 skipped"),
        ):
            code, out, err = run(capsys, *arguments)
            assert (code, said in out, err) == (0, True, "")

    def test_report(self, place, tmp_path, monkeypatch, capsys):
        """Where the page is, and how large."""
        monkeypatch.chdir(tmp_path)
        code, out, _ = run(capsys, "report")
        assert code == 0
        assert re.fullmatch(r"report\.html: 3 runs, [0-9.]+ MiB\n", out)

    def test_gc(self, place, capsys):
        """Nothing to sweep in a small fresh store."""
        assert run_json(capsys, "gc") == {}
        assert "nothing" in run(capsys, "gc")[1]

    def test_export_and_import(self, place, keys, tmp_path, capsys):
        """A bundle carries every fit to another store; a second import skips them."""
        bundle = str(tmp_path / "fits.zip")
        assert run_json(capsys, "export", bundle) == {"exported": 3}
        other = str(tmp_path / "other")
        first = run_json(capsys, "import", "--store", other, bundle)
        assert first == {"added": 3, "skipped": 0}
        assert run_json(capsys, "import", "--store", other, bundle) == {"added": 0, "skipped": 3}
        with Store(other) as store, using(store=store):
            assert [str(key) for key in store.keys()] == keys
            again = optimize.minimize(optimize.rosen, [1.3, 0.7], method="BFGS", tol=1e-6)
            assert again.warm.source == "final"
            assert store.verify().sound

    def test_demo(self, capsys):
        """The demo reproduces published digits, and its table has a kill and a resumption."""
        rows = run_json(capsys, "demo")
        assert [row["source"] for row in rows] == [
            "cold", "final", "cold", "final", "killed", "journal", "final",
        ]  # fmt: skip
        assert all(row["digits"] is None or row["digits"] > 3.5 for row in rows)
        assert rows[0]["digits"] > 6
        assert rows[1]["evaluations"] == 0
        killed, resumed, again = rows[4:]
        assert resumed["saved"] >= killed["evaluations"] > 0
        probes = resumed["saved"] + resumed["evaluations"] - again["saved"]
        assert probes in {1, 2}


class TestRefusals:
    """Wrong input is answered by one line and an exit code."""

    def test_unknown_and_short_keys(self, keys, capsys):
        """Exit code 2 and the reason."""
        for key, reason in (("0123456789", "no key"), ("ab", "4 to 64"), ("zzzz", "hexadecimal")):
            code, _, err = run(capsys, "show", key)
            assert (code, reason in err) == (2, True)

    def test_no_store(self, tmp_path, monkeypatch, capsys):
        """Asking a store that is not there says so, exits with 1, and creates nothing."""
        place = tmp_path / "none"
        code, _, err = run(capsys, "fits", "--store", str(place))
        assert (code, "no store" in err) == (1, True)
        assert not place.exists()

    def test_wrong_arguments(self, capsys):
        """Unknown commands and numbers exit with 2."""
        for arguments in (
            (),
            ("nothing",),
            ("fits", "--limit", "0"),
            ("show",),
            ("fits", "--store", "mysql://x"),
            ("ui", "--port", "99999"),
            ("ui", "--port", "-1"),
        ):
            assert run(capsys, *arguments)[0] == 2

    def test_what_is_no_script(self, tmp_path, capsys):
        """The script alone is asked for; a notebook is refused with what to do instead."""
        assert run(capsys, "run")[2].endswith("the following arguments are required: script\n")
        notebook = tmp_path / "x.ipynb"
        notebook.write_text('{"cells": null}')
        code, _, err = run(capsys, "run", str(notebook))
        assert (code, "is a notebook" in err) == (2, True)

    def test_copying_to_itself(self, place, capsys):
        """Two stores are named, and no third one."""
        code, _, err = run(capsys, "copy", str(place), f"{place}/.")
        assert (code, "the same store" in err) == (2, True)
        assert run(capsys, "copy", "--store", "x", "a", "b")[0] == 2
        code, _, err = run(capsys, "--store", "x", "copy", "a", "b")
        assert (code, "takes no --store" in err) == (2, True)

    @pytest.mark.parametrize("name", ["none.zip", "."])
    def test_importing_from_nowhere(self, place, tmp_path, monkeypatch, name, capsys):
        """What was given, and what is expected."""
        monkeypatch.chdir(tmp_path)
        code, _, err = run(capsys, "import", name)
        assert (code, err.startswith(f"warmstart: {name} is no file"), "export" in err) == (
            2,
            True,
            True,
        )

    @pytest.mark.parametrize("command", ["ls", "fits", "stats"])
    def test_a_reader_that_has_left(self, place, command):
        """Where nobody reads standard output any more there is no error and no message."""
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "warmstart", command],
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.parametrize("kind", ["text", "zip", "newer", "missing", "manifest"])
    def test_what_is_no_bundle(self, kind, place, tmp_path, capsys):
        """Files of other programs, other zips and newer bundles are refused, and add nothing."""
        file = tmp_path / "file.zip"
        if kind == "text":
            file.write_text("text")
        elif kind != "missing":
            with zipfile.ZipFile(file, "w") as made:
                made.writestr("readme.txt", "x")
                if kind == "newer":
                    made.writestr("warmstart.json", '{"format": 2}')
                if kind == "manifest":
                    made.writestr("warmstart.json", "[" * 100_000)
        code, _, err = run(capsys, "import", str(file))
        assert code in {1, 2}
        assert "file.zip" in err

    def test_hostile_members_are_skipped(self, place, tmp_path, capsys):
        """Members that lie about their key, size or content are skipped and counted."""
        bundle = tmp_path / "fits.zip"
        run(capsys, "export", str(bundle))
        with zipfile.ZipFile(bundle) as made:
            name = next(n for n in made.namelist() if n.startswith("entries/"))
            record = made.read(name)
        hostile = tmp_path / "hostile.zip"
        with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("warmstart.json", '{"format": 1, "records": 4}')
            made.writestr("entries/" + "0" * 64 + name[72:], record)
            made.writestr(name, record[:-1] + bytes([record[-1] ^ 1]))
            made.writestr("entries/" + "1" * 64 + name[72:], bytes(300 << 20))
            made.writestr("../../etc/passwd", b"x")
            made.writestr("entries/" + "2" * 64 + "/../../x", b"x")
        other = str(tmp_path / "other")
        assert run_json(capsys, "import", "--store", other, str(hostile)) == {
            "added": 0,
            "skipped": 3,
        }

    def test_exporting_to_nowhere(self, place, tmp_path, capsys):
        """A folder, or a file in a folder that is not there, is no place for a bundle."""
        for target in (tmp_path, tmp_path / "none" / "file.zip"):
            assert run(capsys, "export", str(target))[0] == 2


def test_bundles_keep_the_order_of_writing(tmp_path):
    """The newest of two finals is still the newest after export and import."""
    with Store(tmp_path / "a") as store, using(store=store, refit=True):
        for _ in range(3):
            key = optimize.minimize(optimize.rosen, [1.3, 0.7]).warm.key
        store.export(tmp_path / "b.zip")
        with Store(tmp_path / "c") as other:
            other.import_(tmp_path / "b.zip")
            found = [store.resolve(key), other.resolve(key)]
            assert store.best(found[0]).run == other.best(found[1]).run
            np.testing.assert_array_equal(
                [e.run for e in store.entries(found[0])], [e.run for e in other.entries(found[1])]
            )


def test_bundles_carry_runs_and_the_near_index(tmp_path, monkeypatch):
    """Runs, experiments, series, artifacts, states; near fits are found in the other store."""

    def bowl(x, a):
        return float(np.sum((x - a) ** 2) + np.sum(x**4))

    with Store(tmp_path / "a") as store, using(store=store, near=True):
        store.create_experiment("study", description="of bowls")
        with store.run("study", name="mine", params={"a": 1}, tags={"t": "u"}) as run:
            run.log_metric("loss", 0.5)
            run.log_artifact("plot.txt", b"a plot")
            run.save_state(3, {"n": 1})
            for a in (1.0, 1.1, 1.2):
                optimize.minimize(bowl, np.zeros(2), args=(a,))
        assert store.export(tmp_path / "b.zip") == 3
    with Store(tmp_path / "c") as other, using(store=other, near=True):
        for _ in range(2):
            other.import_(tmp_path / "b.zip")
        found = other.get_run(run.id)
        assert (found.name, found.params, found.tags) == ("mine", {"a": 1}, {"t": "u"})
        assert other.experiment("study").description == "of bowls"
        assert found.metrics("loss").values.tolist() == [0.5]
        assert found.load_artifact("plot.txt") == b"a plot"
        assert found.load_state().step == 3
        assert len(found.children) == 3
        assert optimize.minimize(bowl, np.zeros(2), args=(1.15,)).warm.source == "near"
        assert other.verify().sound


@pytest.mark.parametrize("how", ["bundle", "copy", "copy to a directory and back"])
def test_journals_move_too(tmp_path, how):
    """A fit that was stopped goes on bit for bit where its store was moved to."""
    plain = scipy.optimize.minimize(optimize.rosen, [-1.2, 1.0], method="Nelder-Mead")
    calls = []

    def slow(x):
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return optimize.rosen(x)

    def fit(store):
        with using(store=store, journal=True, model="moved"):
            return optimize.minimize(slow, [-1.2, 1.0], method="Nelder-Mead")

    with Store(tmp_path / "a") as store:
        with pytest.raises(KeyboardInterrupt), using(on_interrupt="raise"):
            fit(store)
        places = [tmp_path / "b"]
        if how == "bundle":
            store.export(tmp_path / "b.zip")
            with Store(places[0]) as other:
                other.import_(tmp_path / "b.zip")
        elif how == "copy":
            with Store(places[0]) as other:
                copy(store, other, lambda done, total: None)
        else:
            with Store(f"dir://{tmp_path}/d") as between, Store(places[0]) as other:
                copy(store, between, lambda done, total: None)
                copy(between, other, lambda done, total: None)
    with Store(places[0]) as store:
        found = fit(store)
    assert found.warm.source == "journal"
    assert found.warm.replay == "exact"
    assert found.x.tobytes() == plain.x.tobytes()
    assert found.nfev == plain.nfev


@pytest.mark.parametrize("where", ["directory", "member"])
def test_offsets_out_of_a_bundle(tmp_path, where):
    """What points to before the file's beginning is no bundle, or left out."""
    with Store(tmp_path / "a") as store:
        store.session(FitSpec(model="m")).finalize(1.0)
        store.export(tmp_path / "b.zip")
    raw = bytearray((tmp_path / "b.zip").read_bytes())
    end = raw.rindex(b"PK\x05\x06")
    if where == "directory":
        raw[end + 12 : end + 16] = b"\xff\xff\xff\x7f"  # its size
    else:
        raw[end + 16 : end + 20] = b"\xff\xff\xff\x7f"  # its offset, to which those of members add
    (tmp_path / "b.zip").write_bytes(raw)
    with Store(tmp_path / "b") as store, pytest.raises(BundleError):
        store.import_(tmp_path / "b.zip")


def test_foreign_rows_of_a_bundle_are_left_out(tmp_path):
    """Rows of kinds that a store does not give away, artifacts without or with other bytes."""
    with Store(tmp_path / "a") as store:
        with store.run() as run:
            run.log_artifact("x", b"some bytes")
        store.export(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as made:
        members = {name: made.read(name) for name in made.namelist()}
    (artifact,) = (name for name in members if name.startswith("rows/63"))
    (blob,) = (name for name in members if name.startswith("blobs/"))
    sealed = members[artifact]
    hostile = members | {blob: b"others"}
    hostile |= {f"rows/{letter.encode().hex()}00": sealed for letter in "abeqsz"}
    hostile |= {"rows/00ff": sealed, "rows/" + "63" * 17: sealed, "rows/" + "63" * 18: sealed}
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as made:
        for name, content in hostile.items():
            made.writestr(name, content)
    with Store(tmp_path / "c") as other:
        assert other.import_(tmp_path / "h.zip") == (0, 0)
        letters = {item.key[:1] for item in other.backend.scan(b"")}
        assert letters <= {b"r", b"h", b"d", b"s", b"x", b"y"}
        assert [one.id for one in other.runs()] == [run.id]


class TestRuns:
    """Runs in the terminal."""

    @pytest.fixture
    def runs(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WARMSTART_STORE", str(tmp_path / "store"))
        monkeypatch.setenv("COLUMNS", "200")

        def bowl(x, a):
            time.sleep(0.01)  # so that its convergence is kept
            return float(np.sum((x - a) ** 2)), 2.0 * (x - a)

        with Store(tmp_path / "store") as store:
            with using(store=store, near=True):
                for a in (1.0, 1.5, 1.5):
                    optimize.minimize(bowl, np.zeros(3), args=(a,), jac=True, method="CG")
            with store.run("mine", name="outer", params={"rate": 0.5}, tags={"who": "me"}) as run:
                run.log_metric("score", 2.0)
                run.log_metric("score", 1.0)
                run.log_artifact("a.txt", b"x")
            with pytest.raises(OverflowError), store.run("mine", name="[red]broken[/red]"):
                raise OverflowError
            store.flush()
            return {one.name: one.id for one in store.runs()}

    def test_ls(self, runs, capsys):
        """Filtered, sorted, cut with a count, savings summed."""
        assert len(run_json(capsys, "ls")) == 4
        assert [r["name"] for r in run_json(capsys, "ls", "params.rate>=0.5")] == ["outer"]
        assert [r["state"] for r in run_json(capsys, "ls", "status=failed")] == ["failed"]
        assert len(run_json(capsys, "ls", "run~0")) == 4
        assert len(run_json(capsys, "ls", "--experiment", "mine")) == 2
        found = [r.get("evaluations", -1) for r in run_json(capsys, "ls", "--sort", "evaluations")]
        assert found == sorted(found, reverse=True)
        code, out, _ = run(capsys, "ls", "-n", "2")
        assert code == 0
        assert "and 2 more" in out
        assert "1 hit saved" in out
        assert "[red]broken[/red]" in out

    def test_show(self, runs, capsys):
        code, out, _ = run(capsys, "show", runs["outer"][:14])
        assert code == 0
        for text in ("params.rate", "0.5", "artifact a.txt", "score", "completed"):
            assert text in out
        found = run_json(capsys, "show", runs["minimize CG bowl"], "--lineage")
        assert found["lineage"]["edges"][0]["kind"] == "near"
        assert found["series"]["best"]["points"] > 0
        code, out, _ = run(capsys, "show", runs["minimize CG bowl"], "--lineage")
        assert "near sibling-hyper" in out

    def test_facts_are_told_in_their_units(self, runs, capsys):
        """Ids have no separators, memory has a unit, times are ages, experiments have names."""
        out = run(capsys, "show", runs["outer"][:14])[1]
        told = {row[0]: row[1:] for line in out.splitlines() if (row := line.split())}
        assert told["pid"] == [str(os.getpid())]
        assert told["memory"][1] == "GiB"
        assert told["told"][1:] == ["s", "ago"]
        assert told["experiment"] == ["mine"]

    @pytest.mark.parametrize("value", [b"x", "../..", None, [1], {"a": 1}, -1, 1e300, np.nan])
    def test_what_a_process_tells_may_be_anything(self, runs, tmp_path, capsys, value):
        """`show` shows it, whatever it is; times beyond any calendar do not break the page."""
        with Store(tmp_path / "store") as store:
            info = store.run_info(runs["outer"])
            told = dict.fromkeys(("told", "memory", "pid", "started", "status"), value)
            store.backend.apply(Batch({process_row(info.process): small(told)}))
            if isinstance(value, float):
                store.set_run_info(msgspec.structs.replace(info, started=value))
        assert run(capsys, "show", runs["outer"])[0] == 0
        assert run(capsys, "ls")[0] == 0
        output = str(tmp_path / "page.html")
        assert run(capsys, "report", "-o", output)[0] == 0

    def test_compare(self, runs, capsys):
        code, out, _ = run(capsys, "compare", *runs.values())
        assert code == 0
        assert "differs" in out
        found = run_json(capsys, "compare", runs["outer"], runs["minimize CG bowl"])
        assert found["values"]["params.rate"] == [0.5, None]

    def test_plot(self, runs, capsys):
        code, out, _ = run(capsys, "plot", runs["minimize CG bowl"], runs["outer"])
        assert code == 0
        assert "score" in out
        assert len(out.splitlines()) > 18
        steps = next(line for line in out.splitlines() if line.startswith(" " * 11 + "|"))
        assert all(re.fullmatch("[0-9,]+", label) for label in steps.split()[1:])
        found = run_json(capsys, "plot", runs["outer"], "--series", "score")
        assert found[0]["values"] == [2.0, 1.0]
        code, _, err = run(capsys, "plot", runs["outer"], "--series", "none")
        assert code == 2
        assert "it has score" in err

    def test_families(self, runs, capsys):
        found = run_json(capsys, "families", "--models")
        assert {row["way"] for row in found["families"]} == {"cold", "sibling-hyper nearest"}
        assert found["models"][0]["fits"] == 2
        code, out, _ = run(capsys, "families", "--models")
        assert code == 0
        assert "settings.x0" in out
        with Store() as store, store.session(FitSpec(model="mine-v3")) as session:
            session.finalize(1.0)
        assert "mine-v3: 1 fit\n" in run(capsys, "families", "--models")[1].replace("'", "")

    def test_wrong(self, runs, capsys):
        for arguments in (
            ("ls", "color=red"),
            ("ls", "params.rate>=abc"),
            ("ls", "params.rate>="),
            ("ls", "name<true"),
            ("ls", "--experiment", "none"),
            ("show", "ffffffffffff"),
            ("compare", "ffffffffffff"),
        ):
            code, _, err = run(capsys, *arguments)
            assert code == 2
            assert err.startswith("warmstart: ")


class TestNarrow:
    """Tables on a line of eighty characters."""

    @pytest.fixture
    def many(self, tmp_path, monkeypatch):
        """A store with fits that have long names and took long, completed and killed."""
        monkeypatch.setenv("WARMSTART_STORE", str(tmp_path / "store"))
        monkeypatch.setenv("COLUMNS", "80")
        with Store(tmp_path / "store") as store:
            for number, status in enumerate(("completed", "cancelled")):
                key = FitSpec(model=f"a model with a rather long name {number}").key
                session = store.session(key)
                session.checkpoint(np.ones(3), -1.234567e-5, 1_234_567)
                info = RunInfo(
                    run=session.run_id,
                    key=str(key),
                    status=status,
                    started=store.clock() - 59 * 60,
                    what="minimize Nelder-Mead negative_log_likelihood",
                    source="near",
                    level="sibling-hyper",
                    evaluations=7_654_321 if status == "completed" else 0,
                    saved=123_456,
                    seconds=12_345.678,
                    objective=-1.234567e-5 if status == "completed" else None,
                )
                store.backend.apply(Batch({info_row(info.run): small(info)}))
        return str(key)

    @staticmethod
    def lines(out):
        lines = out.splitlines()
        assert max(map(len, lines)) <= 80
        return lines

    def test_ls(self, many, capsys, monkeypatch):
        """A line a run: numbers are whole, the name is cut; more columns on a wide one."""
        head, _, cancelled, completed, *_ = self.lines(run(capsys, "ls")[1])
        columns = "run name status objective nfev saved age"
        assert head.split() == columns.split()
        assert "\u2026" in completed
        assert completed.split()[-5:] == ["-1.235e-05", "7,654,321", "123,456", "59", "min"]
        assert cancelled.split()[-5:] == ["-1.235e-05", "1,234,567+", "123,456", "59", "min"]
        monkeypatch.setenv("COLUMNS", "140")
        out = run(capsys, "ls")[1]
        assert "near sibling-hyper" in out
        assert "seconds" in out

    def test_fits_and_one_of_them(self, many, capsys):
        for arguments in (("fits",), ("show", many)):
            lines = self.lines(run(capsys, *arguments)[1])
            heads = next(line for line in lines if "objective" in line).split()
            assert {"kind", "objective", "nfev", "age"} <= set(heads)
            assert any("-1.235e-05  1,234,567" in line for line in lines)

    def test_the_demo(self, many, capsys, monkeypatch):
        """Its table is whole, and says that the resumed fit is scipy's."""
        row = DemoRow("Rat43 simulator", "first time", "journal", 1234, 567, 0.0001234, 10.5)
        monkeypatch.setattr(cli, "run_demo", lambda *_: [row])
        lines = self.lines(run(capsys, "demo")[1])
        assert lines[1].split() == ["fit", "from", "nfev", "saved", "seconds", "digits"]
        assert lines[3].split()[-5:] == ["journal", "1,234", "567", "0.0001234", "10.5"]
        assert "same as plain scipy's, bit for bit" in lines[-1]

    def test_families(self, many, capsys):
        with Store() as store, using(store=store, near=True):
            for a in (1.0, 1.5):
                optimize.minimize(lambda x, a: float((x - a) @ (x - a)), np.zeros(2), args=(a,))
        for line in self.lines(run(capsys, "families", "--models")[1]):
            assert "\u2026" not in line.partition("minimize")[0]


class TestLooks:
    """Plots and what notebooks show."""

    def test_of_a_run(self, tmp_path):
        import matplotlib

        matplotlib.use("Agg")
        store = Store(tmp_path / "<b>store</b>")
        with store.run(name="<script>x</script>", params={"<i>": "<u>"}) as one:
            for step in range(5):
                one.log_metric("loss", 10.0**-step)
        shown = one._repr_html_()
        assert "&lt;script&gt;" in shown
        assert "<script>" not in shown + store._repr_html_() + store.runs()._repr_html_()
        axes = one.plot()
        assert axes.get_yscale() == "log"
        assert axes.get_ylabel() == "loss"
        with pytest.raises(ArgumentError, match="has no series 'x': it has loss"):
            one.plot("x")
        with pytest.raises(ArgumentError, match="has no series to plot: a fit of 10 ms"):
            store.run(name="two").plot()
        with using(store=store):
            for _ in range(3):
                result = optimize.minimize(optimize.rosen, [1.0, 2.0], method="Powell")
        assert "final" in result.warm._repr_html_()
        store.flush()
        bars = store.plot_savings().patches
        assert sum(bar.get_height() for bar in bars) > 100
        matplotlib.pyplot.close("all")

    def test_the_bar_says_how_long(self, tmp_path, capsys):
        """From what such fits have cost."""
        store = Store(tmp_path / "store")
        for _ in range(3):
            store.learn(learned.path("minimize", "Powell", b"other"), 100, 40.0)
        store.flush()

        def slow(x):
            time.sleep(0.002)
            return float(x @ x)

        with using(store=store, progress=True):
            optimize.minimize(slow, np.ones(6), method="Powell")
        assert "s left" in capsys.readouterr().err

    @pytest.mark.parametrize("columns", [40, 80])
    def test_the_bar_fits_the_line(self, columns, monkeypatch, capsys):
        """Time and evaluations are whole; what there is no room for is left out."""
        monkeypatch.setenv("COLUMNS", str(columns))
        now = iter(range(100))
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(now)))
        bar = progress.Progress(wanted=True)
        bar.expected = 44.0
        bar.replay(100, 183)
        bar.end_replay()
        bar.update(183, 152, 3.7018123)
        bar.close()
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) <= columns
        assert re.match("0:00:0. warmstart: 152 evaluations", line)
        rest = ", best 3.70181, 43 s left, 152/s, 183 replayed"
        assert line.rstrip().endswith(rest) == (columns == 80)
