"""The command line that all experiments with a grid share.

An experiment says what it has (`Command`): tasks and cells of the embedded tier, a module for the paper tier, further
actions such as training. `Options` knows which options belong to which tier, so that an option of the other tier is an
error and is not ignored.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitome_core.experiments import settings
from pitome_core.experiments.assets import AssetError
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record, RecordError
from pitome_core.experiments.runs import grid, sweep

KEEP = f"share of the tokens that every layer keeps (default: the protocol's, {list(grid.KEEPS)})"


def refusing(main: Callable[..., int]) -> Callable[..., int]:
    """The main function of a command, for which what cannot be run is one line on stderr and the exit status 2."""
    @functools.wraps(main)
    def run(*arguments: Any) -> int:
        try:
            return main(*arguments)
        except (AssetError, RecordError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


class Options:
    """The options of one tier: an argparse group whose defaults are filled in once the tier is known.

    It takes the place of a parser for `add_argument` and `add_argument_group`.
    """

    def __init__(self, parser: argparse.ArgumentParser, tier: str):
        self.parser, self.tier = parser, tier
        self.group: Any = None
        self.defaults: dict[str, Any] = {}
        self.flags: dict[str, str] = {}
        self.needs: dict[str, str] = {}

    def add_argument_group(self, title: str | None = None, description: str | None = None) -> Options:
        """Begin the group that `add_argument` adds to; its title is the tier."""
        self.group = self.parser.add_argument_group(f"{self.tier} tier", description)
        return self

    def add_argument(self, *flags: str, **how: Any) -> None:
        """Add an option, as `argparse.ArgumentParser.add_argument` does.

        The default stays out of the parsed arguments, so that `given` tells which options the user wrote. ``needs``
        names another option without which this one means nothing.
        """
        if "needs" in how:
            self.needs[flags[0]] = how.pop("needs")
        default = how.pop("default", False if how.get("action") == "store_true" else None)
        if "%(default)s" in how.get("help", ""):
            how["help"] = how["help"].replace("%(default)s", str(default))
        if self.group is None:
            self.add_argument_group()
        action = self.group.add_argument(*flags, default=argparse.SUPPRESS, **how)
        self.defaults[action.dest], self.flags[action.dest] = default, flags[0]

    def given(self, args: argparse.Namespace) -> list[str]:
        """The options of this tier that were given, as they are written."""
        return [flag for name, flag in self.flags.items() if hasattr(args, name)]

    def fill(self, args: argparse.Namespace) -> None:
        """Put the defaults in the place of options that were not given."""
        for name, default in self.defaults.items():
            if not hasattr(args, name):
                setattr(args, name, default)


@dataclass(frozen=True)
class Command:
    """One experiment's command.

    Attributes:
        experiment: its name.
        protocol: the version of the grid in book/protocol.md, one for all tasks or one for each; records are called as
            `sweep.record_name` says.
        tasks: name -> ``(split)``, or ``(split, count)`` if `counted`, -> a task of the embedded tier (`sweep.Task`).
        cells: ``(args, name of the task)`` -> the cells to score. It is asked before the task is made.
        summary: ``(record, cells)`` -> the table that is printed.
        paper: the module of the paper tier, with `configure(options)` and `run(args)`; None: there is no such tier.
        arms: what ``--methods`` may name.
        keep: what a keep ratio is, for the help.
        available: whether a task can run here: its optional assets are in the cache.
        counted: what ``--count`` counts; empty for an experiment without that option.
        configure_actions: adds the options of further actions, such as ``--train``.
        act: runs such an action if it was asked for, and says whether it did.
    """

    experiment: str
    protocol: str | Mapping[str, str]
    tasks: Mapping[str, Callable[..., sweep.Task]]
    cells: Callable[[argparse.Namespace, str], list[Cell]]
    summary: Callable[[Record, Sequence[Cell]], str]
    paper: Any
    arms: Iterable[str] = (*grid.ARMS, grid.GRID_POOL, grid.LOWER)
    keep: str = KEEP
    available: Callable[[str], bool] = lambda name: True
    counted: str = ""
    configure_actions: Callable[[Options], None] | None = None
    act: Callable[[argparse.Namespace], bool] | None = None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of both tiers to ``parser``."""
        arm_names = [grid.WHOLE, *self.arms]
        parser.add_argument("--profile", choices=settings.PROFILES, help="tier; default: PITOME_PROFILE, else embedded")
        parser.add_argument("--methods", nargs="+", choices=arm_names, metavar="METHOD",
                            help=f"default: the protocol's grid; of {', '.join(arm_names)}")
        parser.add_argument("--keep", nargs="+", type=float, metavar="R", help=self.keep)
        parser.add_argument("--split", choices=("dev", "test"), default="dev",
                            help="dev explores; test is scored by the protocol and logged (default: %(default)s)")
        parser.add_argument("--output", type=Path, metavar="FOLDER", help="where records go; default: results/<tier> "
                            "for test, _build/results/<tier> for dev")
        parser.add_argument("--again", action="store_true", help="score cells again that are already recorded; "
                            "to go on with such a run that was stopped, leave it out in the paper tier")
        parser.add_argument("--allow-modified", action="store_true", help="score a test set although the package "
                            "differs from the commit; record and log say so")
        parser.add_argument("--estimate", action="store_true", help="print how long the run would take, and stop")
        embedded, paper = Options(parser, "embedded"), Options(parser, "paper")
        embedded.add_argument("--tasks", nargs="+", choices=list(self.tasks), metavar="TASK",
                              help=f"default: all that can run here; of {', '.join(self.tasks)}")
        if self.counted:
            embedded.add_argument("--count", type=int, metavar="N", help=f"N {self.counted} only (not for test)")
        if self.configure_actions is not None:
            self.configure_actions(embedded)
        if self.paper is not None:
            self.paper.configure(paper)
        parser.set_defaults(tiers=(embedded, paper))

    @refusing
    def main(self, args: argparse.Namespace) -> int:
        """Run what was asked for and print a table per task.

        The exit status: 0 all is well; 1 the paper tier left something out; 2 it cannot be run, for the reason on
        stderr.
        """
        settings.exact_float32()
        tier = "paper" if settings.profile() == "paper" else "embedded"  # the smoke tier has the embedded one's options
        for options in args.tiers:
            if options.tier != tier and (foreign := options.given(args)):
                word, them = ("is an option", "it") if len(foreign) == 1 else ("are options", "them")
                print(f"error: {', '.join(foreign)} {word} of the {options.tier} tier, and this run is of the "
                      f"{settings.profile()} tier: add --profile {options.tier}, or leave {them} out", file=sys.stderr)
                return 2
            for flag, needed in options.needs.items():
                if flag in options.given(args) and needed not in options.given(args):
                    print(f"error: {flag} goes with {needed}: add that, or leave {flag} out", file=sys.stderr)
                    return 2
            options.fill(args)
        if tier == "paper" and self.paper is None:
            raise RecordError(f"{self.experiment} has no paper tier: leave out --profile paper")
        if tier == "paper":
            return self.paper.run(args)
        if self.counted and args.count is not None and args.split == "test":
            print("error: --count is for dev, because the test set is scored as a whole: leave it out", file=sys.stderr)
            return 2
        if self.counted and args.count is not None and args.count < 1:
            print(f"error: --count {args.count} is below 1", file=sys.stderr)
            return 2
        if self.act is None or not self.act(args):
            self._score(args)
        return 0

    def _score(self, args: argparse.Namespace) -> None:
        for name in args.tasks or [name for name in self.tasks if self.available(name)]:
            try:
                cells = self.cells(args, name)
            except ValueError as error:  # a method or a keep ratio that the grid of this task does not have
                raise RecordError(f"{name}: {error}") from error
            task = self.tasks[name](args.split, *([args.count] if self.counted else []))
            protocol = self.protocol if isinstance(self.protocol, str) else self.protocol[name]
            path = sweep.record_path(args, protocol, name)
            record = sweep.run(self.experiment, task, cells, path, split=args.split, protocol=protocol,
                               again=args.again, estimate_only=args.estimate,
                               allow_modified=args.allow_modified)
            if not args.estimate:
                print(self.summary(record, cells))


