"""``/``: the web page, and the files that it consists of.

They are read once, kept in memory, and found by exact name only. They are the same for everybody and contain
no data of this server, so they need no key (``PUBLIC_PATHS``): the page asks its user for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER: Final = Path(__file__).parent.parent / "page"
INDEX: Final = "index.html"
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

# Scripts and styles are the server's own files, images are its own or dropped in by users; nothing is inline,
# nothing is loaded from or sent to another host, and no script can turn text into HTML.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Cache-Control": "no-cache",  # revalidate each time, as a new server may have a new page
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


def read_files(folder: Path) -> dict[str, PageFile]:
    """Return the files by name, without what editors and file managers leave. Any other file of an unknown
    type is an error, so that none is served by accident.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "#")) or path.name.endswith("~"):
            continue
        if path.suffix not in MEDIA_TYPES:
            raise ValueError(f"{path} has no media type: add it to MEDIA_TYPES, or remove the file")
        content = path.read_bytes()
        etag = f'"{sha256(content).hexdigest()[:32]}"'
        files[path.name] = PageFile(content, MEDIA_TYPES[path.suffix], etag)
    return files


FILES: Final = read_files(FOLDER)
PART_PATHS: Final = frozenset(f"/page/{name}" for name in FILES)
PUBLIC_PATHS: Final = PART_PATHS | {"/"}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return page_file(INDEX, request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def part_of_page(name: str, request: Request) -> Response:
    return page_file(name, request)


def page_file(name: str, request: Request) -> Response:
    file = FILES.get(name)
    if file is None:
        raise HTTPException(404)
    headers = HEADERS | {"ETag": file.etag}
    if request.headers.get("If-None-Match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
