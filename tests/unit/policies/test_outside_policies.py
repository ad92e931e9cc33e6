"""Policies of other packages: a real installed one works, a broken one is blamed by name and stops no other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.cli.app import run
from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.catalog import Kind, build, canonical, faults, find, names
from headway.policies.contracts import RankedOrdering
from headway.policies.pages import page
from tests.support.command_line import Said

COSTS = ServiceCosts(1e-4, 1e-2)
Install = Callable[..., str]
"""(package, code, kind=…, **{policy name: attribute}) -> the name of the module."""

LONGEST = '''
class Longest:
    """Longest prompt first."""

    def rank(self, request):
        return -request.prompt_tokens
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package as pip leaves it: a module, and metadata with entry points, in a folder on `sys.path`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    number = itertools.count()

    def installed(package: str, code: str, kind: str = "ordering", **offers: str) -> str:
        module = f"outside_{tmp_path.name.replace('-', '_')}_{next(number)}"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in offers.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[headway.{kind}]", *lines]) + "\n")
        monkeypatch.setattr(sys, "path", list(sys.path))  # a changed folder is read again
        return module

    return installed


@pytest.fixture
def headway(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run one command line in this process."""

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        status = run(list(arguments))
        printed = capsys.readouterr()
        return Said(status, printed.out, printed.err)

    return call


