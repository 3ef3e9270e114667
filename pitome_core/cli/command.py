"""What the command `pitome` takes and prints. What goes wrong is one line on the error stream and exit status 2."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pitome_core as pc

from . import loading, report

MODEL = "a name of timm, or a folder in the format of timm, transformers or open_clip"
RANDOM = " with random weights, which say nothing of trained ones"
CLEAR = "\r\033[K"  # to the beginning of the line, which is emptied


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None = those of the process); the exit status."""
    given = _parser().parse_args(arguments)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what matters of it is in the error
    try:
        given.run(given)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{CLEAR if sys.stderr.isatty() else ''}pitome {given.command}: {line}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pitome", description="Token merging for your model and your pictures.")
    parser.add_argument("--version", action="version", version=f"pitome {pc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=text, description=text)
        part.set_defaults(run=run)
        return part

    def loaded(part: argparse.ArgumentParser) -> None:
        part.add_argument("--weights", choices=("pretrained", "random"), default="pretrained",
                          help="random: no weights are read or fetched, to try the command out")

    part = command("diagnose", _diagnose, "Say which method and keep ratio a model stands on your pictures.")
    part.add_argument("model", metavar="MODEL", help=MODEL)
    part.add_argument("images", metavar="IMAGES", type=Path, help="a folder of pictures, searched with its subfolders")
    part.add_argument("--keeps", type=_numbers, default=(0.95, 0.9, 0.85, 0.8), metavar="K,K",
                      help="shares of the tokens that each layer keeps (default .95,.9,.85,.8)")
    part.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=("tome", "pitome"), metavar="M,M",
                      help="methods (default tome,pitome)")
    part.add_argument("--target", type=float, help="what a setting has to reach (default .9)")
    part.add_argument("--count", type=int, default=64, help="pictures to look at, spread over the folder (default 64)")
    part.add_argument("--batch", type=int, default=16, help="pictures of one call (default 16)")
    part.add_argument("--seconds", type=float, default=30.0, help="time for timing (default 30; 0: nothing is timed)")
    part.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    part.add_argument("--json", type=Path, metavar="F", help="write all numbers to this file")
    part.add_argument("--html", type=Path, metavar="F", help="write a report to this file, complete in itself")
    loaded(part)

    part = command("flops", _flops, "Count the multiply-accumulates of a model, whole and merged.")
    part.add_argument("model", metavar="MODEL", help=MODEL)
    part.add_argument("--keep", type=float, required=True, help="share of the tokens that each layer keeps")
    part.add_argument("--method", default="pitome", help="the method (default pitome)")
    part.add_argument("--every", type=int, default=1, metavar="N",
                      help="merge in one of N layers, as many tokens as all of them would (default 1)")
    part.add_argument("--json", type=Path, metavar="F", help="write the numbers to this file")

    part = command("map", _map, "Draw which patches of a picture merge.")
    part.add_argument("image", metavar="IMAGE", type=Path, help="a picture")
    part.add_argument("--model", default="deit_small_patch16_224", metavar="MODEL",
                      help=f"{MODEL} (default %(default)s)")
    part.add_argument("--method", default="pitome", help="the method (default pitome)")
    part.add_argument("--keep", type=float, default=0.9, help="share of the tokens that each layer keeps (default .9)")
    part.add_argument("--layer", type=int, default=-1, help="after which layer (default: the last)")
    part.add_argument("--output", type=Path, required=True, metavar="F.png", help="where the picture goes")
    loaded(part)
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _diagnose(given: argparse.Namespace) -> None:
    _check_writable(given.json, given.html)
    paths = loading.pictures_in(given.images, given.count)
    say = _progress()
    say("loading the model")
    loaded = loading.load(given.model, given.weights)
    loaded.model.to(given.device)
    say(f"reading {len(paths)} pictures")
    images = loaded.prepare(paths)
    name = given.model + (RANDOM if given.weights == "random" else "")
    found = pc.diagnose(loaded.model, images, keeps=given.keeps, methods=given.methods, target=given.target,
                        batch_size=given.batch, seconds=given.seconds, progress=say)
    if given.html is not None:
        say("writing the report")
        given.html.write_text(report.page(found, loaded, images, name), encoding="utf-8")
    say("")
    if given.json is not None:
        given.json.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {found}")


def _flops(given: argparse.Namespace) -> None:
    _check_writable(given.json)
    model = loading.load(given.model, "random", pictures=False).model
    whole, merged = pc.flops(model), pc.flops(pc.apply(model, given.method, given.keep, every=given.every))
    share = merged.total / whole.total
    places = f", in one of {given.every} layers" if given.every > 1 else ""
    print(f"{given.model}, {given.method} at keep {given.keep:g}{places}: {merged.total / 1e9:.3f} of "
          f"{whole.total / 1e9:.3f} GMACs for one picture, {100 * share:.1f} %")
    print("tokens by layer: " + " ".join(map(str, merged.tokens)))
    if given.json is not None:
        numbers = {"model": given.model, "method": given.method, "keep": given.keep, "every": given.every,
                   "whole": whole.total, "merged": merged.total, "share": share, "tokens": merged.tokens}
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _map(given: argparse.Namespace) -> None:
    _check_writable(given.output)
    loaded = loading.load(given.model, given.weights)
    images = loaded.prepare([given.image])
    (drawn,) = report.maps(loaded, images, given.method, given.keep, given.layer)
    loading.pillow().fromarray(drawn).save(given.output)


def _check_writable(*paths: Path | None) -> None:
    """Before anything runs; FileNotFoundError names the folder that is missing."""
    for path in paths:
        if path is not None and not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.resolve().parent} to write {path.name} to")


def _progress():
    """A line on the error stream that replaces the one before; separate lines where that is no terminal."""
    if not sys.stderr.isatty():
        return lambda line: print(line, file=sys.stderr, flush=True) if line else None
    return lambda line: print(f"{CLEAR}{line}", end="", file=sys.stderr, flush=True)
