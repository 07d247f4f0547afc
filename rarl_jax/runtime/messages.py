"""What a user is told: errors as one sentence, with nothing in it that could steer a terminal."""

from __future__ import annotations

import errno
import textwrap
import unicodedata

LONGEST = 400  # characters of what a library says
ADVICE = {
    errno.ENOSPC: 'make room on the disk and run the same command again',
    errno.EDQUOT: 'your quota on that disk is used up; make room and run the same command again',
    errno.EFBIG: 'the file may not grow further; raise the limit (ulimit -f) and run the same command again',
    errno.EACCES: 'you may not do that there; correct its permissions or choose another place',
    errno.EPERM: 'you may not do that there; correct its permissions or choose another place',
    errno.EROFS: 'nothing can be written there; choose another place',
    errno.ENOENT: 'check the path; a relative one starts at the folder in which the command runs',
    errno.ENOTDIR: 'a folder is needed where a file is; move that file or choose another place',
    errno.EEXIST: 'a folder is needed where a file is; move that file or choose another place',
    errno.EISDIR: 'a file is needed where a folder is; move that folder or choose another place',
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.EMFILE: 'too many files are open at once; raise the limit (ulimit -n)',
    errno.EIO: 'the disk has a fault; look at it before you go on',
}


def describe(error: BaseException) -> str:
    """An error in one sentence: our own errors as they are, the system's with path, reason and advice, any other with its kind and its first line."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        paths = ' and '.join(str(path) for path in (error.filename, error.filename2) if path is not None)
        advice = ADVICE.get(error.errno)
        return shown(': '.join(part for part in (paths, error.strerror, advice) if part) + '.')
    if isinstance(error, (ValueError, OSError)) and str(error):
        return shown(str(error))
    reason = next(filter(None, str(error).splitlines()), 'no reason given')
    return shown(f'{type(error).__name__}: {textwrap.shorten(reason, LONGEST, placeholder=" ...")}')


def shown(text: str) -> str:
    """The text with every control character, mark of direction and half character as an escape; line ends stay."""
    return ''.join(c if _is_plain(c) else c.encode('unicode_escape').decode() for c in text)


def _is_plain(character: str) -> bool:
    return character in '\n\t' or character.isprintable() or unicodedata.category(character) == 'Zs'
