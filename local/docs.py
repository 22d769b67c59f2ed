"""The docs page: Swagger UI from an installed package, without requests to other hosts."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

TYPES = {".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Order API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'self'; img-src 'self' data:">
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/start.css">
</head>
<body>
<p class="hint">A token for <b>Authorize</b>: <code>make token TENANT=acme USER=alice</code></p>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# HEAD operations are hidden: they are the same as GET, without a body.
STYLE = """body { margin: 0; }
.hint { margin: 0; padding: 12px 20px; background: #1b2a3a; color: #fff;
        font: 15px sans-serif; text-align: center; }
.hint code { margin-left: 6px; padding: 3px 8px; border-radius: 4px; background: #34495e; font-size: 14px; }
.swagger-ui .info { margin: 30px 0; }
.swagger-ui .opblock-head { display: none; }
"""
START = """window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  persistAuthorization: true, tryItOutEnabled: true, displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
});
"""
OWN_FILES = {
    "/docs": ("text/html; charset=utf-8", PAGE),
    "/docs/start.css": (TYPES[".css"], STYLE),
    "/docs/start.js": (TYPES[".js"], START),
}


def page(path: str) -> tuple[str, bytes] | None:
    """Content type and bytes of /docs and the files that it loads; None for any other path."""
    if path in OWN_FILES:
        content_type, text = OWN_FILES[path]
        return content_type, text.encode()
    file = _assets().get(path)
    return (TYPES[file.suffix], file.read_bytes()) if file else None


@cache
def _assets() -> dict[str, Path]:
    """The package's files by their URL paths: a path of a request is only looked up, never opened."""
    package = find_spec("flask_swagger_ui")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("flask-swagger-ui is not installed: pip install -r requirements-dev.txt")
    files = (Path(package.origin).parent / "dist").iterdir()
    return {f"/docs/{file.name}": file for file in files if file.suffix in TYPES}
