"""Pictures of any mode, turned or not, and files that only say they are pictures."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from input_pipeline.pictures import PictureError, as_rgb, as_shown, decode, decode_turned, open_picture

SIZE = (24, 40)
NOISE = np.random.default_rng(0).integers(0, 255, (10, 6, 3), dtype=np.uint8)
COLOUR = Image.fromarray(NOISE).resize(SIZE, Image.Resampling.NEAREST)


def save(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(a, b):
    return np.abs(np.asarray(a, np.int16) - np.asarray(b.convert('RGB'), np.int16)).mean()


def oriented(image, kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(image, kind, exif=exif, **options)


# --- Modes


def lab():
    return ImageCms.profileToProfile(
        COLOUR, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
    )


MODES = {
    'RGB': (save(COLOUR, 'PNG'), COLOUR, 0),
    'P': (save(COLOUR.quantize(16), 'PNG'), COLOUR.quantize(16), 0),
    'LA': (save(COLOUR.convert('LA'), 'PNG'), COLOUR.convert('L'), 0),
    '1': (save(COLOUR.convert('1'), 'PNG'), COLOUR.convert('1'), 0),
    'L': (save(COLOUR.convert('L'), 'JPEG', quality=95), COLOUR.convert('L'), 4),
    'CMYK': (save(COLOUR.convert('CMYK'), 'JPEG', quality=95, subsampling=0), COLOUR, 6),
    'YCbCr': (save(COLOUR.convert('YCbCr'), 'TIFF'), COLOUR, 2),
    'LAB': (save(lab(), 'TIFF'), COLOUR, 6),
    'RGB in WebP': (save(COLOUR, 'WEBP', lossless=True), COLOUR, 0),
    'RGB in BMP': (save(COLOUR, 'BMP'), COLOUR, 0),
    'frames of a GIF': (
        save(COLOUR.quantize(8), 'GIF', save_all=True, append_images=[Image.new('P', SIZE)]),
        COLOUR.quantize(8),
        0,
    ),
    'frames of a PNG': (save(COLOUR, 'PNG', save_all=True, append_images=[Image.new('RGB', SIZE)]), COLOUR, 0),
}


@pytest.mark.parametrize('name', MODES)
def test_each_mode_is_shown_right(name):
    data, expected, tolerance = MODES[name]
    image = decode(data)
    assert (image.mode, image.size) == ('RGB', SIZE)
    assert difference(image, expected) <= tolerance
    with open_picture(data) as opened:
        assert np.array_equal(as_rgb(opened), image)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'La', 'RGBa', 'P', 'RGB', 'L', '1'])
def test_what_is_transparent_is_white_paper(mode):
    sheet = Image.new('RGBA', (2, 1), (0, 0, 0, 0))
    sheet.putpixel((1, 0), (0, 0, 0, 255))
    if mode == 'La':
        sheet = sheet.convert('LA').convert(mode)
    elif mode in ('RGBA', 'LA', 'RGBa', 'P'):
        sheet = sheet.convert(mode)
    else:  # one colour stands for transparent
        sheet = Image.new(mode, (2, 1), 1 if mode == '1' else 'white')
        sheet.putpixel((0, 0), 0)
        sheet.putpixel((1, 0), 0 if mode == '1' else (10,) * len(mode) if mode == 'RGB' else 10)
        sheet.info['transparency'] = (0, 0, 0) if mode == 'RGB' else 0
    shown = as_rgb(sheet)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert mode == '1' or max(shown.getpixel((1, 0))) < 20


def test_sixteen_bits_are_scaled_and_a_file_of_them_is_refused():
    """Pillow would cut them off at 255: a white page."""
    deep = Image.fromarray(np.asarray(COLOUR.convert('L')).astype(np.uint16) * 257)
    assert difference(as_rgb(deep), COLOUR.convert('L')) == 0
    with pytest.raises(PictureError, match='more than 8 bits a channel'):
        decode(save(deep, 'PNG'))
    with pytest.raises(PictureError, match='more than 8 bits a channel'):
        as_rgb(Image.new('F', (2, 2)))


# --- Turned pictures


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_turned_picture_is_as_people_see_it_unless_annotated_as_stored(kind, orientation):
    lossless = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 98, 'subsampling': 0}}.get(kind, {})
    data = oriented(COLOUR, kind, orientation, **lossless)
    marked = COLOUR.copy()
    marked.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(marked)
    for size in (None, expected.size):
        assert difference(decode(data, size), expected) < 3
    assert decode_turned(data, expected.size, 10_000)[1] is (None if orientation == 1 else True)
    if orientation > 4:
        assert difference(decode(data, SIZE), COLOUR) < 3
        assert decode_turned(data, SIZE, 10_000)[1] is False
    with pytest.raises(PictureError, match='size differs from its annotation'):
        decode(data, (40, 41))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_a_decoded_picture_saved_again_is_not_turned_twice(kind):
    picture = decode(oriented(COLOUR, kind, 6))
    for again in ('PNG', 'JPEG', 'WEBP'):
        assert decode(save(picture, again)).size == picture.size == (40, 24)
    assert decode(save(decode(oriented(COLOUR, kind, 6), SIZE), 'PNG')).size == SIZE


def test_a_jpeg_decoded_small_is_turned_too():
    picture = decode(oriented(COLOUR.resize((240, 400)), 'JPEG', 6), (400, 240), side=50)
    assert picture.width > picture.height
    assert 50 <= max(picture.size) < 400


def test_broken_exif_turns_nothing():
    data = save(COLOUR, 'JPEG', quality=98, exif=b'Exif\0\0II*\0\xff\xff\xff\x7f')
    assert decode(data).size == SIZE


# --- Files for other programs


def late_exif(data, orientation):
    """A PNG whose EXIF stands behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(body)) + b'eXIf' + body + struct.pack('>I', zlib.crc32(b'eXIf' + body))
    return data[:-12] + chunk + data[-12:]


