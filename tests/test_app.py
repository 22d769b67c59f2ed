"""app.py contains only the app, its CORS and its routes; what they call is in chalicelib/."""

import ast
from pathlib import Path

APP = ast.parse((Path(__file__).parents[1] / "app.py").read_text())
LONGEST_ROUTE = 6


def test_app_py_defines_only_short_routes() -> None:
    definitions = [node for node in APP.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]

    assert len(definitions) >= 6
    for node in definitions:
        assert isinstance(node, ast.FunctionDef), node.name
        assert any("app.route(" in ast.unparse(decorator) for decorator in node.decorator_list), node.name
        assert len(node.body) <= LONGEST_ROUTE, node.name
