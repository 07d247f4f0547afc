"""What a judge's server has sent: words, a grade, or an error in a reply of status 200."""

from __future__ import annotations

import json
import re
from typing import Any

_NUMBER = r'(0(?:\.\d+)?|\.\d+|1(?:\.0+)?)'
_GRADE = re.compile(
    rf'GRADE["\'\s*_`]*[:：=][\s"\'*_`$(\\]*(?:boxed\s*\{{\s*)?{_NUMBER}[\s"\'*_`.。)\\$}}\]]*$', re.IGNORECASE
)
_END_TOKENS = re.compile(r'(?:\s|<[|｜/]?[^<>\s]{1,40}[|｜]?>|\[/?[A-Z]{2,8}\])+$')
_PASSING = re.compile(
    r'rate.?limit|overload|unavailable|time.?out|server.?error|api.?error|internal|exhaust|busy|throttl', re.I
)


def read_grade(reply: str) -> float | None:
    """The grade on the last line of a judge's reply, or in the JSON object that it is; None if there is none. Earlier lines may quote the candidate."""
    text = reply.rpartition('</think>')[2].partition('<think>')[0]
    text = _END_TOKENS.sub('', text).strip('`').removeprefix('json')
    if said := parse(text):
        text = next((f'GRADE: {value}' for name, value in said.items() if name.lower() == 'grade'), '')
    lines = [line for line in text.splitlines() if re.search(r'\w', line)]
    found = _GRADE.search(lines[-1]) if lines else None
    return float(found[1]) if found else None


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get('choices')
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def read_content(reply: dict[str, Any]) -> str | None:
    """The words of the first choice, also where they come in parts, thoughts aside; None where the reply is no completion."""
    message = _first_choice(reply).get('message')
    if not isinstance(message, dict):
        return None
    content = message.get('content')
    parts = content if isinstance(content, list) else [content]
    texts = [part.get('text') if isinstance(part, dict) else part for part in parts]
    return '\n'.join(text for text in texts if isinstance(text, str))


def inner_status(reply: dict[str, Any]) -> int | None:
    """The status of the error that a reply of status 200 tells of, by its code; None where it tells of none.

    A code that is no status is 503 where its words say that it passes, else 400; an error without any code is 502.
    """
    choice, several = _first_choice(reply), reply.get('errors')
    bare = reply if not choice and reply.keys() & {'code', 'message', 'msg', 'detail'} else None
    error = reply.get('error') or choice.get('error') or (several[0] if isinstance(several, list) and several else bare)
    if not error:
        return None
    known = error if isinstance(error, dict) else {}
    codes = [str(known[name]) for name in ('code', 'status', 'type') if known.get(name)]
    statuses = [int(code) for code in codes if re.fullmatch(r'[45]\d\d', code)]
    words = [code for code in codes if not code.lstrip('-').isdigit()]
    if statuses or not words:
        return statuses[0] if statuses else 502
    return 503 if any(map(_PASSING.search, words)) else 400
