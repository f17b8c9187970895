"""What a model file is, by its content. Names decide only between two words for the same bytes.

Only the ends of files are read and nothing is ever deserialised: that a file looks like a format does not make it
harmless, it says which server can be asked to load it.
"""

from mlimg.formats.choice import check_formats
from mlimg.formats.detect import CUSTOM, FOLDERS, MAIN_FILES, OBJECTS, Detected, detect, models
from mlimg.formats.versions import recommended_pin

__all__ = [
    "CUSTOM",
    "FOLDERS",
    "MAIN_FILES",
    "OBJECTS",
    "Detected",
    "check_formats",
    "detect",
    "models",
    "recommended_pin",
]
