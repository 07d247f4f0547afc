"""Building from a config: what is told, and what happens at Ctrl-C."""

from __future__ import annotations

import pytest

from configs import build_ai4va_fg
from input_pipeline.build import BuildSettings
from rarl_jax.run import build_data
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
