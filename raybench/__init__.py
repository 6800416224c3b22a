"""raybench: how faithfully do explanations of a chest X-ray classifier localise an infection?"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("raybench")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
