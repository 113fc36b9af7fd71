"Chest X-ray classifier"
__version__ = "0.1.0"