def refusal(kind: Kind, name: str) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        build(kind, name, costs=COSTS, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_installed_policy_is_listed_built_and_explained(install: Install) -> None:
    module = install("longest-order", LONGEST, longest="Longest")
    assert names("ordering")[-1] == "longest"
    assert "longest" not in names("admission")
    assert faults("ordering") == {}
    for name in ("longest", "fair-share/longest", "vtc/longest"):
        policy = build("ordering", name, costs=COSTS, seed=0)
        assert policy.rank(Request(0, 0.0, 9)) == -9
    told = page("ordering", "longest")
    assert (told.summary, told.idea, told.file) == ("Longest prompt first.", "not stated", f"{module}.py")


BROKEN = [
    ("ordering", "import no_such_module_here\n", "cannot be loaded: ModuleNotFoundError: No module named 'no_such"),
    ("ordering", "raise SystemExit('no licence')\n", "cannot be loaded: SystemExit: no licence; repair or uninstall"),
    ("ordering", "class Other: ...\n", "cannot be loaded: AttributeError"),
    ("ordering", "Policy = 'a text'\n", "is not a class but 'a text': correct its entry point"),
    ("ordering", "class Policy: ...\n", "cannot be used: Policy lacks the method rank; see headway.policies.contracts"),
    ("admission", "class Policy:\n    hold_steps = 0\n", "Policy lacks the method hold_steps"),
    ("preemption", "class Policy:\n    def choose(self): ...\n", "Policy lacks the method victim"),
    ("prediction", "class Policy: ...\n", "Policy lacks the method predict"),
    ("routing", "class Policy: ...\n", "Policy lacks the method choose"),
    ("ordering", "class Policy:\n    def rank(self): ...\n", "Policy must have rank(self, request)"),
    (
        "ordering",
        "class Policy:\n    def rank(self, r): ...\n    def lane(self, r): ...\n    def choose(self, h, now): ...\n",
        "Policy has lane, choose but lacks next_change, which a LanedOrdering needs",
    ),
    (
        "admission",
        "class Policy:\n    def hold_steps(self, r, b, m, now): ...\n    def passed(self, head): ...\n",
        "Policy has passed but lacks may_pass, which a BackfillingAdmission needs",
    ),
    (
        "prediction",
        "class Policy:\n    def predict(self, r): ...\n    def state(self): ...\n",
        "Policy has state but lacks restore, which a Stateful needs",
    ),
    (
        "ordering",
        "class Policy:\n    def rank(self, r): ...\n    def observe(self): ...\n",
        "Policy must have observe(self, event)",
    ),
    (
        "ordering",
        "class Policy:\n    def __init__(self, costs): ...\n    def rank(self, r): ...\n",
        "Policy has a constructor that needs the argument costs: make it keyword-only",
    ),
    (
        "ordering",
        "class Policy:\n    def __init__(self, depth): ...\n    def rank(self, r): ...\n",
        "Policy has a constructor that needs the argument depth: give it a default",
    ),
]


@pytest.mark.parametrize(("kind", "code", "fault"), BROKEN)
def test_a_broken_policy_is_blamed_by_name_and_stops_no_other(
    install: Install, headway: Callable[..., Said], kind: Kind, code: str, fault: str
) -> None:
    install("broken-one", code, kind, broken="Policy")
    message = refusal(kind, "broken")
    assert message.startswith(f"the {kind} policy 'broken' of package broken-one ")
    assert fault in message
    assert faults(kind) == {"broken": message}
    assert "broken" not in names(kind)
    assert "unknown ordering policy 'nope': choose from fcfs" in refusal("ordering", "nope")
    listed = headway("policies")
    assert listed.status == 0
    assert "cannot be used: the" in " ".join(listed.out.split())
    assert "round-robin" in listed.out
    explained = headway("explain", "broken")
    assert (explained.status, explained.err) == (2, f"headway: {message}\n")


@pytest.mark.parametrize(
    ("constructor", "fault"),
    [
        ("def __init__(self): raise RuntimeError('no table')", "raised RuntimeError: no table"),
        ("def __init__(self): raise SystemExit('no licence')", "raised SystemExit: no licence"),
        ("def __init__(self, *, table): ...", "raised TypeError: "),
        ("def __init__(self): raise ValueError('depth must be 1')", "broken: depth must be 1"),
    ],
)
def test_a_constructor_that_raises_is_blamed(install: Install, constructor: str, fault: str) -> None:
    module = install("broken-one", f"class Policy:\n    {constructor}\n    def rank(self, r): ...\n", broken="Policy")
    message = refusal("ordering", "broken")
    assert fault in message
    if "ValueError" not in constructor:
        assert f"the ordering policy 'broken' cannot be built: {module}.Policy raised" in message


RAISES_LATER = '''
class Later:
    """Raises once requests come."""

    def rank(self, request):
        return {}["weight"]
'''


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("ordering", ["later", "fair-share/later"])
def test_a_policy_that_raises_during_a_run_is_blamed(
    install: Install, headway: Callable[..., Said], ordering: str, jobs: str
) -> None:
    module = install("later-policies", RAISES_LATER, later="Later")
    ran = headway("compare", "--policy", ordering, "--policy", "fcfs", "--requests", "50", "--jobs", jobs)
    assert ran.status == 2
    assert f"the ordering policy 'later' raised KeyError: 'weight' (line 6 of {module}, in rank())" in ran.err
    assert "fault of Headway" not in ran.err


def test_a_policy_named_as_one_of_ours_does_not_replace_it(install: Install, headway: Callable[..., Said]) -> None:
    install("second-fcfs", LONGEST, fcfs="Longest", longest="Longest")
    assert isinstance(build("ordering", "fcfs", costs=COSTS, seed=0), RankedOrdering)
    assert find("ordering", "fcfs").__module__ == "headway.policies.ordering.fcfs"
    assert names("ordering").count("fcfs") == 1
    assert "longest" in names("ordering")
    assert faults("ordering") == {
        "fcfs": "package second-fcfs offers a second ordering policy named 'fcfs'; Headway's own is used"
    }
    assert "package second-fcfs offers a second" in " ".join(headway("policies").out.split())


def test_a_policy_with_a_slash_in_its_name_is_not_listed_as_usable(install: Install) -> None:
    install("slashed", LONGEST, **{"long/est": "Longest"})
    assert "long/est" not in names("ordering")
    assert "a slash puts one policy inside another; rename its entry point" in faults("ordering")["long/est"]


def test_two_packages_with_one_name_are_both_named_and_neither_is_used(install: Install) -> None:
    install("one", LONGEST, longest="Longest")
    install("another", LONGEST, longest="Longest")
    assert "both offer the ordering policy 'longest': uninstall one of them" in refusal("ordering", "longest")
    assert {"package one", "package another"} <= set(refusal("ordering", "longest").split(" both ")[0].split(" and "))
    assert "longest" not in names("ordering")


def test_a_packages_own_name_goes_before_our_alias(install: Install) -> None:
    assert canonical("ordering", "sjf") == "shortest-job-first"
    install("their-sjf", LONGEST, sjf="Longest")
    assert canonical("ordering", "sjf") == "sjf"
    assert find("ordering", "sjf").__name__ == "Longest"


def test_options_of_a_class_whose_types_are_for_checkers_only_are_taken(install: Install) -> None:
    code = (
        "from __future__ import annotations\n"
        "class Policy:\n"
        "    def __init__(self, *, depth: Unknown = 1): self.depth = depth\n"
        "    def rank(self, request): return self.depth\n"
    )
    install("lazy-types", code, lazy="Policy")
    policy = build("ordering", "lazy", {"depth": 7}, costs=COSTS, seed=0)
    assert policy.rank(Request(0, 0.0, 9)) == 7
    assert page("ordering", "lazy").options[0].name == "depth"
