"""Pictures of the report of made-up benchmarks: python -m tests.bench.report.shots FOLDER [--docs FILE.png]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from mpa_edge.bench.report.compare import compare_all
from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.read import find_benches, read_bench
from tests.bench import made_up
from tests.bench.report.browser import Browser

SIZES = {"phone": (360, 800), "desk": (1280, 900)}


def pages(folder: Path) -> dict[str, Path]:
    """Name -> file: one benchmark, a whole run, two runs compared."""
    made_up.write_run(folder / "minicharts")
    newer = made_up.write(
        folder / "newer" / "bench" / "jetson" / "gguf-q8_0", run="newer", slower=1.2, right=(0.58, 0.71, 0.62)
    )
    benches = [read_bench(path) for path in find_benches(folder / "minicharts")]
    one = [data for data in benches if data.folder.parts[-2:] == ("jetson", "gguf-q8_0")]
    comparisons, alone = compare_all(one, [read_bench(newer)])
    texts = {
        "one": render_html(one),
        "all": render_html(benches),
        "compared": render_html([read_bench(newer)], comparisons, alone),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def main(folder: Path, docs: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        for name, path in pages(folder).items():
            for (size, (width, height)), dark in ((one, dark) for one in SIZES.items() for dark in (False, True)):
                with browser.open(path, width, height, dark) as page:
                    page.screenshot(folder / f"{name}-{size}-{'dark' if dark else 'light'}.png", whole=True)
        browser.close()
    if docs:
        with Image.open(folder / "one-desk-light.png") as image:
            image.crop((80, 0, 1200, 1515)).quantize(96).save(docs, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
