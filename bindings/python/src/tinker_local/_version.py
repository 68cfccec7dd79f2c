"""The package's name and version; the version is libtinker's, of which the package is a part."""

__title__ = "tinker_local"
__version__ = "0.1.0"
