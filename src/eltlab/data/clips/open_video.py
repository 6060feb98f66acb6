"""Opens video files with PyAV, which includes FFmpeg."""

from pathlib import Path

import av
from av.stream import Disposition

from eltlab.common.errors import UserError, first_line
from eltlab.common.text import printable_name


def open_video(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The file and its video stream, which decodes in one thread. Raises UserError."""
    try:
        container = av.open(
            str(path),
            # Some formats are lists of files. None of these may be fetched from the network.
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",  # titles and authors may not be UTF-8
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise unreadable(path, error_reason(error)) from error
    for stream in container.streams.video:
        # Album covers are video streams, too.
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            stream.codec_context.thread_count = 1  # worker processes already use the cores
            return container, stream
    container.close()
    raise unreadable(path, "it has no video that can be decoded")


def unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{printable_name(path)}: not a readable video ({reason}); repair or remove it")


def error_reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