FILES = {name: data for name, (data, _, _) in MODES.items()} | {
    'clear': save(Image.new('RGBA', SIZE, (10, 20, 30, 0)), 'PNG'),
    'turned JPEG': oriented(COLOUR, 'JPEG', 6),
    'mirrored PNG': oriented(COLOUR, 'PNG', 2),
    'turned late': late_exif(save(COLOUR, 'PNG'), 8),
    'turned TIFF': oriented(COLOUR, 'TIFF', 6),
    'turned WebP': oriented(COLOUR, 'WEBP', 6),
    'frames of a WebP': save(COLOUR, 'WEBP', lossless=True, save_all=True, append_images=[Image.new('RGB', SIZE)]),
}


@pytest.mark.parametrize('name', FILES)
def test_any_program_shows_what_is_shown_here(name, tmp_path):
    (tmp_path / 'page.xyz').write_bytes(FILES[name])
    for size in {SIZE, decode(FILES[name]).size}:
        data, suffix = as_shown(tmp_path / 'page.xyz', size)
        with Image.open(io.BytesIO(data)) as plain:
            assert suffix == {'PNG': '.png', 'JPEG': '.jpg', 'WEBP': '.webp'}[plain.format]
            assert plain.mode in ('RGB', 'L')
            assert plain.getexif().get(0x0112, 1) == 1
            assert np.array_equal(plain.convert('RGB'), decode(FILES[name], size))
    if name in ('RGB', 'L', 'RGB in WebP'):
        assert data == FILES[name]


# --- Files that are not to be trusted


def ico(side):
    """An icon that holds a PNG of other formats' reach."""
    png = save(Image.new('RGBA', (side, side)), 'PNG')
    return struct.pack('<HHHBBBBHHII', 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png


HOSTILE = {
    'EPS': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 40\n%%EndComments\nshowpage\n%%EOF\n',
    'ICO': ico(64),
    'PPM': b'P6 24 40 255\n' + bytes(24 * 40 * 3),
    'HTML': b'<html>404</html>',
    'PDF': b'%PDF-1.4\n',
    'nothing': b'',
    'cut PNG': save(COLOUR, 'PNG')[:-600],
    'cut JPEG': save(COLOUR, 'JPEG')[:-400],
}


@pytest.mark.parametrize('name', HOSTILE)
def test_what_is_no_picture_of_the_list_is_never_decoded(name, tmp_path):
    path = tmp_path / 'page.png'
    path.write_bytes(HOSTILE[name])
    with pytest.raises(PictureError, match=r'page\.png: image cannot be decoded; mend or remove it\.$'):
        decode(path)
    with pytest.raises(PictureError, match=r'^page 7: image cannot be decoded'):
        decode(HOSTILE[name], name='page 7')


def test_size_is_judged_before_anything_is_decoded(tmp_path):
    data = save(Image.new('1', (30_000, 30_000)), 'PNG')
    for limit in (40_000_000, 500_000_000):  # the larger one is beyond Pillow's own
        with pytest.raises(PictureError, match=f'larger than {limit / 1e6:g} megapixels'):
            open_picture(data, limit)
    assert open_picture(save(COLOUR, 'PNG'), 24 * 40).size == SIZE
    with pytest.raises(PictureError, match='image file missing'):
        decode(tmp_path / 'none.png')


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF']), st.data())
def test_flipped_bytes_are_a_picture_or_an_error_in_one_sentence(kind, data):
    raw = bytearray(save(COLOUR, kind))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(raw)).mode == 'RGB'
    except PictureError as error:
        assert str(error).endswith('.')
