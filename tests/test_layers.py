"""Imports run one way, and what workflows import loads in Temporal's sandbox."""

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import _Definition

from deployerp.worker import WORKFLOWS

ROOT = Path(__file__).parent.parent


def test_the_contracts_of_the_layers_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.__name__)
async def test_a_workflow_loads_in_the_sandbox(workflow: type) -> None:
    SandboxedWorkflowRunner().prepare_workflow(_Definition.must_from_class(workflow))
