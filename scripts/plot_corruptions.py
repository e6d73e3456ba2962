"""Draw one image under the 19 corruptions at 5 severities.

    python scripts/plot_corruptions.py --scale 32 --out docs/corruptions-32.png
    python scripts/plot_corruptions.py --scale 224 --cell 80 --out docs/corruptions-224.png

The first column is the clean image: a file of one's own (--image), or the cat Chelsea that scikit-image ships (CC0),
resized and cropped to the scale. The suffix of OUT says the format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tta.corruptions import CORRUPTIONS, SCALES, corrupt
from tta.streams.files import imagenet_crop
from tta.utils.paths import atomic_file

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
SEVERITIES = range(1, 6)
GAP, LINE = 2, 16


def main() -> None:
    """Draw two blocks of corruptions, side by side."""
    options = _parse()
    torch.set_num_threads(1)
    try:
        with Image.open(options.image) as file:
            pixels = np.array(imagenet_crop(file.convert("RGB"), options.scale))
    except (ValueError, OSError) as error:
        raise SystemExit(f"plot_corruptions: error: --image cannot be read: {error}") from None
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    sheet = draw({name: severities(image, name, options.seed) for name in options.corruptions}, options.cell)
    with atomic_file(options.out) as temporary:
        sheet.save(temporary)
    print(f"written: {options.out}")


def severities(image: Tensor, name: str, seed: int) -> Tensor:
    """Return an image, uint8 (1, 3, S, S), and what becomes of it at severities 1 to 5, together (6, 3, S, S)."""
    index = torch.zeros(1, dtype=torch.int64)
    return torch.cat([image, *(corrupt(image, name, severity, index=index, seed=seed) for severity in SEVERITIES)])


def draw(rows: dict[str, Tensor], cell: int) -> Image.Image:
    """Set rows of images under their names, in two blocks, each image ``cell`` pixels wide."""
    half = (len(rows) + 1) // 2
    width, height = (len(SEVERITIES) + 1) * (cell + GAP), cell + GAP + LINE
    sheet = Image.new("RGB", (2 * width + cell // 4, half * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (name, row) in enumerate(rows.items()):
        left, top = number // half * (width + cell // 4), number % half * height
        pen.text((left, top + 1), name, "black", font)
        for column, pixels in enumerate(row.permute(0, 2, 3, 1).numpy()):
            way = Image.Resampling.NEAREST if cell >= len(pixels) else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(pixels).resize((cell, cell), way), (left + column * (cell + GAP), top + LINE))
    return sheet


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, choices=SCALES, default=224)
    parser.add_argument("--out", type=Path, required=True, help="a picture, e.g. corruptions.png")
    parser.add_argument("--image", type=Path, default=CHELSEA, help="a file; default: a cat")
    parser.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=CORRUPTIONS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", type=int, default=96, help="width of an image on the sheet in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
