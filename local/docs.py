"""The docs page: Swagger UI out of a package, no other host asked."""

from importlib.util import find_spec
from pathlib import Path

TYPES = {".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Order API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  persistAuthorization: true, tryItOutEnabled: true,
});
"""


def page(path: str) -> tuple[str, bytes] | None:
    """Content type and bytes of /docs and of what it loads; None for any other path."""
    if path == "/docs":
        return "text/html; charset=utf-8", PAGE.encode()
    if path == "/docs/start.js":
        return TYPES[".js"], START.encode()
    folder, _, name = path.rpartition("/")
    file = _assets() / name
    if folder == "/docs" and file.suffix in TYPES and file.is_file():
        return TYPES[file.suffix], file.read_bytes()
    return None


def _assets() -> Path:
    package = find_spec("flask_swagger_ui")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("flask-swagger-ui is not installed: pip install -r requirements-dev.txt")
    return Path(package.origin).parent / "dist"
