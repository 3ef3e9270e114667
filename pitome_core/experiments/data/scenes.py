"""Objects with known masks on photographs: cut-out pictures pasted on photographs that are on the disk.

The alpha channel of a cut-out says exactly which pixels it covers, so a scene comes with the truth about
what is object and what is background, for every pixel and every patch. The objects are OpenMoji 17
drawings, CC BY-SA 4.0: a figure that shows them carries `CREDIT` and the credits of its photographs, and is
under the same licence. Where the optional Tux Paint stamps are in the cache, cut-out photographs can take
their place; they are GPL-2, for measuring only, and stay out of figures that are passed on.

Everything is chosen by hashes of the seed and the scene's number: no generator, no order of calls, and
the first scenes of a long batch are the scenes of a short one.
"""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, splits
from pitome_core.experiments.data.pictures import PATCH, preprocess, to_display

DRAWINGS, NAMES, GROUPS, STAMPS = "openmoji", "emoji-names", "emoji-groups", "tuxpaint-stamps"  # assets
NOTO = "noto-emoji"  # asset
SOURCES = ("openmoji", "stamps")
CREDIT = "Emoji: OpenMoji 17, CC BY-SA 4.0"
SALT, STAMP_SALT = "openmoji-1", "stamps-1"  # of the split of identities
NO_LICENCE = ("motorcycle",)  # photographs that scenes leave out by default

# A drawing of a man and one of a woman who do the same are one identity; so are the two directions of a walk.
GENDER = re.compile(r"\b(man|woman|men|women|male|female|person|people)( s)?\b")  # "woman s hat" is a hat
SAME = {
    "": "person",
    "boy": "child",
    "girl": "child",
    "older": "old",
    "prince": "with crown",
    "princess": "with crown",
    "santa claus": "claus",
    "mrs claus": "claus",
    "mx claus": "claus",
    "with probing cane": "with white cane",
    "mermaid": "merperson",
    "merman": "merperson",
}


@dataclass(frozen=True)
class Emoji:
    """One drawing. ``code`` is its code points in hexadecimal, joined by ``-``, without FE0F.

    ``identity`` is what a split keeps together: the name without gender words; all families are one.
    ``group`` and ``subgroup`` are Unicode's. ``member`` is the SVG's path in the OpenMoji wheel.
    """

    name: str
    identity: str
    group: str
    subgroup: str
    code: str
    member: str

    @property
    def split(self) -> str:
        """``train``, ``dev`` or ``test``, from the identity alone."""
        return splits.split_of(self.identity, SALT)


@dataclass(frozen=True)
class Noto(Emoji):
    """An emoji as other artists drew it: Noto Emoji, Apache-2.0. ``member`` is the drawing's name in that asset."""


@dataclass(frozen=True)
class Stamp:
    """One cut-out picture of Tux Paint. ``name`` is its caption, and stamps with one caption are one identity.

    ``group`` is one of `STAMP_GROUPS`, ``subgroup`` the folder, ``member`` the path in the asset's zip.
    """

    name: str
    identity: str
    group: str
    subgroup: str
    member: str

    @property
    def split(self) -> str:
        """``train``, ``dev`` or ``test``, from the identity alone."""
        return splits.split_of(self.identity, STAMP_SALT)


@dataclass(frozen=True)
class Scenes:
    """B scenes: ``images (B, 3, H, W)`` as `preprocess` gives them, and what covers what.

    ``pixels (B, H, W)`` is the alpha of the object, 0..1; ``mask (B, rows, columns)`` its mean over each
    patch: the share of the patch that the object covers. ``objects`` and ``photographs`` name the two parts.
    """

    images: Tensor
    mask: Tensor
    pixels: Tensor
    objects: tuple[Emoji | Stamp, ...]
    photographs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.objects)


def objects() -> tuple[Emoji, ...]:
    """Every emoji that is named and drawn, in Unicode's order, without flags, skin tones and components."""
    return tuple(e for e in _all_emoji() if e.group != "Flags")


def flags() -> tuple[Emoji, ...]:
    """The flags, kept apart: dozens of striped rectangles are no objects to tell from one another."""
    return tuple(e for e in _all_emoji() if e.group == "Flags")


