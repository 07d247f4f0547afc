"""Image files become pictures here and nowhere else: known formats only, size judged before anything is decoded, turned as people see them, RGB on white paper.

A file's name says nothing about its format, and what Pillow would try otherwise includes formats that start other programs (EPS) or swell without bound (ICO).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF')  # of several frames or pages the first is the picture
MAX_PIXELS = 40_000_000  # px; a page scanned at 600 dpi has about 35 million
MAX_ASPECT = 200  # longer side / shorter side; the policies' image processors refuse more
# What Pillow warns of is refused here or does no harm. Once, as threads that each set and reset a filter would lose it.
warnings.filterwarnings('ignore', module='PIL')
_ORIENTATION = 0x0112  # EXIF's tag; what turns the stored pixels into what people see is, by its value:
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_MARKS = (b'eXIf', b'Raw profile type', b'XML:com.adobe.xmp')  # a PNG with none of them turns nothing
_BACK = {6: 8, 8: 6}  # the value that undoes a turn; the others undo themselves
DEEP = 'image has more than 8 bits a channel'


class PictureError(ValueError):
    """A file that is no picture to be shown; `reason` alone is what reports count."""

    def __init__(self, name: str, reason: str):
        super().__init__(f'{name}: {reason}; mend or remove it.')
        self.reason = reason


def open_picture(source: str | Path | bytes, max_pixels: int = MAX_PIXELS, name: str = '') -> Image.Image:
    """An image file, by path or by its bytes, whose header is read and whose pixels are not; close it, or use it in `with`.

    `name` stands for bytes in errors. Raises PictureError for a file that is missing, of another format, broken, or larger than `max_pixels` px.
    """
    name = name or _name(source)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FileNotFoundError:
        raise PictureError(name, 'image file missing') from None
    except Image.DecompressionBombError:
        raise PictureError(name, _too_large(max_pixels)) from None
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more for broken files
        raise PictureError(name, 'image cannot be decoded') from None
    if image.width * image.height > max_pixels:
        image.close()
        raise PictureError(name, _too_large(max_pixels))
    return image


def decode(
    source: str | Path | bytes,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    side: int | None = None,
    name: str = '',
) -> Image.Image:
    """The picture in an image file as people see it, RGB.

    Args:
      source, max_pixels, name: as of `open_picture`.
      size: annotated width and height in px. A turned picture that has this size only as it is stored was annotated unturned, and stays so.
      side: px that the longer side needs at least; lets a JPEG be decoded smaller. None = full size.

    Raises:
      PictureError: as `open_picture`, or the pixels cannot be decoded, or the picture has another size than `size`.
    """
    return decode_turned(source, size, max_pixels, side, name)[0]


def decode_turned(
    source: str | Path | bytes, size: tuple[int, int] | None, max_pixels: int, side: int | None = None, name: str = ''
) -> tuple[Image.Image, bool | None]:
    """As `decode`; and of a picture whose EXIF says that it is shown turned whether it was, or was left as annotated. None for any other."""
    name = name or _name(source)
    with open_picture(source, max_pixels, name) as image:
        try:
            if image.mode[0] in 'IF':  # what range their values have, the file does not tell
                raise PictureError(name, DEEP)
            orientation, by_pillow = _orientation(image), image.format == 'TIFF'  # which Pillow turns while it loads
            across = image.size[::-1] if orientation > 4 else image.size
            stored, shown = (across, image.size) if by_pillow else (image.size, across)
            if size not in (None, stored, shown):
                raise PictureError(name, 'image size differs from its annotation')
            turned = size in (None, shown)
            if side is not None:
                image.draft('RGB', (side, side))
            image.load()
            if by_pillow:
                turn = None if turned else _TURNS.get(_BACK.get(orientation, orientation))
            else:
                turn = _TURNS.get(orientation) if turned else None
            picture = as_rgb(image if turn is None else image.transpose(turn))
        except PictureError as error:
            raise PictureError(name, error.reason) from None
        except Exception:
            raise PictureError(name, 'image cannot be decoded') from None
        return picture, turned if orientation > 1 else None


def as_shown(path: str | Path, size: tuple[int, int]) -> tuple[bytes, str]:
    """Bytes and suffix of a picture file that any program shows as `decode` does: the file as it is, or RGB in PNG where it is not that plain.

    `size` is the annotated width and height in px. Raises PictureError.
    """
    data = Path(path).read_bytes()
    with open_picture(data, size[0] * size[1], str(path)) as image:
        kind = {'PNG': '.png', 'JPEG': '.jpg', 'MPO': '.jpg', 'WEBP': '.webp'}.get(image.format)
        plain = kind and image.mode in ('RGB', 'L') and image.size == size and not image.has_transparency_data
        if plain and (kind != '.png' or any(mark in data for mark in _PNG_MARKS)):
            plain = _orientation(image) == 1 and not (kind == '.webp' and image.is_animated)
    if plain:
        return data, kind
    file = io.BytesIO()
    # The level that is fast: a large page takes seconds at the usual one.
    decode(data, size, size[0] * size[1], name=str(path)).save(file, 'PNG', compress_level=1)
    return file.getvalue(), '.png'


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB of a picture of any mode; what is transparent becomes white paper. A picture that is RGB already is not copied."""
    if image.mode.startswith('I;16'):  # Pillow would cut off at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
    if image.mode in ('I', 'F'):
        raise PictureError('image', DEEP)
    if image.has_transparency_data:
        drawing = image.convert('LA' if image.mode == 'La' else 'RGBA').convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), drawing).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as many kinds as there are ways to break EXIF
        return 1
    return value if value in _TURNS else 1


def _name(source: str | Path | bytes) -> str:
    return 'image' if isinstance(source, bytes) else str(source)


def _too_large(max_pixels: int) -> str:
    return f'image larger than {max_pixels / 1e6:g} megapixels'


def side_by_side(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages from left to right as one picture, their upper edges in line, white below a shorter one; a single page as it is.

    A box on the second page lies in the picture as many pixels to the right as the first page is wide.
    """
    if len(pages) == 1:
        return pages[0]
    picture = Image.new('RGB', (sum(page.width for page in pages), max(page.height for page in pages)), 'white')
    left = 0
    for page in pages:
        picture.paste(page, (left, 0))
        left += page.width
    return picture
