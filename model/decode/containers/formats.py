"""Which containers and video codecs are read: allow-lists, since FFmpeg has hundreds more, few of them well tested
against hostile data."""

from __future__ import annotations

from collections.abc import Mapping

# Not one of FFmpeg's, whose decoder knows single pictures only: `animated_webp` reads it with Pillow
WEBP = "webp"

# FFmpeg's demuxer -> name for people
CONTAINERS: Mapping[str, str] = {
    "mov": "MP4/MOV/3GP",
    "matroska": "WebM/Matroska",
    "avi": "AVI",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG program stream",
    "mpegvideo": "MPEG video",
    "asf": "WMV/ASF",
    "flv": "FLV",
    "ogg": "Ogg",
    "dv": "DV",
    "gif": "GIF",
    WEBP: "WebP",
}

# `codec.canonical_name` of PyAV -> name for people
CODECS: Mapping[str, str] = {
    "av1": "AV1",
    "cinepak": "Cinepak",
    "dnxhd": "DNxHD/DNxHR",
    "dvvideo": "DV",
    "ffv1": "FFV1",
    "flv1": "Sorenson H.263",
    "gif": "GIF",
    "h263": "H.263",
    "h264": "H.264",
    "hevc": "H.265",
    "mjpeg": "Motion JPEG",
    "mpeg1video": "MPEG-1",
    "mpeg2video": "MPEG-2",
    "mpeg4": "MPEG-4 part 2 (DivX, Xvid)",
    "msmpeg4v1": "MS MPEG-4 version 1",
    "msmpeg4v2": "MS MPEG-4 version 2",
    "msmpeg4v3": "MS MPEG-4 version 3 (DivX 3)",
    "png": "PNG",
    "prores": "ProRes",
    "qtrle": "QuickTime Animation",
    "theora": "Theora",
    "vc1": "VC-1",
    "vp6": "VP6",
    "vp6a": "VP6 with alpha",
    "vp6f": "VP6 of Flash",
    "vp8": "VP8",
    "vp9": "VP9",
    "wmv1": "WMV 7",
    "wmv2": "WMV 8",
    "wmv3": "WMV 9",
}
