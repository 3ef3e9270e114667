"""The command line of the experiments: ``python -m pitome_core.experiments EXPERIMENT ...``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import ModuleType

# Each module has configure(parser) and main(args) -> exit status. Imported when asked for: they load torch and more.
EXPERIMENTS = {
    "vision": "saliency, features and classification with merged Vision Transformers; ImageNet in the paper tier",
    "text": "sentiment of sentences and documents with a merged BERT; SST-2 and others in the paper tier",
    "retrieval": "recall of pictures and texts with a merged open_clip dual encoder",
    "vqa": "questions about pictures to a merged LLaVA; VQAv2, GQA and TextVQA in the paper tier",
    "cost": "measured speed and memory against exact counts",
    "law": "when energy helps: PiToMe, its parts and its controls beside ToMe, setting by setting",
    "steps": "fewer, larger merge steps: what every= does to quality",
    "spectra": "spectral distance on keys of a real model, layer by layer, and the damage it goes with",
}


# Packages that an experiment imports at its top and that no extra of the experiments brings, with the extra that does.
EXTRAS = {"timm": "timm", "open_clip": "open-clip", "transformers": "transformers"}


def _imported(name: str) -> ModuleType:
    """The module of an experiment; `SystemExit` with the remedy where a package of `EXTRAS` is missing."""
    try:
        return importlib.import_module(f"pitome_core.experiments.{name}.command")
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise SystemExit(f"{name} needs {error.name}: pip install 'pitome-core[{extra}]'") from error


def main(argv: list[str] | None = None) -> int:
    """Parse, run, return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m pitome_core.experiments", description=__doc__)
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in EXPERIMENTS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            module = _imported(name)
            command.description = module.__doc__
            module.configure(command)
    args = parser.parse_args(argv)
    if getattr(args, "profile", None):
        os.environ["PITOME_PROFILE"] = args.profile  # what settings.profile() reads, here and in child processes
    return _imported(args.experiment).main(args)


if __name__ == "__main__":
    sys.exit(main())
