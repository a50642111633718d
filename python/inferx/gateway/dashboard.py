"""`/dashboard/`: a page that shows functions, workers and GPUs by the JSON routes.

Must never hold or show anything itself: the page asks with the caller's own key.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from inferx.gateway.access import Access, GuardedRoute, everywhere

PAGE = "index.html"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    # Nothing but the page's own files runs or loads, and no other page can frame it.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class DashboardRoutes:
    """The page and its two files, read once."""

    def __init__(self, access: Access) -> None:
        self._access = access
        folder = files(__package__) / "pages"
        self._files = {
            one.name: one.read_bytes()
            for one in folder.iterdir()
            if one.name.rpartition(".")[2] in _TYPES
        }

    def routes(self) -> list[GuardedRoute]:
        """The routes of this part; strangers may see them: they say nothing of the platform."""
        return [
            self._access.route(path, handler, ["GET"], "dashboard.see", everywhere)
            for path, handler in (
                ("/dashboard", self.redirect),
                ("/dashboard/", self.file),
                ("/dashboard/{name}", self.file),
            )
        ]

    async def redirect(self, request: Request) -> Response:
        """The page's files are relative to the folder."""
        return RedirectResponse("/dashboard/", 308)

    async def file(self, request: Request) -> Response:
        """One of the files; the page by itself."""
        name = request.path_params.get("name", PAGE)
        found = self._files.get(name)
        if found is None:
            return Response(status_code=404)
        media_type = _TYPES[name.rpartition(".")[2]]
        return Response(found, media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)
