"""Run by test_device.py: the app's answers with its base on the simulated device."""

import pytest

from tests.app.conftest import make_run, runs, runs_template, tiny_base  # noqa: F401
from tests.device.on_device import device_of_bases
from tests.device.simulated import DEVICE
from toolkit.app.workbench import Workbench

PROMPTS = ("Hello", "What is it? it it it")


def answers(workbench, **settings):
    names = list(workbench.catalog.checkpoints)
    return {
        (prompt, answer.checkpoint): answer
        for prompt in PROMPTS
        for answer in workbench.compare(prompt, names, max_new_tokens=8, **settings)
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"beams": 3, "temperature": 0.0},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 3},
    ],
    ids=str,
)
def test_app_answers_equal_those_on_cpu(settings, tiny_base, runs, monkeypatch):  # noqa: F811
    expected = answers(Workbench.open(tiny_base, runs), **settings)
    with device_of_bases(monkeypatch):
        workbench = Workbench.open(tiny_base, runs)
        assert workbench.roles.base.device == DEVICE
        on_device = answers(workbench, **settings)
        for key, answer in expected.items():
            assert on_device[key].problem is None, on_device[key].problem
            assert on_device[key].text == answer.text
            assert on_device[key].kl == pytest.approx(answer.kl, abs=1e-4)
        for (prompt, name), answer in on_device.items():
            workbench.changes(name, prompt, answer.text, ids=answer.ids)
