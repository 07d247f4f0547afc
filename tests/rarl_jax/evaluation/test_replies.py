"""What a judge replies, and how it is read."""

import hypothesis
import pytest
from hypothesis import strategies as st

from rarl_jax.evaluation.endpoint import Endpoint
from rarl_jax.evaluation.replies import inner_status, read_content, read_grade


@pytest.mark.parametrize(
    ('reply', 'grade'),
    [
        ('GRADE: 1', 1.0),
        ('x\nGrade: 0.5\n\n', 0.5),
        ('**GRADE:** 0', 0.0),
        ('GRADE: 10', None),
        ('GRADE: 1.5', None),
        ('GRADE: -1', None),
        ('GRADE: 1/2', None),
        ('GRADE: 1.', 1.0),
        ('', None),
        ('GRADE: 1</s>', 1.0),
        ('GRADE: 0.5<|im_end|>\n<|endoftext|>', 0.5),
        ('GRADE: 0<end_of_turn>', 0.0),
        ('GRADE: 1<｜end▁of▁sentence｜>', 1.0),
        ('GRADE: 1 [/INST]', 1.0),
        (r'GRADE: \boxed{1}', 1.0),
        (r'\boxed{GRADE: 0.5}', 0.5),
        (r'GRADE: $\boxed{.5}$', 0.5),
        ('### **GRADE: 1**', 1.0),
        ('GRADE：1。', 1.0),
        ('{"grade": 0.5, "reason": "GRADE: 1"}', 0.5),
        ('```json\n{\n  "reason": "so",\n  "GRADE": 1\n}\n```', 1.0),
        ('So.\n{"GRADE": "1"}', 1.0),
        ('{"verdict": 1}', None),
        ('{"grade": 7}', None),
        ('{"grade": true}', None),
        ('<think>GRADE: 1', None),
        ('<think>GRADE: 1</think>', None),
        ('hm.</think>GRADE: 1', 1.0),
        ('GRADE: \\boxed{10}', None),
        ('GRADE: x', None),
    ],
)
def test_reading_a_grade(reply, grade):
    assert read_grade(reply) == grade


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(['error', 'choices', 'message', 'content', 'code', 'type', 'errors', 'text']), inner
        )
    ),
)


@hypothesis.given(
    reply=st.dictionaries(st.sampled_from(['error', 'choices', 'message', 'detail', 'errors', 'object']), WORDS),
    text=st.text(),
)
def test_whatever_a_server_sends_is_read(reply, text):
    assert inner_status(reply) in (None, *range(400, 600))
    assert isinstance(read_content(reply), str | None)
    assert read_grade(text) is None or 0 <= read_grade(text) <= 1
    assert Endpoint('http://h/v1', 'm').excerpt(text).isprintable()
