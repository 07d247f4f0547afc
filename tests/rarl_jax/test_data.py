"""Building from a config: what is told, and what happens at Ctrl-C."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from configs import build_ai4va_fg
from configs._parts import small_data
from input_pipeline.build import BuildSettings
from input_pipeline.dataset import open_records
from input_pipeline.pictures import decode
from input_pipeline.synthetic.files import page_name
from input_pipeline.synthetic.pages import DrawSettings, draw_page
from rarl_jax.run import build_data, prepare_data
from rarl_jax.runtime.signals import Stopped
from rarl_jax.settings import settings_from
from tests.input_pipeline.pages import write_folder


def settings(tmp_path, **values) -> BuildSettings:
    """As the command line would give them."""
    config = build_ai4va_fg.get_config()
    config.data.update(raw=str(tmp_path / 'raw'), out=str(tmp_path / 'out'), **values)
    return settings_from(config.to_dict())


def test_a_build_tells_what_it_lacks_and_where_its_report_lies(tmp_path, capsys):
    write_folder(tmp_path / 'raw', pages=3, sidecar=False)
    build_data(settings(tmp_path))
    told = capsys.readouterr().out
    assert 'No question of action_recognition: the source gives no action (24).' in told
    assert 'No test question of depth_comparison' in told  # the folder has a train file alone
    assert f'report: {tmp_path}/out/report/index.html' in told


def test_a_run_that_draws_its_pages_keeps_them_once(tmp_path):
    """In the data set. What a run leaves that was killed between building and removing is removed by the next."""
    data, raw = replace(small_data({'train': 3}), draw=DrawSettings(200, 200)), tmp_path / 'data' / 'raw'
    for left in ((), ('images',)):
        for name in left:
            (raw / name).mkdir(parents=True)
        assert prepare_data(data, tmp_path, 0, Console(quiet=True)) == tmp_path / 'data' / 'built'
        assert [path.name for path in (tmp_path / 'data').iterdir()] == ['built']
    drawn, records = draw_page(0, 1, data.draw), open_records(tmp_path / 'data' / 'built', 'pages', 'train')
    (kept,) = [r for r in records if r['id'].decode() == page_name('train', 1).removesuffix('.webp')]
    assert np.array_equal(decode(kept['image']), drawn.image)


def test_pages_that_a_user_has_given_stay_where_they_are(tmp_path):
    write_folder(tmp_path / 'raw', pages=3)
    data = replace(small_data({}), raw=str(tmp_path / 'raw'))
    prepare_data(data, tmp_path / 'run', 0, Console(quiet=True))
    assert len(list((tmp_path / 'raw' / 'images').iterdir())) == 3


def test_ctrl_c_says_that_nothing_was_made(tmp_path, monkeypatch):
    def interrupted(_):
        raise Stopped('Stopped by SIGTERM.', 'SIGTERM')

    monkeypatch.setattr('rarl_jax.run.build', interrupted)
    with pytest.raises(Stopped, match='out was not made') as told:
        build_data(settings(tmp_path))
    assert told.value.status == 143


def test_a_value_of_another_kind_is_named_with_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"config.data.exports is \('coco',\), expected tuple\[Literal\['verl', "):
        settings(tmp_path, exports=('coco',))
