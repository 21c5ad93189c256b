"""The part that runs on the device: answer the questions of a bundle, with Python 3.10 or newer."""
