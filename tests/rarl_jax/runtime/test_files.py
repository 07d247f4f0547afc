"""Files that are whole or not there, and JSON as others leave it."""

import json
import resource
import signal

import pytest
from safetensors import SafetensorError

from rarl_jax.runtime.files import Appender, load_json, naming, read, replacing, write_json, write_whole
from rarl_jax.runtime.messages import describe, shown


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'deep' / 'a.txt'
    write_whole(path, 'é \ud800')
    assert path.read_text(encoding='utf-8') == 'é \\ud800'
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text('half')
        raise KeyError
    assert path.read_text(encoding='utf-8').startswith('é')
    assert [each.name for each in path.parent.iterdir()] == ['a.txt']
    with pytest.raises(ValueError, match='JSON'):
        write_json(path, {'x': float('nan')})


@pytest.mark.parametrize(
    'content',
    [
        b'\xef\xbb\xbf{"a": "\xc3\xa9"}',
        '{"a": "é"}'.encode('utf-16'),
        b'{"a": "\\u00e9"}',
        '{"a": "é"}'.encode('utf-32'),
    ],
)
def test_json_in_any_encoding(tmp_path, content):
    (tmp_path / 'x.json').write_bytes(content)
    assert load_json(tmp_path / 'x.json') == {'a': 'é'}


@pytest.mark.parametrize(
    ('content', 'kind', 'reason'),
    [
        (b'', dict, 'is not JSON'),
        (b'{"a": ', dict, 'is not JSON'),
        (b'\xff{}', dict, 'is not JSON'),
        (b'[' * 100_000, list, 'nested too deep'),
        (b'{"a":' * 100_000, dict, 'nested too deep'),
        (b'1' * 10_000, int, 'is not JSON'),
        (b'[]', dict, 'holds a list, expected a dict'),
        (b'null', dict, 'holds a NoneType, expected a dict'),
        (b'{}', list, 'holds a dict, expected a list'),
    ],
)
def test_broken_json_is_told_with_path_reason_and_fix(tmp_path, content, kind, reason):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as told:
        load_json(path, kind, 'copy it again')
    assert str(path) in str(told.value) and str(told.value).endswith('copy it again.')
    assert len(str(told.value)) < 400


def test_a_file_that_is_not_there_or_a_folder_is_told_by_name(tmp_path):
    for path, reason in ((tmp_path / 'none', 'No such file'), (tmp_path, 'Is a directory')):
        with pytest.raises(OSError) as told:
            load_json(path)
        assert str(path) in describe(told.value) and reason in describe(told.value)


def test_a_write_that_finds_no_room_names_its_file(tmp_path):
    """A limit on the size of files stands for the full disk: both are told at the write, without a name."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    appender = Appender(tmp_path / 'rows.jsonl')
    appender.append([{'a': 1}])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        for write in (lambda: write_whole(tmp_path / 'a.txt', 'x' * 999), lambda: appender.append([{'a': 'x' * 999}])):
            with pytest.raises(OSError) as told:
                write()
            assert str(tmp_path) in describe(told.value) and 'run the same command again' in describe(told.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [each.name for each in tmp_path.iterdir()] == ['rows.jsonl']
    assert read(tmp_path / 'rows.jsonl') == [{'a': 1}]


@pytest.mark.parametrize(
    'error',
    [
        OSError(28, 'No space left on device'),
        RuntimeError('write() failed: No space left on device; writing /x'),
        SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)'),
        OSError(30, 'Read-only file system'),
    ],
)
def test_a_librarys_word_for_a_full_disk_is_the_systems(tmp_path, error):
    with pytest.raises(OSError) as told, naming(tmp_path):
        raise error
    assert told.value.filename == str(tmp_path)
    assert describe(told.value).startswith(f'{tmp_path}: ')


@pytest.mark.parametrize('error', [ValueError('No space left on device'), FileNotFoundError(2, 'No', 'x'), KeyError(1)])
def test_what_names_itself_stays(tmp_path, error):
    with pytest.raises(type(error)) as told, naming(tmp_path):
        raise error
    assert told.value is error


def test_deep_lines_are_told(tmp_path):
    (tmp_path / 'x.jsonl').write_text(json.dumps({}) + '\n' + '[' * 100_000 + '\n')
    with pytest.raises(ValueError, match='line 2 is not JSON'):
        read(tmp_path / 'x.jsonl')


@pytest.mark.parametrize(
    ('text', 'seen'),
    [
        ('a\x00b', 'a\\x00b'),
        ('\x1b[31mred', '\\x1b[31mred'),
        ('\u202egnp.exe', '\\u202egnp.exe'),
        ('\u2066x\u200f', '\\u2066x\\u200f'),
        ('a\r\x7f\x9b', 'a\\r\\x7f\\x9b'),
        ('\ud800', '\\ud800'),
        ('漫画　é 😀\n\tx', '漫画　é 😀\n\tx'),
    ],
)
def test_what_could_steer_a_terminal_is_shown_as_an_escape(text, seen):
    assert shown(text) == seen
    assert describe(ValueError(text)) == seen


def test_any_error_is_a_sentence():
    assert describe(KeyError('x')) == "KeyError: 'x'"
    assert describe(RuntimeError()) == 'RuntimeError: no reason given'
    assert describe(FileNotFoundError('DIR was not found: give another.')) == 'DIR was not found: give another.'
    assert describe(OSError(28, 'No space left on device', '/d')).startswith('/d: No space left on device: make room')
