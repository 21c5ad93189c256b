"""The built-in world: a tiny teacher, a tinier student, and the generator of the pictures they were trained on."""
