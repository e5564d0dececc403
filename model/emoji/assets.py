"""Sprites of each art style, fetched from npm packages when the data is built. The art is not part of the repository.

``emoji-datasource-google`` (Noto Emoji, Apache-2.0) and ``emoji-datasource-twitter`` (Twemoji, CC-BY-4.0) contain the
same emoji at 64x64 pixels under the same file names, and the category tree (MIT). ``openmoji`` (OpenMoji, CC-BY-SA-4.0)
contains SVG files: the style of the evaluation only. ``emojilib`` (MIT) contains the keywords.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidlex.model.emoji.keywords import emoji_characters, filter_keywords, read_keywords
from vidlex.model.emoji.nouns import HYPERNYMS, Noun, build_nouns, noun_name

SPRITE_SIZE = 64
MAX_SPRITE_BYTES = 1 << 20
VARIATION_SELECTOR = "\ufe0f"  # requests the coloured form of an emoji; optional in lists of emoji


@dataclass(frozen=True)
class ArtPackage:
    style: str
    package: str
    version: str
    sha256: str
    art: str
    art_licence: str

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"


PACKAGES = (
    ArtPackage(
        "google",
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Noto Emoji by Google",
        "Apache-2.0",
    ),
    ArtPackage(
        "twitter",
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "Twemoji, copyright Twitter, Inc and other contributors",
        "CC-BY-4.0",
    ),
)
OPENMOJI = ArtPackage(
    "openmoji",
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "OpenMoji, the open-source emoji and icon project",
    "CC-BY-SA-4.0",
)

KEYWORDS = ArtPackage(
    "keywords",
    "emojilib",
    "4.0.3",
    "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
    "keywords only, no art",
    "MIT",
)


class ArtError(RuntimeError):
    """A package could not be fetched, or its content is not the expected one."""


@dataclass(frozen=True, eq=False)
class SpriteSheet:
    nouns: tuple[Noun, ...]
    styles: tuple[str, ...]
    sprites: Tensor  # [styles, sprites, 4, 64, 64] uint8, RGBA with straight alpha
    sprite_noun: Tensor  # [sprites] int64, sorted indices into ``nouns``


def fetch_package(package: ArtPackage, cache: Path) -> Path:
    """Path of the package's tarball in ``cache``, fetched with ``npm pack`` if missing.

    Raises ArtError if npm is missing or fails, or if the checksum is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{package.package}-{package.version}.tgz"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            try:
                subprocess.run(
                    ["npm", "pack", "--silent", package.spec],
                    cwd=scratch,
                    check=True,
                    capture_output=True,
                    timeout=600,
                )
            except FileNotFoundError:
                raise ArtError(f"npm is needed to fetch {package.spec}: install Node.js and try again") from None
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise ArtError(f"npm could not fetch {package.spec}: {error}") from error
            (Path(scratch) / target.name).replace(target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ArtError(f"{target} has sha256 {digest}, expected {package.sha256}: delete it and try again")
    return target


def load_sheet(
    cache: Path,
    packages: Sequence[ArtPackage] = PACKAGES,
    *,
    vectors: ArtPackage | None = OPENMOJI,
    keywords: ArtPackage | None = KEYWORDS,
) -> SpriteSheet:
    """Sprites of every noun in every style, about 16 MB per style. Raises ArtError.

    ``packages`` contain pixels and the category tree, ``vectors`` SVG files, ``keywords`` the keywords of each emoji.
    """
    tarballs = [fetch_package(package, cache) for package in packages]
    styles = tuple(package.style for package in packages)
    svgs = _read_svgs(fetch_package(vectors, cache)) if vectors is not None else None
    keywords_of_emoji = read_keywords(fetch_package(keywords, cache)) if keywords is not None else {}
    entries = _read_json(tarballs[0], "package/emoji.json")
    names = {noun_name(str(entry["name"])) for entry in entries} | {h for row in HYPERNYMS.values() for h in row}
    known_words = frozenset(names)

    def image_keywords(image: str) -> tuple[str, ...]:
        emoji = emoji_characters(image)
        words = keywords_of_emoji.get(emoji) or keywords_of_emoji.get(emoji.replace(VARIATION_SELECTOR, ""))
        return filter_keywords(words or (), known=known_words)

    nouns = build_nouns(
        entries,
        styles,
        has_image=(lambda image: True) if svgs is None else (lambda image: _stem(image) in svgs),
        keywords=image_keywords,
    )
    noun_images = [(index, image) for index, noun in enumerate(nouns) for image in noun.images]
    images = [image for _, image in noun_images]
    sheets = [_read_sprites(tarball, style, images) for tarball, style in zip(tarballs, styles, strict=True)]
    if svgs is not None and vectors is not None:
        sheets.append(np.stack([_rasterise(svgs[_stem(image)]) for image in images]))
        styles = (*styles, vectors.style)
    return SpriteSheet(
        nouns=nouns,
        styles=styles,
        sprites=torch.from_numpy(np.stack(sheets)),
        sprite_noun=torch.tensor([index for index, _ in noun_images]),
    )


def _stem(image: str) -> str:  # "1F6E1-FE0F.svg" and "1f6e1.png" -> "1f6e1"
    return image.rsplit(".", 1)[0].lower().replace("-fe0f", "")


def _read_svgs(tarball: Path) -> dict[str, str]:  # by stem; 4,495 files, 8 MB
    svgs = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            if member.name.startswith("package/color/svg/") and member.isfile() and member.size <= MAX_SPRITE_BYTES:
                file = archive.extractfile(member)
                assert file is not None  # isfile()
                svgs[_stem(member.name.rsplit("/", 1)[1])] = file.read().decode()
    return svgs


def _rasterise(svg: str) -> np.ndarray[Any, np.dtype[np.uint8]]:  # RGBA
    import resvg_py  # a native library, used only when data is built

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIZE, height=SPRITE_SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).transpose(2, 0, 1)  # [64, 64, 4] -> [4, 64, 64]


def _read_json(tarball: Path, member: str) -> list[dict[str, Any]]:
    with tarfile.open(tarball, "r:gz") as archive:
        file = archive.extractfile(member)
        if file is None:
            raise ArtError(f"{tarball} contains no file {member}")
        data: list[dict[str, Any]] = json.load(file)
        return data


def _read_sprites(tarball: Path, style: str, images: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    index_of = {f"package/img/{style}/64/{image}": index for index, image in enumerate(images)}
    sprites = np.zeros((len(images), 4, SPRITE_SIZE, SPRITE_SIZE), np.uint8)
    missing = set(index_of)
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            if member.name not in missing or not member.isfile() or member.size > MAX_SPRITE_BYTES:
                continue
            file = archive.extractfile(member)
            assert file is not None  # isfile()
            picture = Image.open(io.BytesIO(file.read())).convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE))
            sprites[index_of[member.name]] = np.asarray(picture).transpose(2, 0, 1)  # [64, 64, 4] -> [4, 64, 64]
            missing.discard(member.name)
    if missing:
        raise ArtError(f"{tarball} lacks {len(missing)} sprites, for example {min(missing)}")
    return sprites
