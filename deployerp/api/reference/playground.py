"""The playground: a page on which every call of the API can be made, with nothing from elsewhere."""

import json

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

PATH = "/playground"
_OPTIONS = {
    "dom_id": "#playground",
    # Relative, so that it is found behind a proxy's prefix, too.
    "url": "openapi.json",
    "deepLinking": True,
    "displayRequestDuration": True,
    "filter": True,
    "persistAuthorization": True,
    "tryItOutEnabled": True,
    "requestSnippetsEnabled": True,
    "defaultModelsExpandDepth": 0,
    # Otherwise it may show the document to a validator on the internet.
    "validatorUrl": None,
}
_SCRIPT = f"SwaggerUIBundle({json.dumps(_OPTIONS)});\n"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>deployERP playground</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="playground/files/swagger-ui.css">
</head>
<body>
<div id="playground"></div>
<script src="playground/files/swagger-ui-bundle.js"></script>
<script src="playground/start.js"></script>
</body>
</html>
"""
_HEADERS = {
    # The browser keeps the key, so this page runs no script but ours and speaks to nobody but this API.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def install(app: FastAPI) -> None:
    """Serves the page at `/playground`, where `/docs` leads too, and the files of Swagger UI beneath."""
    app.add_route("/docs", _redirect, include_in_schema=False)
    app.add_route(PATH, _page, include_in_schema=False)
    app.add_route(f"{PATH}/start.js", _script, include_in_schema=False)
    app.mount(f"{PATH}/files", StaticFiles(packages=[("fastapi_offline", "static")]))


async def _redirect(_: Request) -> Response:
    # Relative, for the same reason as the document.
    return RedirectResponse("playground")


async def _page(_: Request) -> Response:
    return HTMLResponse(_PAGE, headers=_HEADERS)


async def _script(_: Request) -> Response:
    return Response(_SCRIPT, media_type="text/javascript", headers=_HEADERS)
