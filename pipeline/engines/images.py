"""Container images: whether an image's name says that it fits this release, this Python and the device asked for."""

import importlib.metadata
import re
import sys

from model.errors import BadInput

# As `make image` names them, for example tessera-beam:0.1.0-beam2.77.0-py311-cuda (deploy/README.md).
_TAG = re.compile(
    r"(?P<release>[0-9][\w.]*)-beam(?P<beam>[0-9.]+)-py(?P<python>[0-9]+)-(?P<device>cpu|cuda)(?:-[\w.]+)?"
)


def tag_for(device: str) -> str:
    """The tag of the image that belongs to this installation."""
    release, beam = importlib.metadata.version("tessera-beam"), importlib.metadata.version("apache-beam")
    return f"{release}-beam{beam}-py{sys.version_info.major}{sys.version_info.minor}-{device}"


def check_image(engine: str, image: str, device: str, any_image: bool = False) -> None:
    """Holds an image's name against this installation: engines take any text and fail when the workers start.

    Args:
      any_image: the operator vouches for an image whose tag does not say what is in it.

    Raises:
      BadInput: no image, a name that no registry takes, a tag that moves, another Beam or Python than ours (what
        is pickled here would not be read there), or an image without the card's libraries where CUDA is asked.
    """
    wanted = (
        f"take one with the tag {tag_for(device if device in ('cpu', 'cuda') else 'cuda')} (`make image` builds it)"
    )
    if not image:
        raise BadInput(f"engine {engine}: no image is given: {wanted}")
    name, at, digest = image.partition("@")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, ""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._/:-]*[a-z0-9])?", path) or (
        at and not re.fullmatch("sha256:[0-9a-f]{64}", digest)
    ):
        raise BadInput(f"engine {engine}: image = {image!r} is no name of an image: {wanted}")
    if not tag and not at:
        raise BadInput(f"engine {engine}: image {image} has no tag, so it means `latest`, which moves: {wanted}")
    if tag == "latest":
        raise BadInput(f"engine {engine}: image {image}: `latest` moves while a job runs: {wanted}")
    match = _TAG.fullmatch(tag)
    if match is None:
        if any_image:
            return
        raise BadInput(
            f"engine {engine}: the tag of image {image} does not say which Beam, Python and device it has: {wanted}, "
            "or say any-image = true if you know that it fits"
        )
    beam, python = importlib.metadata.version("apache-beam"), f"{sys.version_info.major}{sys.version_info.minor}"
    if match["beam"] != beam:
        raise BadInput(f"engine {engine}: image {image} has Beam {match['beam']}, and this is Beam {beam}: {wanted}")
    if match["python"] != python:
        raise BadInput(f"engine {engine}: image {image} has Python {match['python']}, and this is {python}: {wanted}")
    release = importlib.metadata.version("tessera-beam")
    if match["release"] != release:
        raise BadInput(
            f"engine {engine}: image {image} has release {match['release']}, and this is {release}: {wanted}"
        )
    if device == "cuda" and match["device"] == "cpu":
        raise BadInput(f"engine {engine}: --device cuda, and image {image} is made for the CPU: {wanted}")
    if device == "cpu" and match["device"] == "cuda":
        raise BadInput(
            f"engine {engine}: --device cpu, and image {image} is for cards alone, with 5 GB of libraries: {wanted}"
        )