def noto() -> tuple[Noto, ...]:
    """Those of `objects` that Noto Emoji has a drawing of, in their order, with the same identities.

    Fetches the optional asset where npm is at hand; raises ``assets.AssetError`` where it cannot be had.
    """
    names = _noto(assets.fetch(NOTO))[0]
    return tuple(
        Noto(**{**vars(emoji), "member": names[emoji.code]}) for emoji in objects() if emoji.code in names
    )


def stamps_available() -> bool:
    """Whether the Tux Paint stamps are in the cache. Nothing is fetched."""
    return assets.state(STAMPS) == "ready"


def stamps() -> tuple[Stamp, ...]:
    """The captioned stamps in the order of their paths: no letters, signs, flags, cartoons and toys.

    Most are cut-out photographs, some are drawings. Left out as well: those without a transparent pixel.
    Fetches the optional asset where apt is at hand; raises ``assets.AssetError`` where it cannot be had.
    """
    return _stamps(assets.fetch(STAMPS) / assets.FILES_ZIP)


def identity_of(name: str, subgroup: str = "") -> str:
    """The identity that the emoji ``name`` (spaces between words) belongs to.

    Gender words and "facing right" go; what is left is looked up among the few pairs with names of their
    own (prince and princess). Everything in the subgroup ``family`` or called a family is ``"family"``.
    """
    words = name.removesuffix(" facing right").split()
    if subgroup == "family" or words[0] == "family":
        return "family"
    left = " ".join(GENDER.sub("", " ".join(words)).split())
    return SAME.get(left, left)


def render(thing: Emoji | Stamp, size: int) -> np.ndarray:
    """``(size, size, 4)`` uint8, straight alpha: the object alone, cropped to its bounding box.

    The longer side of the object fills the square, the shorter one is centred. The alpha channel is the
    exact mask. An emoji is drawn at this size, never resampled; a stamp is resized, alpha and colour
    together. Raises ``ValueError`` for a size below 1, ``ImportError`` without resvg-py (emoji only),
    ``assets.AssetError`` when the asset cannot be had.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1 pixel")
    if isinstance(thing, Stamp):
        return _resized(thing, size)
    svg = _noto(assets.fetch(NOTO))[1][thing.member] if isinstance(thing, Noto) else _svgs(_wheel())[thing.member]
    left, top, right, bottom = _bounds(svg)
    side = max(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    # With a size of its own: the renderer rounds that of the viewBox to whole pixels before it scales.
    frame = f'viewBox="{x} {y} {side} {side}" width="{size}" height="{size}"'
    return _rasterise(svg.replace(CANVAS, frame, 1), size)


def scenes(
    count: int,
    *,
    img_size: int | tuple[int, int] = 224,
    split: str = "dev",
    seed: int = 0,
    scale: tuple[float, float] = (0.3, 0.6),
    photographs: Iterable[str] | None = None,
    groups: Sequence[str] | None = None,
    patch: int = PATCH,
    source: str = "openmoji",
) -> Scenes:
    """``count`` scenes: one object of ``split`` at a random place, wholly inside, on one photograph each.

    The objects are those of `objects`, or of `stamps` with ``source="stamps"``. The longer side of an
    object is ``scale`` (low, high; uniform) of the shorter side of the image. ``groups`` (by default all
    that the source has) take turns; within a group every identity has its turn before one comes again,
    each time with one of its pictures. ``photographs`` (names that `photos.photographs` knows, the
    collection's too; by default the natural ones with a licence, without the collection) take turns too, in
    an order that is drawn anew each round. ``patch`` is the side in pixels of the patches in ``mask``.
    Scene i depends on i, the seed and the lists only, not on ``count``.
    Raises ``ValueError`` for a split, source, scale, group, count or size that cannot be, ``KeyError``
    for an unknown photograph, else as `render`.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    low, high = scale
    if split not in splits.SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(splits.SPLITS)}")
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; choose one of {', '.join(SOURCES)}")
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale {tuple(scale)} must be two numbers with 0 < low <= high <= 1")
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"img_size {height} x {width} is no multiple of patch {patch}")
    if photographs is None:
        photographs = [p.name for p in photos.PHOTOGRAPHS.values() if p.natural and p.name not in NO_LICENCE]
    pictures = {
        name: to_display(preprocess(picture, (height, width)))[0]
        for name, picture in photos.photographs(photographs).items()
    }
    if not pictures:
        raise ValueError("no photographs: name at least one")
    table = _by_group(stamps() if source == "stamps" else objects(), split, groups)

    canvases, alphas, chosen, behind = [], [], [], []
    for i in range(count):
        thing = _turn(table, seed, i)
        round_, place = divmod(i, len(pictures))
        photo = sorted(pictures, key=lambda name: _unit(seed, "photograph", round_, name))[place]
        side = max(round((low + (high - low) * _unit(seed, i, "scale")) * min(height, width)), 1)
        drawing = trim(render(thing, side))  # (h, w, 4)
        h, w = drawing.shape[:2]
        top = int(_unit(seed, i, "top") * (height - h + 1))
        left = int(_unit(seed, i, "left") * (width - w + 1))
        alpha = np.zeros((height, width), np.float32)
        alpha[top : top + h, left : left + w] = drawing[..., 3] / np.float32(255)
        canvases.append(paste(pictures[photo], drawing, top, left))
        alphas.append(alpha)
        chosen.append(thing)
        behind.append(photo)
    pixels = torch.from_numpy(np.stack(alphas))  # (B, H, W)
    mask = torch.nn.functional.avg_pool2d(pixels[:, None], patch)[:, 0]  # (B, rows, columns)
    images = preprocess(canvases, (height, width))  # (B, 3, H, W)
    return Scenes(images, mask, pixels, tuple(chosen), tuple(behind))


