"""The committed page is what its sources build to, told without Node by the stamp of the build."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (
    "index.html",
    "package-lock.json",
    "public",
    "src",
    "vite.config.ts",
)  # as in web/scripts/stamp.mjs


def test_the_committed_page_is_built_from_the_sources_as_they_are() -> None:
    stamp = (ROOT / "mull/serve/page/stamp.txt").read_text().strip()
    assert stamp == _hash_of_sources(), "web/ has changed since the page was built: run `make web`"


def test_everything_the_page_names_is_there_and_nothing_comes_from_elsewhere() -> None:
    page = ROOT / "mull/serve/page"
    index = (page / "index.html").read_text()
    addresses = [part.split('"')[0] for part in index.replace('href="', 'src="').split('src="')[1:]]
    assert addresses
    for address in addresses:
        assert address.startswith("/"), f"{address} is not on this server"
        assert (page / address[1:]).is_file(), f"{address} is missing"


def _hash_of_sources() -> str:
    web = ROOT / "web"
    files: list[Path] = []
    for source in SOURCES:
        path = web / source
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    names = sorted(file.relative_to(web).as_posix() for file in files if ".test." not in file.name)
    whole = hashlib.sha256()
    for name in names:
        content = hashlib.sha256((web / name).read_bytes()).hexdigest()
        whole.update(f"{name} {content}\n".encode())
    return whole.hexdigest()
