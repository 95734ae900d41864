from tests.integrations.auto_circuit_scripts import *
import pytest
from circuit_trace.integrations.models import available_kinds, load_bundled_model


@pytest.mark.parametrize("kind", available_kinds())
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name, kind, tmp_path):
    r = run(
        with_our_imports(SCRIPTS[name]),
        load_bundled_model(kind),
        write_dataset(tmp_path / "p.json"),
    )
    assert r
