"""The live page: files that a browser needs, and what it may do with them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).with_name("static")
#: A browser asks each time whether a file has changed, so that an upgrade reaches open pages.
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
#: Only this origin's files and routes; no script or style in the page itself, no frame around it,
#: and no text that becomes markup: what callers wrote can't do anything.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class _Files(StaticFiles):
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI, root_path: str) -> None:
    """Show the page at the app's root; all that it loads is below `root_path`."""
    # The pattern of POC_API_ROOT_PATH has no quotation mark.
    html = (_STATIC / "index.html").read_text(encoding="utf-8")
    html = html.replace('<base href="/">', f'<base href="{root_path}/">')
    headers = _HEADERS | {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    app.mount("/static", _Files(directory=_STATIC), name="page")
