"""Takes out of an encoded image what is not needed to see it: names of patients hide in comments, EXIF and XMP.

Nothing is encoded again: segments are left out, the compressed pixels stay byte for byte. What decoding needs is kept
(JFIF's and Adobe's marker, palette, transparency), by lists of what may stay; anything unknown goes, and so do ICC
profiles: their text is free, and whoever reads tiles here takes pixels as they are.
Formats: JPEG (ITU-T T.81, annex B), PNG (W3C, third edition), WebP (RFC 9649).
"""

from __future__ import annotations

import struct

from pathryoshka.tiles.views import TileError

PNG_MARK = b"\x89PNG\r\n\x1a\n"
PNG_STAYS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT")
WEBP_STAYS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
EXIF_AND_XMP = 0x08 | 0x04 | 0x20
"""Flags of VP8X that announce EXIF, XMP and an ICC profile."""
APP0, APP15, COM, SOS, EOI = 0xE0, 0xEF, 0xFE, 0xDA, 0xD9
ADOBE = 0xEE


def stripped(image: bytes) -> bytes:
    """The same pixels in the same format without metadata; other formats come back as they are.

    Raises:
        TileError: the file does not follow its format, so that what is in it cannot be told.
    """
    try:
        if image.startswith(b"\xff\xd8"):
            return jpeg_stripped(image)
        if image.startswith(PNG_MARK):
            return png_stripped(image)
        if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
            return webp_stripped(image)
    except (struct.error, IndexError):
        raise TileError(f"damaged image of {len(image)} bytes: it ends inside of its metadata") from None
    return image


def jpeg_stripped(image: bytes) -> bytes:
    """Application segments go but for JFIF's and Adobe's, which say what the colours mean; comments go.

    A thumbnail inside JFIF goes, and what follows the end of the image, where cameras put second pictures.
    """
    out, at = [image[:2]], 2
    while True:
        if image[at] != 0xFF:
            raise TileError(f"damaged JPEG of {len(image)} bytes: no marker where one must be")
        marker = image[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == EOI:
            return b"".join([*out, image[at : at + 2]])
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            out.append(image[at : at + 2])
            at += 2
            continue
        (length,) = struct.unpack(">H", image[at + 2 : at + 4])
        segment = image[at : at + 2 + length]
        if length < 2 or len(segment) < 2 + length:
            raise TileError(f"damaged JPEG of {len(image)} bytes: a segment does not end")
        if marker == APP0:
            if segment[4:9] == b"JFIF\0" and length >= 16:
                out.append(b"\xff\xe0\x00\x10" + segment[4:16] + b"\0\0")
        elif marker == ADOBE:
            if segment[4:9] == b"Adobe" and length >= 14:
                out.append(b"\xff\xee\x00\x0e" + segment[4:16])
        elif not (APP0 < marker <= APP15 or marker == COM):
            out.append(segment)
        at += 2 + length
        if marker == SOS:  # entropy-coded data up to the next marker that is neither stuffing nor a restart
            end = at
            while not (image[end] == 0xFF and image[end + 1] != 0 and not 0xD0 <= image[end + 1] <= 0xD7):
                end = image.index(b"\xff", end + 1) if b"\xff" in image[end + 1 :] else len(image)
            out.append(image[at:end])
            at = end


def png_stripped(image: bytes) -> bytes:
    """The chunks that pixels need; text, time, EXIF and profiles with their free text go."""
    out, at = [PNG_MARK], len(PNG_MARK)
    while True:
        (length,) = struct.unpack(">I", image[at : at + 4])
        kind, chunk = image[at + 4 : at + 8], image[at : at + 12 + length]
        if len(chunk) < 12 + length:
            raise TileError(f"damaged PNG of {len(image)} bytes: a chunk does not end")
        if kind in PNG_STAYS:
            out.append(chunk)
        if kind == b"IEND":
            return b"".join(out)
        at += 12 + length


def webp_stripped(image: bytes) -> bytes:
    """The chunks that pixels need; the header then no longer announces the others."""
    out, at = [], 12
    end = 8 + struct.unpack("<I", image[4:8])[0]
    while at + 8 <= min(end, len(image)):
        kind, (length,) = image[at : at + 4], struct.unpack("<I", image[at + 4 : at + 8])
        chunk = image[at : at + 8 + length + length % 2]
        if len(chunk) < 8 + length:
            raise TileError(f"damaged WebP of {len(image)} bytes: a chunk does not end")
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~EXIF_AND_XMP]) + chunk[9:]
        if kind in WEBP_STAYS:
            out.append(chunk)
        at += 8 + length + length % 2
    body = b"WEBP" + b"".join(out)
    return b"RIFF" + struct.pack("<I", len(body)) + body
