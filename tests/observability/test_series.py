"""Every series: named well, documented, and as the document says."""

from __future__ import annotations

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