def add_training(options: Options, training: Any, what: str, score: str) -> None:
    """Add the options of an experiment that trains ``what`` by recipes.

    ``training`` is its module, with `CANDIDATES`, `CHOSEN`, `run` and `explore`; ``score`` is what recipes are compared
    by on dev.
    """
    recipes = list(training.CANDIDATES)
    options.add_argument("--train", action="store_true", help=f"train the {what} that are missing, and stop")
    options.add_argument("--minutes", type=float, default=math.inf, needs="--train",
                         help="with --train: begin no stage after that time")
    options.add_argument("--recipe", choices=recipes, default=training.CHOSEN, metavar="RECIPE", needs="--train",
                         help="with --train: one of the recipes that --explore lists (default: %(default)s)")
    options.add_argument("--explore", nargs="*", choices=recipes, metavar="RECIPE",
                         help=f"print the {score} of these recipes on dev (default: of all); no {what} are kept")


def train(args: argparse.Namespace, training: Any) -> bool:
    """Train or explore, if one of the options of `add_training` asks for it."""
    if args.train:
        training.run(args.methods, args.keep, recipe=training.CANDIDATES[args.recipe], minutes=args.minutes,
                     again=args.again, estimate_only=args.estimate)
    elif args.explore is not None:
        training.explore(args.explore or [*training.CANDIDATES])
    return args.train or args.explore is not None
