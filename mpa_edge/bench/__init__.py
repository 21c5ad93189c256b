"""On the device: is the gain still there, and what does an answer cost?"""
