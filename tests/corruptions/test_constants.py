"""The strengths of the corruptions at both scales, against a description of the recipes that is written out here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tta import corruptions
from tta.corruptions import CORRUPTIONS, SCALES, recipe_digest

# For severities 1 to 5. Elastic transforms are in pixels: of 32, and of 244, as the published generator has it.
CIFAR_10_C = """
gaussian_noise | .04 .06 .08 .09 .10
shot_noise | 500 250 100 75 50
impulse_noise | .01 .02 .03 .05 .07
defocus_blur | (.3,.4) (.4,.5) (.5,.6) (1,.2) (1.5,.1)
glass_blur | (.05,1,1) (.25,1,1) (.4,1,1) (.25,1,2) (.4,1,2)
motion_blur | (6,1) (6,1.5) (6,2) (8,2) (9,2.5)
zoom_blur | (1.06,.01) (1.11,.01) (1.16,.01) (1.21,.01) (1.26,.01)
snow | (.1,.2,1,.6,8,3,.95) (.1,.2,1,.5,10,4,.9) (.15,.3,1.75,.55,10,4,.9) (.25,.3,2.25,.6,12,6,.85) \
(.3,.3,1.25,.65,14,12,.8)
frost | (1,.2,5) (1,.3,5) (.9,.4,5) (.85,.4,5) (.75,.45,5)
fog | (.2,3) (.5,3) (.75,2.5) (1,2) (1.5,1.75)
brightness | .05 .1 .15 .2 .3
contrast | .75 .5 .4 .3 .15
elastic_transform | (0,0,2.56) (1.6,6.4,2.24) (2.56,1.92,1.92) (3.2,1.28,1.6) (3.2,.96,.96)
pixelate | .95 .9 .85 .75 .65
jpeg_compression | 80 65 58 50 40
speckle_noise | .06 .1 .12 .16 .2
gaussian_blur | .4 .6 .7 .8 1
spatter | (.62,.1,.7,.7,.5,0) (.65,.1,.8,.7,.5,0) (.65,.3,1,.69,.5,0) (.65,.1,.7,.69,.6,1) (.65,.1,.5,.68,.6,1)
saturate | (.3,0) (.1,0) (1.5,0) (2,.1) (2.5,.2)
"""
IMAGENET_C = """
gaussian_noise | .08 .12 .18 .26 .38
shot_noise | 60 25 12 5 3
impulse_noise | .03 .06 .09 .17 .27
defocus_blur | (3,.1) (4,.5) (6,.5) (8,.5) (10,.5)
glass_blur | (.7,1,2) (.9,2,1) (1,2,3) (1.1,3,2) (1.5,4,2)
motion_blur | (10,3) (15,5) (15,8) (15,12) (20,15)
zoom_blur | (1.11,.01) (1.16,.01) (1.21,.02) (1.26,.02) (1.31,.03)
snow | (.1,.3,3,.5,10,4,.8) (.2,.3,2,.5,12,4,.7) (.55,.3,4,.9,12,8,.7) (.55,.3,4.5,.85,12,8,.65) \
(.55,.3,2.5,.85,12,12,.55)
frost | (1,.4,1) (.8,.6,1) (.7,.7,1) (.65,.7,1) (.6,.75,1)
fog | (1.5,2) (2,2) (2.5,1.7) (2.5,1.5) (3,1.4)
brightness | .1 .2 .3 .4 .5
contrast | .4 .3 .2 .1 .05
elastic_transform | (488,170.8,24.4) (488,19.52,48.8) (12.2,2.44,4.88) (17.08,2.44,4.88) (29.28,2.44,4.88)
pixelate | .6 .5 .4 .3 .25
jpeg_compression | 25 18 15 10 7
speckle_noise | .15 .2 .35 .45 .6
gaussian_blur | 1 2 3 4 6
spatter | (.65,.3,4,.69,.6,0) (.65,.3,3,.68,.6,0) (.65,.3,2,.68,.5,0) (.65,.3,1,.65,1.5,1) (.67,.4,1,.65,1.5,1)
saturate | (.3,0) (.1,0) (2,0) (5,.1) (20,.2)
"""


def read(recipe: str) -> dict[str, list[tuple[float, ...]]]:
    lines = [line.split(" | ") for line in recipe.strip().splitlines()]
    words = {name: re.findall(r"[^ ()]+", values) for name, values in lines}
    return {name: [tuple(map(float, word.split(","))) for word in found] for name, found in words.items()}


@pytest.mark.parametrize(("size", "written"), [(32, CIFAR_10_C), (224, IMAGENET_C)])
def test_constants__are_those_of_the_recipe(size: int, written: str) -> None:
    """All 19 corruptions at all 5 severities."""
    recipe = read(written)
    assert list(recipe) == list(CORRUPTIONS) == list(SCALES[size])
    assert {name: len(rows) for name, rows in recipe.items()} == dict.fromkeys(CORRUPTIONS, 5)
    expected = {(name, k): row for name, rows in recipe.items() for k, row in enumerate(rows, start=1)}
    found = {(name, k): row for name, rows in SCALES[size].items() for k, row in enumerate(rows, start=1)}
    assert found.keys() == expected.keys()
    different = {key: (found[key], row) for key, row in expected.items() if found[key] != pytest.approx(row)}
    assert not different, f"found and expected: {different}"


def test_recipe_digest__follows_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache tells by it what an older recipe made."""
    files = [tmp_path / "__init__.py", tmp_path / "constants.py"]
    monkeypatch.setattr(corruptions, "__file__", str(files[0]))
    names = []
    try:
        for content in ("sigma = 0.1", "sigma = 0.2"):
            for file in files:
                file.write_text(content)
                recipe_digest.cache_clear()
                names.append(recipe_digest())
    finally:
        recipe_digest.cache_clear()
    assert len(set(names)) == 4
    monkeypatch.undo()
    assert recipe_digest() not in names
