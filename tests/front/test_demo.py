"""The demo's edges: a folder that is not its own, and a tuned agent that leaves nothing to prefer."""

import pytest

from counterplay import Store, demo
from counterplay.core.errors import UserError


def test_a_tuned_agent_without_errors_leaves_no_pairs(tmp_path, capsys):
    with Store.open(":memory:") as store:
        assert demo._pairs(store, tmp_path / "dpo", demo.EXAMPLE / "model") is None
    assert "no DPO" in capsys.readouterr().err


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="holds something else"):
        demo.run(tmp_path, quiet=True)
    assert (tmp_path / "thesis.txt").exists()
