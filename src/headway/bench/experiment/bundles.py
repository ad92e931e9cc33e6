"""Bundles: one choice of the four policies under a label, from names or from a TOML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

from headway.bench.experiment.comparison import Json
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.config.nearest_name import nearest
from headway.config.toml_file import read_toml
from headway.config.typed_values import Bounds, Reader, checked, read_table
from headway.domain.costs import ServiceCosts
from headway.domain.event import Listener
from headway.domain.request import RequestId
from headway.policies.catalog import KINDS, Kind, canonical, names
from headway.scheduling.bundle import bundle_of, name_and_options
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.outside_answers import blamed, outside_checked
from headway.scheduling.scheduler import Policies
from headway.scheduling.self_tuned_threshold import Tuning
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica
from headway.simulator.rules import NO_PLUGIN, PluginRules
from headway.simulator.trace import Trace
from headway.twin.auto_settings import AUTO

_OFFLINE = "offline_ordering"
EXAMPLE = """\
[bundle.svf-peak]                  # the label in the table
ordering = "smallest-volume-first"
admission = {name = "peak-check", options = {reserve = 0.1}}
prediction = "running-mean"        # by default as on the command line
tuning = "self-tuned"              # what the vLLM plug-in does beside its policies
guard = {harm_ratio = 3.0}         # likewise; true for its defaults, false for none
offline_ordering = "prefix-groups" # order of offline requests; "fcfs" unless named
"""


class TwinRun(Protocol):
    """A day whose bundle a twin chooses (`bench.twin`)."""

    def __call__(
        self, trace: Trace, replica: Replica, bundle: Bundle, seed: int, listeners: Sequence[Listener]
    ) -> tuple[DayOutcome, list[str]]:
        """The day, begun and returned to with the policies of `bundle`, and a sentence for each look."""

    def to_json(self) -> dict[str, Json]:
        """What was asked of it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One row of the table: four policies by full name, their `options` by kind, and what the plug-in does beside them.

    `offline_ordering` orders offline requests.

    `build` makes new policies per run. `given`: kind → class or instance, where a program gives one. The field of its
    kind then says only what to call it. An instance is copied for each run, as it was given.

    `twin` chooses other policies while the day goes on, and returns to these.
    """

    label: str
    ordering: str = "fcfs"
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "running-mean"
    offline_ordering: str = "fcfs"
    options: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    plugin: PluginRules = NO_PLUGIN
    given: Mapping[Kind, object] = field(default_factory=dict)
    twin: TwinRun | None = None

    def __post_init__(self) -> None:
        for kind in KINDS:  # short names are written out
            object.__setattr__(self, kind, canonical(kind, getattr(self, kind)))

    def build(self, *, costs: ServiceCosts, seed: int, truth: Callable[[RequestId], int]) -> Policies:
        """Build new policies for one run; those of other packages are checked with every answer.

        Args:
            costs: the replica's seconds per token.
            seed: for policies that use chance.
            truth: a request's true output tokens; only oracles get it.

        Raises:
            UserMistake: an unknown name, or an option that is unknown or wrong.
        """
        try:
            policies = bundle_of(
                self, given=self.given, costs=costs, seed=seed, truth=truth, offline_ordering=self.offline_ordering
            )
            return outside_checked(policies, self._named(), self.given)
        except ValueError as error:
            raise UserMistake(str(error)) from error

    def check(self) -> None:
        """Raise the UserMistake that `build` would raise later, or that the plug-in would."""
        if self.plugin.displace is not None and self.admission != "greedy":
            raise UserMistake(f"displace needs the admission policy greedy, and {self.label} has {self.admission}")
        self.build(costs=ServiceCosts(1e-4, 1e-2), seed=0, truth=lambda _: 1)

    def blamed(self, failure: BaseException) -> str | None:
        """A sentence that names the outside policy of this bundle that raised `failure` or answered without sense."""
        return blamed(self._named(), failure, self.given)

    def _named(self) -> dict[Kind, str]:
        return {kind: getattr(self, kind) for kind in KINDS}

    def to_json(self) -> dict[str, Json]:
        """Each kind's name and options; the plug-in's `tuning`, and its `guard` with all limits, null for none.

        `tpot_seconds` and `displace` only where they act.
        """
        named: dict[str, Json] = {
            kind: {"name": getattr(self, kind), "options": dict(self.options.get(kind, {}))} for kind in KINDS
        }
        if self.offline_ordering != "fcfs":
            named["offline_ordering"] = self.offline_ordering
        guard = None if self.plugin.guard is None else asdict(self.plugin.guard)
        if self.twin is not None:
            named[AUTO] = self.twin.to_json()
        named |= {"tuning": self.plugin.tuning, "guard": guard}
        if self.plugin.tuning == "prefill-budget":
            named["tpot_seconds"] = self.plugin.tpot_seconds
        if self.plugin.displace is not None:
            named["displace"] = asdict(self.plugin.displace)
        return named


def chosen_names(kind: Kind, called: str, given: Sequence[str]) -> list[str]:
    """Full names of the policies that an option `--KIND` names, in order; `all` stands for every one of the catalogue.

    `called` is what a mistake's sentence calls one of them.

    Raises:
        UserMistake: a name is unknown, or given twice.
    """
    wanted: list[str] = []
    for name in (canonical(kind, one) for one in given):
        if name == "all":
            wanted += [other for other in names(kind) if other not in wanted]
        elif name in wanted and "all" not in given:
            raise UserMistake(f"--{kind} {name} is there twice; name each {called} once")
        elif name not in wanted:
            wanted.append(name)
    return wanted


def named_bundles(orderings: Sequence[str], template: Bundle, auto: Bundle | None = None) -> list[Bundle]:
    """One bundle for each ordering, labelled by its name and otherwise like `template`.

    `all` stands for every ordering of the catalogue, and `auto` for the bundle of that argument, where it is given.

    Raises:
        UserMistake: a name is unknown, or given twice.
    """
    named = [name for name in orderings if auto is None or name != AUTO]
    if len(orderings) - len(named) > 1:
        raise UserMistake(f"--ordering {AUTO} is there twice; name each ordering once")
    bundles = [replace(template, label=name, ordering=name) for name in chosen_names("ordering", "ordering", named)]
    if auto is not None and AUTO in orderings:
        bundles.append(auto)
    for bundle_of_name in bundles:
        bundle_of_name.check()
    return bundles


def read_bundles(path: Path, template: Bundle) -> list[Bundle]:
    """The bundles of a TOML file (`EXAMPLE`), in its order; policies that a bundle leaves out are those of `template`.

    Raises:
        UserMistake: one sentence that names the file, the bundle and the fix.
    """
    label = f"--bundles {path}"
    with as_mistakes():
        content = read_toml(path, label)
    tables = content.pop("bundle", None)
    if content:
        raise UserMistake(f"{label}: {next(iter(content))!r} is no key of a bundles file; write tables [bundle.NAME]")
    if not isinstance(tables, dict) or not tables:
        raise UserMistake(f'{label}: it has no table [bundle.NAME]; write one, with ordering = "…" in it')
    return [_read_bundle(f"{label}: bundle.{name}", name, table, template) for name, table in tables.items()]


def _read_bundle(where: str, name: str, table: object, template: Bundle) -> Bundle:
    if not isinstance(table, dict):
        raise UserMistake(f'{where} must be a table with ordering = "…" in it')
    known = (*KINDS, *_PLUGIN_READERS, _OFFLINE)
    for key in table:
        if key not in known:
            raise UserMistake(f"{where}: unknown key {key!r}{nearest(key, known)}")
    chosen: dict[str, Any] = {kind: getattr(template, kind) for kind in KINDS}
    options: dict[str, Mapping[str, Json]] = {}
    for kind in KINDS:
        if kind in table:
            with as_mistakes():
                chosen[kind], options[kind] = name_and_options(kind, table[kind], f"{where}.{kind}")
    try:
        plugin = {key: read(table[key], key) for key, read in _PLUGIN_READERS.items() if key in table}
        if _OFFLINE in table:
            chosen[_OFFLINE] = checked(table[_OFFLINE], str, _OFFLINE)
        row = Bundle(name, **chosen, options=options, plugin=replace(template.plugin, **plugin))
        if "tpot_seconds" in table and row.plugin.tuning != "prefill-budget":
            raise ValueError('tpot_seconds is read under tuning = "prefill-budget" only: set that, or leave it out')
        row.check()
    except (UserMistake, ValueError) as mistake:
        raise UserMistake(f"{where}: {mistake}") from None
    return row


def _tuning(value: object, where: str) -> Any:
    return checked(value, Tuning, where)


def _tpot_seconds(value: object, where: str) -> Any:
    return checked(value, Annotated[float, Bounds(above=0)], where)


def _rules_or_switch(rules: type[HarmLimits | DisplaceRules], example: str) -> Reader:
    """Reads true (the rules' defaults), false (None), or a table of them."""

    def read(value: object, where: str) -> Any:
        if isinstance(value, bool):
            return rules() if value else None
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be true, false, or a table such as {example}, got {value!r}")
        return read_table(rules, value, f"{where}.")

    return read


_PLUGIN_READERS: Mapping[str, Reader] = {
    "tuning": _tuning,
    "tpot_seconds": _tpot_seconds,
    "guard": _rules_or_switch(HarmLimits, "{harm_ratio = 3.0}"),
    "displace": _rules_or_switch(DisplaceRules, "{times = 2}"),
}
