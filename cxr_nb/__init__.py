"Chest X-ray classifier"
__version__ = "0.2.0"

from .core import calm_threads, quiet_fastai, show_figures
calm_threads() # here, because it must come before PyTorch is loaded
quiet_fastai() # and this before fastai is
show_figures()