def paste(canvas: np.ndarray, drawing: np.ndarray, top: int, left: int) -> np.ndarray:
    """A copy of ``canvas (H, W, 3)`` with ``drawing (h, w, 4)`` on it, both uint8, straight alpha.

    ``top`` and ``left`` say where the drawing's corner lies; it has to fit.
    """
    canvas = canvas.copy()
    part = canvas[top : top + drawing.shape[0], left : left + drawing.shape[1]]
    share = drawing[..., 3:] / 255
    part[:] = np.rint(share * drawing[..., :3] + (1 - share) * part)
    return canvas


def _unit(*parts: object) -> float:
    return splits.unit("\n".join(map(str, ("scenes", *parts))))


Table = dict[str, dict[str, list[Emoji | Stamp]]]


def _by_group(things: Iterable[Emoji | Stamp], split: str, groups: Sequence[str] | None) -> Table:
    """``{group: {identity: its pictures}}``, those of ``split`` only."""
    found: Table = {}
    for thing in things:
        if thing.split == split:
            found.setdefault(thing.group, {}).setdefault(thing.identity, []).append(thing)
    if groups is None:
        return found
    if isinstance(groups, str) or not groups:
        raise ValueError(f"groups is {groups!r}; pass a list of some of {', '.join(found)}")
    if unknown := [group for group in groups if group not in found]:
        raise ValueError(f"no group {unknown[0]!r}; there are {', '.join(found)}")
    return {group: found[group] for group in groups}


def _turn(table: Table, seed: int, i: int) -> Emoji | Stamp:
    turn, at = divmod(i, len(table))
    group = list(table)[at]
    identities = table[group]
    lap, place = divmod(turn, len(identities))
    identity = sorted(identities, key=lambda name: _unit(seed, group, lap, name))[place]
    return min(identities[identity], key=lambda thing: _unit(seed, group, lap, thing.member))


CANVAS = 'viewBox="0 0 72 72"'  # of every OpenMoji drawing
FINE = 288  # pixels to a side at which a drawing's extent is found: a quarter of a unit


