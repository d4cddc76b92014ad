"""Every series: named well, documented, and as the document says."""

from __future__ import annotations

import ast
import re
import subprocess

from tests.observability.conftest import ROOT

DOCUMENT = ROOT / "docs" / "observability.md"
ALLOWED = ROOT / "observability" / "promtool-allow.txt"
_HELP, _TYPE = re.compile(r"^# HELP (\S+) (.*)$", re.MULTILINE), re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)


def rows(page: str) -> set[str]:
    """The families of a page as the document's table has them. When the counting of a counter began needs no row."""
    kinds = dict(_TYPE.findall(page))
    found = {name: f"| `{name}` | {kinds[name]} | {text} |" for name, text in _HELP.findall(page)}
    return {row for name, row in found.items() if not (name.endswith("_created") and kinds[name] == "gauge")}


def test_each_series_is_documented_as_it_is(scraped: str, boards: str) -> None:
    documented = {
        line for line in DOCUMENT.read_text("utf-8").splitlines() if re.match(r"\| `(edge_|vllm:|DCGM)", line)
    }
    found = rows(scraped) | rows(boards)
    missing, stale = "\n".join(sorted(found - documented)), "\n".join(sorted(documented - found))
    assert not missing, f"put these lines into {DOCUMENT.name}:\n{missing}"
    assert not stale, f"these lines of {DOCUMENT.name} are of no series:\n{stale}"


def test_what_no_machine_of_these_tests_shows_is_documented_all_the_same() -> None:
    """A series that only some machines have must not escape the document because these tests have no such machine."""
    documented = set(re.findall(r"^\| `(edge_\w+)` ", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    written = {
        node.value
        for path in (ROOT / "edge" / "api").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"edge_[a-z0-9_]*[a-z0-9]", node.value)
    }
    assert len(written) > 60, "names of series stand elsewhere by now"
    assert not {name for name in written if not {name, f"{name}_total"} & documented}


def test_promtool_finds_fault_with_nothing_but_the_names_of_others(scraped: str) -> None:
    allowed = {line for line in ALLOWED.read_text().splitlines() if line and not line.startswith("#")}
    status, said = promtool(scraped)
    assert status in (0, 3), said  # 3: there are remarks
    assert not said - allowed
    assert not allowed - said, "what promtool no longer says must not stay allowed"
    assert all(line.startswith(("vllm:", "DCGM_")) for line in allowed)


def test_other_machines_series_are_named_well_too(boards: str) -> None:
    head = "# HELP edge_probe_round_seconds"
    for page in boards.split(head)[1:]:
        assert promtool(head + page) == (0, set())


def promtool(page: str) -> tuple[int, set[str]]:
    """Its exit status and its remarks."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    return done.returncode, set(done.stderr.splitlines())
