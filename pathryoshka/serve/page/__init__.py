"""The page: plain HTML, CSS and ES modules beside this file, served as they are; no build, nothing from the net."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

HERE = Path(__file__).parent


def add_page(app: FastAPI) -> None:
    """Serves the page at `/` and its parts below `/page/`."""

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(HERE / "index.html")

    app.mount("/page", StaticFiles(directory=HERE / "static"), name="page")
