"""The built-in world: a tiny teacher, a tinier student, and the generator of the images on which they were trained."""
