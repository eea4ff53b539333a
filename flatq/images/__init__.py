"""Images from outside: one loader for every source, labels, resizing, the uint8 convention, grid pictures.

`load_images` gives one uint8 NCHW array with a digest. Metrics, features and sampling live elsewhere.
No torch.

    source.py    load_images, ImageSet: what a name or path means
    archives.py  image folders and zips, also those of NVlabs' dataset_tool
    npz.py       numpy archives, also guided-diffusion's
    parquet.py   image bytes in parquet, as Hugging Face datasets lays them out
    digits.py    scikit-learn's digits
    labels.py    where labels are read and checked
    stack.py     from files and arrays to one array
    resize.py    the named ways to one size
    pixels.py    uint8 to float and back
    grid.py      many images in one picture
"""

from flatq.images.grid import make_grid, save_grid
from flatq.images.labels import check_labels
from flatq.images.pixels import Rounding, to_float, to_uint8
from flatq.images.resize import RESIZES, Resize, resize_image
from flatq.images.source import ImageSet, load_images

__all__ = [
    "RESIZES",
    "ImageSet",
    "Resize",
    "Rounding",
    "check_labels",
    "load_images",
    "make_grid",
    "resize_image",
    "save_grid",
    "to_float",
    "to_uint8",
]
