import dataclasses
import io

import pytest
from rich.console import Console

from rarl_jax.evaluation.__main__ import main
from rarl_jax.evaluation.results import write_results
from rarl_jax.evaluation.samples import rewrite_samples
from rarl_jax.evaluation.tables import compare, load, side_by_side, to_markdown, to_rich
from tests.rarl_jax.evaluation.made import record
from tests.rarl_jax.evaluation.test_results import PROVENANCE


def write_stage(folder, stage, records):
    rewrite_samples(folder, records)
    write_results(folder, dataclasses.replace(PROVENANCE, stage=stage), records)
    return folder


@pytest.fixture
def before(tmp_path):
    """12 questions on 12 pages, 4 right; depth is only here."""
    records = [record(f'q{i}', [float(i < 4)], page=f'p{i}', ious=(0.4,)) for i in range(12)]
    return write_stage(tmp_path / 'before', 'before', [*records, record('d', [1.0], task='depth_comparison')])


@pytest.fixture
def after(tmp_path):
    """The same 12, all right; with blank crops as before."""
    records = [record(f'q{i}', [1.0], page=f'p{i}', ious=(0.9,)) for i in range(12)]
    blank = [record(f'q{i}', [float(i < 4)], page=f'p{i}', mode='blank_crop', ious=(0.9,)) for i in range(12)]
    return write_stage(tmp_path / 'after', 'after', records + blank)


def test_pairs_are_found_by_question(before, after):
    (first,), (second, blank) = load(before), load(after)
    assert [result.name for result in (first, second, blank)] == ['before', 'after zoom', 'after blank_crop']
    paired = compare(first, second)
    assert set(paired) == {'action_recognition'}
    assert paired['action_recognition'].n == 12 and paired['action_recognition'].difference == pytest.approx(8 / 12)
    assert compare(first, blank)['action_recognition'].difference == 0
    assert compare(second, first)['action_recognition'].difference == pytest.approx(-8 / 12)


def test_other_questions_are_refused(before, tmp_path):
    other = write_stage(tmp_path / 'other', 'other', [record('elsewhere', [1.0])])
    with pytest.raises(ValueError, match='no question in common'):
        compare(load(before)[0], load(other)[0])
    changed = write_stage(tmp_path / 'changed', 'changed', [dataclasses.replace(record('q1', [1.0]), doc_hash='new')])
    with pytest.raises(ValueError, match=r"question 'q1' is not the same in 'before' and 'changed'"):
        compare(load(before)[0], load(changed)[0])


def test_markdown_has_every_number(before, after):
    text = to_markdown(side_by_side([*load(before), *load(after, 'zoom')]))
    rows = [[cell.strip() for cell in line.split(' | ')] for line in text.splitlines()]
    assert (
        rows[0][3:5] == ['exact, %', 'Δ']
        and 'Δ: to before, in points' in text
        and rows[2][0] == '| **action_recognition (accuracy)**'
    )
    assert rows[3][:3] == ['| before', '12', '33.3 [8.3, 58.3]'] and rows[3][3:7] == ['', '', '', '']
    assert (
        rows[4][:2] == ['| after zoom', '12'] and rows[4][2].startswith('100.0 [') and rows[4][4].startswith('+66.7 [+')
    )
    assert rows[4][5:] == ['0.008 \\*', '0.008', '0.90', '100 |']
    assert [row[0] for row in rows[5:8]] == ['| paper: zero-shot', '| paper: oracle zoom', '| paper: RARL']
    assert (rows[5][2], rows[6][2], rows[7][4], rows[7][7]) == (
        '43.5',
        '55.8',
        'up to +32.7',
        '> 0.85',
    )
    assert rows[9][0] == '| before' and rows[9][1] == '1' and rows[10][:3] == ['| after zoom', '', '']


@pytest.mark.parametrize('width', [80, 140])
def test_calls_of_a_tool_that_is_not_offered_are_told(tmp_path, width):
    direct = [record('q0', [1.0], mode='direct', ious=(None,)), record('q1', [1.0], mode='direct')]
    table = side_by_side(load(write_stage(tmp_path, 'after', direct)))
    assert table.sections[0].rows[0][-1] == '0 (50 refused)' and 'where no tool is offered' in table.notes[0]
    console = Console(file=io.StringIO(), width=width)
    console.print(to_rich(table))
    assert '(50 refused)' in console.file.getvalue()
    offered = side_by_side(load(write_stage(tmp_path / 'zoom', 'after', [record('q0', [1.0], ious=(0.4,))])))
    assert offered.sections[0].rows[0][-1] == '100'


def test_where_grades_lie_between_the_wholly_right_are_told_apart(tmp_path):
    records = [
        record(f'q{i}', [grade], page=f'p{i}', task='panel_reordering', choices=(), answer='B, A, C')
        for i, grade in enumerate([1.0, 0.5, 0.5, 0.0])
    ]
    table = side_by_side(load(write_stage(tmp_path / 'x', 'x', records)))
    assert table.sections[0].heading == 'panel_reordering (kendall tau)'
    assert table.sections[0].rows[0][2].startswith('50.0 [') and table.sections[0].rows[0][3] == '25.0'


def test_terminal_table_reads_names_as_text(tmp_path):
    folder = write_stage(tmp_path / 'x', '[red]x[/]|', [record('a', [1.0])])
    out = Console(file=io.StringIO(), width=200)
    out.print(to_rich(side_by_side(load(folder))))
    assert '[red]x[/]|' in out.file.getvalue()
    assert r'[red]x[/]\|' in to_markdown(side_by_side(load(folder)))


@pytest.mark.parametrize(('width', 'one_line'), [(80, False), (120, True)])
def test_the_terminal_loses_no_number(before, after, width, one_line):
    table = side_by_side([*load(before), *load(after)])
    out = Console(file=io.StringIO(), width=width)
    out.print(to_rich(table))
    printed = out.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width and '…' not in printed
    cells = [cell for section in table.sections for row in section.rows for cell in row]
    assert {word for cell in cells for word in cell.split()} <= set(printed.split())
    own = next(line for line in printed.splitlines() if line.startswith('after zoom'))
    assert ('[' in own) == one_line


def test_runs_whose_stages_are_called_alike_are_told_apart(tmp_path, capsys):
    """Two policies measured by the same config."""
    folders = [
        write_stage(tmp_path / run / 'eval' / 'evaluation', 'evaluation', [record('a', [score])])
        for run, score in (('base', 0.0), ('mine', 1.0))
    ]
    assert main([*map(str, folders), '--markdown']) == 0
    out = capsys.readouterr().out
    assert f'| {tmp_path / "base"}: evaluation |' in out and f'| {tmp_path / "mine"}: evaluation |' in out
    assert f'Δ: to {tmp_path / "base"}: evaluation' in out


def test_command_line(before, after, capsys):
    assert main([str(before), f'{after}:blank_crop', '--markdown']) == 0
    out = capsys.readouterr().out
    assert 'after blank_crop' in out and 'after zoom' not in out
    assert main([str(before), f'{after}:zooom']) == 1
    assert "no evaluation called 'zooom': it has zoom, blank_crop" in capsys.readouterr().err
    assert main([str(before / 'nowhere')]) == 1
    assert 'was not found' in capsys.readouterr().err


def test_a_folder_where_a_file_is_meant_is_told(tmp_path, capsys):
    (tmp_path / 'results.json').mkdir()
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f'{tmp_path}/results.json: Is a directory')