@functools.lru_cache(maxsize=4096)
def _bounds(svg: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is drawn, in units of the canvas, rounded outwards to 1/4."""
    alpha = _rasterise(svg, FINE)[..., 3]
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    unit = 72 / FINE
    return columns[0] * unit, rows[0] * unit, (columns[-1] + 1) * unit, (rows[-1] + 1) * unit


def _rasterise(svg: str, size: int) -> np.ndarray:
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("drawing emoji needs resvg-py: pip install 'pitome-core[experiments]'") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGBA"))


def trim(drawing: np.ndarray) -> np.ndarray:
    """A drawing ``(h, w, 4)`` without the empty rows and columns at its edges."""
    rows, columns = (np.flatnonzero(drawing[..., 3].any(axis)) for axis in (1, 0))
    return drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _wheel() -> Path:
    return assets.fetch(DRAWINGS) / assets.ASSETS[DRAWINGS].filename


@functools.lru_cache(maxsize=1)
def _svgs(wheel: Path) -> dict[str, str]:
    """All drawings by their path in the wheel; read at once, because its directory takes longest."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".svg")}


@functools.lru_cache(maxsize=1)
def _noto(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the drawings by `Emoji.code`, and SVGs by name, brought to the canvas of OpenMoji's."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    scale = 72 / icons["width"]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {CANVAS}><g transform="scale({scale})">'
    drawn = {name: f"{head}{icon['body']}</g></svg>" for name, icon in icons["icons"].items()}
    return {_code(code): name for code, name in names.items() if name in drawn}, drawn


def _all_emoji() -> tuple[Emoji, ...]:
    return _join(_wheel(), assets.fetch(NAMES) / "emojis.json", assets.fetch(GROUPS) / "emoji.json")


@functools.lru_cache(maxsize=1)
def _join(wheel: Path, names_file: Path, groups_file: Path) -> tuple[Emoji, ...]:
    """What all three know, joined on code points without FE0F."""
    drawn = {_code(Path(member).stem): member for member in _svgs(wheel)}
    names = {
        code_of(characters): " ".join(words[0].replace("_", " ").split())
        for characters, words in json.loads(names_file.read_text(encoding="utf-8")).items()
    }
    table = []
    # Skin tones are variations inside an entry of this list and no entries of their own.
    for entry in sorted(json.loads(groups_file.read_text(encoding="utf-8")), key=lambda entry: entry["sort_order"]):
        code, group, subgroup = _code(entry["unified"]), entry["category"], entry["subcategory"]
        if code in drawn and code in names and group != "Component":
            identity = identity_of(names[code], subgroup)
            table.append(Emoji(names[code], identity, group, subgroup, code, drawn[code]))
    return tuple(table)


def code_of(characters: str) -> str:
    """`Emoji.code` of an emoji given as text."""
    return _code("-".join(f"{ord(c):04X}" for c in characters))


def _code(code_points: str) -> str:
    """Code points joined by ``-``, as files and tables have them, without FE0F."""
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


STAMP_GROUPS = ("animals", "food", "plants", "vehicles", "things")  # folders; things are the rest
NO_STAMPS = {"symbols", "roadsigns", "flags", "cartoon", "toys", "plastic"}  # folders


@functools.lru_cache(maxsize=1)
def _stamps(file: Path) -> tuple[Stamp, ...]:
    table = []
    with zipfile.ZipFile(file) as archive:
        members = set(archive.namelist())
        for member in sorted(members):
            folders = member.split("/")[:-1]
            caption = member.removesuffix(".png") + ".txt"
            if not member.endswith(".png") or caption not in members or NO_STAMPS & set(folders):
                continue
            name = archive.read(caption).decode("utf-8", "replace").splitlines()[0].strip().rstrip(".")
            with Image.open(io.BytesIO(archive.read(member))) as image:
                if image.convert("RGBA").getextrema()[3][0] == 255:
                    continue
            group = folders[0] if folders[0] in STAMP_GROUPS else "things"
            table.append(Stamp(name, name.lower(), group, "/".join(folders), member))
    return tuple(table)


def _resized(stamp: Stamp, size: int) -> np.ndarray:
    with zipfile.ZipFile(assets.fetch(STAMPS) / assets.FILES_ZIP) as archive:
        picture = Image.open(io.BytesIO(archive.read(stamp.member))).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = size / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    # RGBa is premultiplied: a transparent pixel's colour must not bleed into its neighbours.
    small = picture.convert("RGBa").resize((width, height), resample).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.array(square)
