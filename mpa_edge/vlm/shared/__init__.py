"""What the runtimes of exported models share, without torch and transformers: prompts and sampling."""
